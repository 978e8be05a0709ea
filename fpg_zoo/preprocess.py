"""From decoded pixels to the network's input: scale, normalise, pad.

Frames: the original image's pixels, the resized image's pixels (`sizes`), and the padded batch, which extends the
resized one to the right and bottom.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fpg_zoo.config import PreprocessConfig


def resized_size(height: int, width: int, longest_side: int) -> tuple[int, int]:
    """(height, width) after scaling so that the longest side is `longest_side`; at least one pixel each."""
    scale = longest_side / max(height, width)
    return max(int(height * scale + 0.5), 1), max(int(width * scale + 0.5), 1)


def resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    """(3, H, W) uint8 to (3, *size) uint8: bilinear, half-pixel centres, no antialiasing, rounded to whole levels."""
    if tuple(image.shape[-2:]) == size:
        return image
    scaled = F.interpolate(image[None].float(), size=size, mode="bilinear", align_corners=False, antialias=False)
    return scaled[0].round().clamp(0, 255).to(torch.uint8)


def normalise(image: Tensor, config: PreprocessConfig) -> Tensor:
    """(3, H, W) uint8 RGB to float32 of about zero mean and unit variance per channel."""
    mean = torch.tensor(config.mean, device=image.device)[:, None, None]
    std = torch.tensor(config.std, device=image.device)[:, None, None]
    return (image.float() - mean) / std


def preprocess(images: Sequence[Tensor], config: PreprocessConfig) -> tuple[Tensor, list[tuple[int, int]]]:
    """Make a batch.

    Args:
        images: (3, H_i, W_i) uint8 RGB, all on one device.
        config: the model's (`model.config.preprocess`).

    Returns:
        The batch (N, 3, H, W) float32, H and W the smallest multiples of `pad_divisor` that hold every image, zero
        beyond each; and each image's resized (height, width).
    """
    sizes = [resized_size(*image.shape[-2:], config.longest_side) for image in images]
    height = _round_up(max(size[0] for size in sizes), config.pad_divisor)
    width = _round_up(max(size[1] for size in sizes), config.pad_divisor)
    batch = torch.zeros(len(images), 3, height, width, device=images[0].device)
    for index, (image, size) in enumerate(zip(images, sizes, strict=True)):
        batch[index, :, : size[0], : size[1]] = normalise(resize(image, size), config)
    return batch, sizes


def _round_up(value: int, divisor: int) -> int:
    return -(-value // divisor) * divisor
