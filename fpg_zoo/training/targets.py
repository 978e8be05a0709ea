"""Ground truth as the criterion takes it, checked, and cut to RoIs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import roi_align

from fpg_zoo.structures.boxes import has_area


@dataclass(frozen=True)
class Targets:
    """One image's G ground truths, in pixels of the padded batch.

    Attributes:
        boxes: (G, 4) float32 xyxy, each with an area.
        labels: (G,) int64, 0-based classes.
        masks: (G, H, W) bool or uint8; None where the detector has no masks.
        has_mask: (G,) bool, which of them have a mask; None where all have.
    """

    boxes: Tensor
    labels: Tensor
    masks: Tensor | None
    has_mask: Tensor | None = None


def parse_targets(
    targets: Sequence[Mapping[str, Tensor]], *, images: int, classes: int, masks: bool, device: torch.device
) -> list[Targets]:
    """Check what the user gives, image by image, and bring it to the device.

    Raises:
        ValueError: with the image's index and what is wrong with it.
    """
    if len(targets) != images:
        raise ValueError(f"{len(targets)} targets for {images} images: give one for each")
    return [_parsed(index, target, classes, masks, device) for index, target in enumerate(targets)]


def _parsed(index: int, target: Mapping[str, Tensor], classes: int, with_masks: bool, device: torch.device) -> Targets:
    required = ("boxes", "labels", "masks") if with_masks else ("boxes", "labels")
    for name in required:
        if name not in target:
            raise ValueError(f"targets[{index}] has no {name!r}: it takes {', '.join(required)}")
    boxes, labels = target["boxes"].to(device, torch.float32), target["labels"].to(device, torch.int64)
    if boxes.ndim != 2 or boxes.shape[1] != 4 or labels.shape != boxes.shape[:1]:
        raise ValueError(
            f"targets[{index}]: boxes {tuple(boxes.shape)} and labels {tuple(labels.shape)} are to be (G, 4) and (G,)"
        )
    if not (torch.isfinite(boxes).all() and has_area(boxes).all()):
        raise ValueError(f"targets[{index}]: a box has no area, or a coordinate is no number; leave it out")
    if len(labels) and not (labels.min() >= 0 and labels.max() < classes):
        raise ValueError(f"targets[{index}]: a label is outside 0..{classes - 1}, the model's classes")
    if not with_masks:
        return Targets(boxes, labels, None)
    masks = target["masks"].to(device)
    if masks.ndim != 3 or len(masks) != len(boxes):
        raise ValueError(f"targets[{index}]: masks {tuple(masks.shape)} are to be ({len(boxes)}, H, W)")
    has_mask = target.get("has_mask")
    if has_mask is None:
        return Targets(boxes, labels, masks)
    if has_mask.shape != labels.shape or has_mask.dtype != torch.bool:
        raise ValueError(f"targets[{index}]: has_mask is to be ({len(boxes)},) bool")
    return Targets(boxes, labels, masks, has_mask.to(device))


def encode(boxes: Tensor, gt_boxes: Tensor, std: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)) -> Tensor:
    """The deltas that `structures.boxes.decode` turns boxes (..., 4) with into truths (..., 4), divided by `std`."""
    width, height = boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1]
    gt_width, gt_height = gt_boxes[..., 2] - gt_boxes[..., 0], gt_boxes[..., 3] - gt_boxes[..., 1]
    centres = (gt_boxes[..., :2] + gt_boxes[..., 2:] - boxes[..., :2] - boxes[..., 2:]) * 0.5
    deltas = torch.stack(
        (
            centres[..., 0] / width,
            centres[..., 1] / height,
            (gt_width / width).log(),
            (gt_height / height).log(),
        ),
        dim=-1,
    )
    return deltas / deltas.new_tensor(std)


def masks_in(boxes: Tensor, masks: Tensor, index: Tensor, side: int) -> Tensor:
    """Ground-truth masks as seen through boxes: RoIAlign of the bitmap, at least half counting as mask.

    Args:
        boxes: (R, 4) xyxy in the masks' frame.
        masks: (G, H, W) bool or uint8.
        index: (R,) int64, which mask goes with which box.
        side: of the result.

    Returns:
        (R, side, side) bool.
    """
    used, place = torch.unique(index, return_inverse=True)  # the others need not become floats
    rois = torch.cat((place[:, None].to(boxes), boxes), dim=1)
    seen: Tensor = roi_align(masks[used, None].float(), rois, side, spatial_scale=1.0, sampling_ratio=0, aligned=True)
    return seen.squeeze(1) >= 0.5
