"""From decoded pixels to the network's input: scale, normalize, pad.

Frames: the original image's pixels, the resized image's pixels (`sizes`), and the padded batch, which extends the
resized one to the right and bottom.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fpg_zoo.config import PreprocessConfig
from fpg_zoo.modeling.opencv import Pixels, is_in_range, opencv_resizer
from fpg_zoo.uploads import small_to_device

_UNIT = 2048  # a weight of 1 in the fixed-point arithmetic of `resize`


def resized_size(height: int, width: int, config: PreprocessConfig) -> tuple[int, int]:
    """(height, width) that an image of this size is resized to; at least one pixel each."""
    if config.fixed_size is not None:
        return config.fixed_size
    scale = config.longest_side / max(height, width)
    if config.shortest_side is not None:
        scale = min(scale, config.shortest_side / min(height, width))
    return scaled_size(height, width, scale)


def scaled_size(height: int, width: int, scale: float) -> tuple[int, int]:
    """(height, width) times a factor, rounded; at least one pixel each."""
    return max(int(height * scale + 0.5), 1), max(int(width * scale + 0.5), 1)


def resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Scale bilinearly: half-pixel centers, no antialiasing, edges repeated.

    The arithmetic is that of the published pipeline, OpenCV's 8-bit fixed-point resizer with 11-bit weights, to the
    last gray level. Interpolating in floating point moves every tenth value by one, and with it the detections. On the
    CPU OpenCV itself does it where it is installed, many times as fast.

    Args:
        image: (3, H, W) uint8.
        size: (height, width) wanted, each at least 1.

    Returns:
        (3, height, width) uint8.
    """
    if tuple(image.shape[-2:]) == size:
        return image
    if image.device.type == "cpu" and is_in_range((image.shape[-2], image.shape[-1]), size):
        resizer = opencv_resizer(_resized_array)
        if resizer is not None:
            pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
            return torch.from_numpy(resizer(pixels, size)).permute(2, 0, 1)
    return _resized(image, size)


def _resized_array(image: Pixels, size: tuple[int, int]) -> Pixels:
    """(H, W, 3) to (height, width, 3)."""
    return _resized(torch.from_numpy(image).permute(2, 0, 1), size).permute(1, 2, 0).numpy()


def _resized(image: Tensor, size: tuple[int, int]) -> Tensor:
    """`resize` by tensor operations."""
    (left, right), columns = _neighbours(image.shape[-1], size[1])
    (upper, lower), rows = _neighbours(image.shape[-2], size[0])
    # At the left and right border the one pixel there gets the whole weight; at the top and bottom the border row is
    # taken twice with both weights, each product cut off on its own.
    columns[left == right] = 0
    left_weight, right_weight = fixed_point_weights(small_to_device(columns, image.device))
    upper_weight, lower_weight = fixed_point_weights(small_to_device(rows[:, None], image.device))
    # Rows and columns are selected while they are bytes: what is widened to 32 bits is of the output's size, however
    # large the image is.
    source_rows, places = torch.cat((upper, lower)).unique(return_inverse=True)  # type: ignore[no-untyped-call]
    needed = _select(image, 1, source_rows)
    across = (_select(needed, 2, left).int() * left_weight + _select(needed, 2, right).int() * right_weight) >> 4
    upper_place, lower_place = places.split(size[0])
    upper_part = (_select(across, 1, upper_place) * upper_weight) >> 16
    lower_part = (_select(across, 1, lower_place) * lower_weight) >> 16
    return ((upper_part + lower_part + 2) >> 2).to(torch.uint8)


def _neighbours(in_size: int, out_size: int) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """For each of `out_size` pixels along an axis: the source pixels on either side of its center, and the way between
    them, 0..1, that its center lies from the first."""
    scale = 1.0 / (out_size / in_size)
    place = ((torch.arange(out_size, dtype=torch.float64, device="cpu") + 0.5) * scale - 0.5).float()
    first = place.floor()
    second = (first + 1).clamp(0, in_size - 1)
    return (first.clamp(0, in_size - 1).long(), second.long()), place - first


def _select(image: Tensor, dim: int, places: Tensor) -> Tensor:
    return image.index_select(dim, small_to_device(places, image.device))


def fixed_point_weights(fraction: Tensor) -> tuple[Tensor, Tensor]:
    """The int32 weights of 2048 of the first and the second neighbor; `fraction` is the way between them, 0..1."""
    return ((1 - fraction) * _UNIT).round().int(), (fraction * _UNIT).round().int()


def normalize(image: Tensor, config: PreprocessConfig) -> Tensor:
    """(..., 3, H, W) RGB, 0..255, to float32 of about zero mean and unit variance a channel, in the config's order."""
    if config.channel_order == "BGR":
        image = image.flip(-3)
    mean, std = (
        small_to_device(torch.tensor(values, dtype=torch.float32, device="cpu")[:, None, None], image.device)
        for values in (config.mean, config.std)
    )
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
    sizes = [resized_size(image.shape[-2], image.shape[-1], config) for image in images]
    height, width = padded_size(max(size[0] for size in sizes), max(size[1] for size in sizes), config.pad_divisor)
    batch = torch.zeros(len(images), 3, height, width, dtype=torch.float32, device=images[0].device)
    for index, (image, size) in enumerate(zip(images, sizes, strict=True)):
        batch[index, :, : size[0], : size[1]] = normalize(resize(image, size), config)
    return batch, sizes


def padded_size(height: int, width: int, divisor: int) -> tuple[int, int]:
    """The smallest multiples of `divisor` that hold (height, width)."""
    return -(-height // divisor) * divisor, -(-width // divisor) * divisor
