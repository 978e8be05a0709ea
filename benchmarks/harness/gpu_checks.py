"""Whether a device computes what the CPU does: maps and detections, the losses and gradients of a step, a run that is
taken up again."""

from __future__ import annotations

import contextlib
import copy
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torchvision.ops import box_iou

import fpg_zoo
from fpg_zoo.data.shapes import ShapesDataset
from fpg_zoo.distributed import Processes
from fpg_zoo.modeling.detectors import Detector, TwoStageDetector
from fpg_zoo.modeling.heads.rpn import Proposals, ProposalSelection
from fpg_zoo.structures import Detections
from fpg_zoo.training import Criterion
from fpg_zoo.training.recipes import recipe_named
from fpg_zoo.training.run_checkpoints import newest_state
from fpg_zoo.training.trainer import TrainSettings, train
from harness.models import batch_of

PRECISIONS: dict[str, torch.dtype] = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
# The greatest relative differences in full float32. With random weights, maps of the CPU are up to 8e-5 from those that
# it computes in float64, and TF32's 5e-2. A gradient is up to 2e-2 from float64's; of a trained model, 2e-5.
MAPS, LOSSES = 3e-4, 1e-4
GRADIENTS = {"random": 5e-2, "trained": 1e-3}
MATCHED = 0.97  # the least share of detections that are the CPU's
_OBJECTS = 7  # of an image
_BOX_IOU, _SCORE = 0.98, 0.01  # of a detection that is the CPU's


@contextlib.contextmanager
def precision_of(name: str) -> Iterator[None]:
    """While this is open, products on a GPU have float32's digits, or TF32's where `name` is `tf32`."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = name == "tf32"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@contextlib.contextmanager
def autocast_of(name: str, device: torch.device) -> Iterator[None]:
    """`precision_of`, and autocast for the two 16-bit types."""
    dtype = PRECISIONS[name]
    with precision_of(name), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        yield


def formed(plain: Detector, form: str, precision: str) -> Detector:
    """A model on its device in a form: plain, optimized or compiled. A plain one computes 16 bits by autocast."""
    if form == "plain":
        return plain
    dtype = PRECISIONS[precision]
    return fpg_zoo.optimize(plain, dtype=None if dtype == torch.float32 else dtype, compile=form == "compiled")


def detect(model: Detector, images: Tensor, sizes: list[tuple[int, int]], precision: str) -> list[Detections]:
    """Detections of float32 images in a precision."""
    if model.dtype != torch.float32:
        with precision_of(precision):
            return model.detect(images.to(model.dtype), sizes)
    with autocast_of(precision, model.device):
        return model.detect(images, sizes)


def maps_of(model: Detector, images: Tensor) -> list[Tensor]:
    """What the network gives before boxes are chosen: the pyramid, and the dense head's or RPN's maps."""
    with torch.no_grad():
        outputs = model.run_dense(images)
        pyramid = () if isinstance(model, TwoStageDetector) else model.neck(model.backbone(images))
    return [*pyramid, *(level for levels in outputs for level in levels)]


def difference(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The greatest difference of any map, in shares of that map's greatest value."""
    return max(
        float((one.float().cpu() - other).abs().max() / other.abs().max())
        for one, other in zip(found, expected, strict=True)
    )


def matched(found: Detections, expected: Detections) -> int:
    """How many of those expected are found: of the class, IoU over 0.98, score within 0.01; each found one once."""
    found = found.to("cpu")
    near = (box_iou(expected.boxes, found.boxes) > _BOX_IOU) & (expected.labels[:, None] == found.labels)
    near &= (expected.scores[:, None] - found.scores).abs() <= _SCORE
    count = 0
    for row in near:
        if row.any():
            near[:, int(row.to(torch.uint8).argmax())] = False
            count += 1
    return count


