"""Whether an exported file finds what its model finds."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import box_iou

from fpg_zoo.inference.exported.detector import ExportedDetector, padded
from fpg_zoo.modeling.detectors import Detector
from fpg_zoo.modeling.preprocess import padded_size, preprocess, resized_size
from fpg_zoo.structures import Detections

_TIMED = 3  # runs of each side, of a single image
_IN_A_BATCH = 4  # images at most; of many, a batch would take more memory than there is


@dataclass(frozen=True)
class Tolerance:
    """By how much two detections of an object may differ, and which share has to be matched, from which score on."""

    iou: float
    score: float
    mask_iou: float
    share: float
    min_score: float = 0.0


# Coarser numbers move scores, and with them what is over the threshold: there, detections that are sure of it count.
TOLERANCES = {
    "fp32": Tolerance(iou=0.99, score=1e-3, mask_iou=0.98, share=0.99),
    "fp16": Tolerance(iou=0.95, score=0.02, mask_iou=0.95, share=0.95, min_score=0.3),
    "bf16": Tolerance(iou=0.9, score=0.05, mask_iou=0.85, share=0.9, min_score=0.3),
    "int8": Tolerance(iou=0.8, score=0.15, mask_iou=0.75, share=0.7, min_score=0.3),
}


@dataclass(frozen=True)
class ExportAgreement:
    """What the model and the file found in the same images.

    Attributes:
        images: how many were looked at, one by one.
        at_once: whether the first ones, four at most, were given in one batch, too, as a file that takes any number is;
            the counts are of both.
        expected, found: detections of the model and of the file; in less precision than fp32 those of a score of 0.3
            or more, which are matched among all of the other side's.
        matched: of those expected, how many have one of the same class within the tolerance.
        worst_score, worst_box: the largest difference between matched ones, and of a coordinate in pixels.
        worst_mask_iou: the least IoU of matched masks; None without masks.
        model_seconds, file_seconds: for an image, the median of the runs.
        agrees: enough are matched, both ways.
    """

    images: int
    at_once: bool
    expected: int
    found: int
    matched: int
    worst_score: float
    worst_box: float
    worst_mask_iou: float | None
    model_seconds: float
    file_seconds: float
    agrees: bool

    def line(self) -> str:
        """For people."""
        masks = "" if self.worst_mask_iou is None else f", masks by an IoU of {self.worst_mask_iou:.3f}"
        at_once = ", one by one and in a batch" if self.at_once else ""
        return (
            f"{self.matched} of {self.expected} detections matched in {self.images} images{at_once} "
            f"({self.found} found); scores differ by {self.worst_score:.1e}, boxes by {self.worst_box:.1e} "
            f"pixels{masks}; an image takes {self.file_seconds:.3f} s, the model {self.model_seconds:.3f} s"
        )


def compare(model: Detector, file: ExportedDetector, images: Sequence[Tensor]) -> ExportAgreement:
    """Run both on images.

    Args:
        model: that was exported, in eval mode.
        file: it, opened.
        images: (3, h, w) uint8 RGB each.
    """
    tolerance = TOLERANCES[file.description.dtype]
    expected_count = found_count = matched = other_way = 0
    worst_score = worst_box = 0.0
    worst_mask: float | None = None
    times: tuple[list[float], list[float]] = ([], [])
    passes = [[image] for image in images]
    at_once = file.description.batch is None and not file.description.takes_pixels and len(images) > 1
    if at_once:
        passes.append(list(images[:_IN_A_BATCH]))
    for batch in passes:
        of_model, of_file, seconds = _both(model, file, batch)
        if len(batch) == 1:
            times[0].append(seconds[0])
            times[1].append(seconds[1])
        for expected, found in zip(of_model, of_file, strict=True):
            pairs = _matched(expected, found, tolerance)
            matched += len(pairs)
            other_way += len(_matched(found, expected, tolerance))
            expected_count += int((expected.scores >= tolerance.min_score).sum())
            found_count += int((found.scores >= tolerance.min_score).sum())
            for one, other in pairs:
                worst_score = max(worst_score, float((expected.scores[one] - found.scores[other]).abs()))
                worst_box = max(worst_box, float((expected.boxes[one] - found.boxes[other]).abs().max()))
                if expected.masks is not None and found.masks is not None:
                    iou = _mask_iou(expected.masks[one], found.masks[other])
                    worst_mask = iou if worst_mask is None else min(worst_mask, iou)
    agrees = matched >= tolerance.share * expected_count and other_way >= tolerance.share * found_count
    return ExportAgreement(
        images=len(images),
        at_once=at_once,
        expected=expected_count,
        found=found_count,
        matched=matched,
        worst_score=worst_score,
        worst_box=worst_box,
        worst_mask_iou=worst_mask,
        model_seconds=statistics.median(times[0]),
        file_seconds=statistics.median(times[1]),
        agrees=agrees,
    )


def _both(
    model: Detector, file: ExportedDetector, images: Sequence[Tensor]
) -> tuple[list[Detections], list[Detections], tuple[float, float]]:
    """What the model and the file find in a batch, and the seconds that each takes; several runs of a single image."""
    runs = _TIMED if len(images) == 1 else 1
    frames = [(image.shape[-2], image.shape[-1]) for image in images]
    batch, sizes = preprocess([image.to(model.device) for image in images], model.config.preprocess)
    # Padded as the file has it: padding reaches the maps, and a detection may depend on it.
    batch = padded(batch, file.description).to(model.dtype)
    # On a GPU, what is found is there once it is on the CPU.
    expected, model_seconds = _timed(lambda: [one.to("cpu") for one in model.detect(batch, sizes, frames)], runs)
    if file.description.takes_pixels:
        found, file_seconds = _timed(lambda: file.detect_pixels(images), runs)
    else:
        found, file_seconds = _timed(lambda: file.detect(batch.float().to(file.device), sizes, frames), runs)
    return expected, [one.to("cpu") for one in found], (model_seconds, file_seconds)


def fits(image: Tensor, model: Detector, size: tuple[int, int] | None) -> bool:
    """Whether an image is within a file's fixed size once it is resized."""
    resized = resized_size(image.shape[-2], image.shape[-1], model.config.preprocess)
    height, width = padded_size(*resized, model.config.preprocess.pad_divisor)
    return size is None or (height <= size[0] and width <= size[1])


def _timed(run: Callable[[], list[Detections]], runs: int) -> tuple[list[Detections], float]:
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        result = run()
        seconds.append(time.perf_counter() - start)
    return result, statistics.median(seconds[1:] or seconds)


def _matched(expected: Detections, found: Detections, tolerance: Tolerance) -> list[tuple[int, int]]:
    """Pairs of places: each expected one with the free one that overlaps it most."""
    overlaps = box_iou(expected.boxes, found.boxes)
    fitting = expected.labels[:, None] == found.labels[None]
    fitting &= (expected.scores[:, None] - found.scores[None]).abs() <= tolerance.score
    overlaps = torch.where(fitting & (overlaps > tolerance.iou), overlaps, 0.0)
    pairs = []
    for place in (expected.scores >= tolerance.min_score).nonzero().flatten().tolist():
        if not len(found):
            break
        value, other = overlaps[place].max(0)
        if value > 0 and _masks_match(expected, place, found, int(other), tolerance):
            overlaps[:, other] = 0
            pairs.append((place, int(other)))
    return pairs


def _masks_match(expected: Detections, place: int, found: Detections, other: int, tolerance: Tolerance) -> bool:
    if expected.masks is None or found.masks is None:
        return True
    return _mask_iou(expected.masks[place], found.masks[other]) > tolerance.mask_iou


def _mask_iou(first: Tensor, second: Tensor) -> float:
    """1 where both are empty."""
    union = int((first | second).sum())
    return int((first & second).sum()) / union if union else 1.0