def inference_rows(plain: Detector, device: torch.device, cases: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """A row for each form and precision: maps and detections of two images beside the CPU's.

    Args:
        plain: on the CPU, in eval mode.
        device: to compare.
        cases: (form, precision). In plain full float32 the maps are limited, and in all full float32 the detections.
    """
    images, sizes = batch_of(plain.name, 2)
    expected_maps, expected = maps_of(plain, images), plain.detect(images, sizes)
    total = sum(map(len, expected))
    there = copy.deepcopy(plain).to(device)
    rows: list[dict[str, Any]] = []
    for form, precision in cases:
        model = formed(there, form, precision)
        images = images.to(device)
        with autocast_of(precision, device):
            for _ in range(3 if form == "compiled" else 1):  # a CUDA graph is replayed from the third time on
                maps = maps_of(model, images.to(model.dtype, memory_format=torch.channels_last))
        apart = difference(maps, expected_maps)  # before the memory of a CUDA graph's maps is written over
        found = detect(model, images, sizes, precision)
        same = sum(matched(one, other) for one, other in zip(found, expected, strict=True))
        exact = precision == "fp32"
        rows.append(
            {
                "check": "inference",
                "model": plain.name,
                "form": form,
                "precision": precision,
                "maps": apart,
                "matched": same,
                "expected": total,
                "within_limit": not exact or (apart <= MAPS and same >= MATCHED * total),
            }
        )
    return rows


def targets_of(model: Detector, size: tuple[int, int], device: torch.device) -> dict[str, Tensor]:
    """Some boxes in an image of this size, and blocks for masks."""
    height, width = size
    corners = torch.rand(_OBJECTS, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([width, height]) * 0.6
    boxes = torch.cat((corners, corners + torch.linspace(0.05, 0.4, _OBJECTS)[:, None] * width), dim=1)
    masks = torch.zeros(_OBJECTS, height, width, dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.long().tolist(), strict=True):
        mask[y1:y2, x1:x2] = True
    targets = {"boxes": boxes, "labels": torch.arange(_OBJECTS) % len(model.class_names), "masks": masks}
    return {name: value.to(device) for name, value in targets.items()}


def step_of(model: Detector, images: Tensor, sizes: list[tuple[int, int]]) -> tuple[dict[str, float], Tensor]:
    """The losses and the gradient of one step, with every anchor and RoI in the place of a sample."""
    criterion = Criterion(model.train(), sample_all=True)
    losses = criterion(images, sizes, [targets_of(model, size, images.device) for size in sizes])
    torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
    gradients = [weight.grad.flatten().cpu() for weight in model.parameters() if weight.grad is not None]
    return {name: value.item() for name, value in losses.items()}, torch.cat(gradients)


def training_row(plain: Detector, device: torch.device, weights: str) -> dict[str, Any]:
    """One step beside the CPU's, in full float32.

    The proposals that a two-stage detector trains on are those of the CPU on both: of candidates whose scores are
    equal to rounding, each device may choose others.

    Args:
        plain: on the CPU.
        device: to compare.
        weights: a key of `GRADIENTS`.
    """
    images, sizes = batch_of(plain.name, 2)
    proposals: list[Any] = []

    def chosen(selection: Any, *arguments: Any) -> Any:
        if not proposals:
            proposals.append(original(selection, *arguments))
        return [Proposals(*(value.to(arguments[0][0].device) for value in one)) for one in proposals[0]]

    original = ProposalSelection.__call__
    with mock.patch.object(ProposalSelection, "__call__", chosen), precision_of("fp32"):
        expected, gradient = step_of(copy.deepcopy(plain), images, sizes)
        losses, found = step_of(copy.deepcopy(plain).to(device), images.to(device), sizes)
    apart = max(abs(losses[name] - value) / max(abs(value), 1e-6) for name, value in expected.items())
    turned = float((found - gradient).norm() / gradient.norm())
    return {
        "check": "training step",
        "model": plain.name,
        "weights": weights,
        "losses": apart,
        "gradients": turned,
        "within_limit": apart <= LOSSES and turned <= GRADIENTS[weights],
    }


def resume_row(name: str, device: torch.device, *, bf16: bool) -> dict[str, Any]:
    """Six steps at once, the same again, and the same broken off after the fourth and taken up from the second."""
    dataset = ShapesDataset("train", 24, masks=True)
    settings = TrainSettings(
        recipe=recipe_named("scratch", epochs=1), batch_size=4, amp="bf16" if bf16 else None, average=True
    )

    def run(folder: Path, losses: int | None = None) -> dict[str, Tensor]:
        torch.manual_seed(0)
        model = fpg_zoo.create_model(name, class_names=dataset.class_names, device=device)
        seen = 0

        def stop(*_: object, **__: object) -> None:
            nonlocal seen
            seen += 1
            if seen == losses:
                raise KeyboardInterrupt

        broken = mock.patch("fpg_zoo.training.trainer._StepAverages.check", stop)
        with broken if losses else contextlib.nullcontext(), contextlib.suppress(KeyboardInterrupt):
            train(model, dataset, folder, settings, processes=Processes(), save_every=2, resume=True)
        return {key: value.float().cpu() for key, value in model.state_dict().items()}

    with tempfile.TemporaryDirectory() as place:
        once, again = run(Path(place, "once")), run(Path(place, "again"))
        run(Path(place, "broken"), losses=4)
        state = newest_state(Path(place, "broken"))
        assert state is not None
        resumed = run(Path(place, "broken"))

    def apart(other: dict[str, Tensor]) -> float:
        return max(float((other[key] - value).abs().max()) for key, value in once.items())

    return {
        "check": "resume",
        "model": name,
        "precision": "bf16" if bf16 else "fp32",
        "again": apart(again),
        "resumed": apart(resumed),
        "within_limit": apart(resumed) <= 2 * apart(again),
    }
