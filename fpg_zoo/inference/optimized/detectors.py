"""From a detector to its inference form, which detects the same in less time."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor, nn

from fpg_zoo.inference.optimized.backbone import FusedResNet
from fpg_zoo.inference.optimized.heads import FusedBoxHead, FusedMaskHead, FusedRetinaHead, FusedRPN
from fpg_zoo.inference.optimized.necks import fold_within, fused_neck
from fpg_zoo.inference.optimized.winograd import WinogradConvolution, has_every_digit
from fpg_zoo.modeling.detectors import Detector, RetinaNet, Sizes, TwoStageDetector
from fpg_zoo.structures import Instances

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class _ForInference(Detector):
    """What a detector's inference form no longer can; its parts have the names and calls of those they stand for."""

    def _take(self, plain: Detector, parts: Mapping[str, nn.Module | None], quick: bool) -> None:
        nn.Module.__init__(self)
        self.config, self.name = plain.config, plain.name
        for name, part in {
            "backbone": FusedResNet(plain.backbone, quick=quick),
            "neck": _neck_of(plain, quick),
            **parts,
        }.items():
            setattr(self, name, part)

    def train(self, mode: bool = True) -> _ForInference:
        if mode:
            self._refuse("trained")
        return super().train(False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> _ForInference:
        quick = next((part for part in self.modules() if isinstance(part, WinogradConvolution)), None)
        if quick is not None:
            before, after = quick.shift, fn(quick.shift)
            if (before.dtype, before.device) != (after.dtype, after.device):
                self._refuse(f"made {after.dtype} on {after.device}")
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def save_pretrained(self, target: str | Path) -> NoReturn:
        self._refuse(f"saved to {target}")

    def reset_classes(self) -> NoReturn:
        self._refuse("given other classes")

    def _refuse(self, what: str) -> NoReturn:
        raise ValueError(f"this {self.name} is an optimised form, which cannot be {what}: use the one it was made of")


class OptimizedTwoStage(_ForInference, TwoStageDetector):
    """A two-stage detector's inference form."""

    def __init__(self, plain: TwoStageDetector, *, quick: bool) -> None:
        mask_head = None if plain.mask_head is None else FusedMaskHead(plain.mask_head, quick=quick)
        box_head = FusedBoxHead(plain.box_head)
        self._take(
            plain, {"rpn": FusedRPN(plain.rpn, quick=quick), "box_head": box_head, "mask_head": mask_head}, quick
        )
        self.select_proposals, self.select_boxes = plain.select_proposals, plain.select_boxes

    def forward(self, images: Tensor, sizes: Sizes) -> list[Instances]:
        return TwoStageDetector.forward(self, images.contiguous(memory_format=torch.channels_last), sizes)


class OptimizedRetinaNet(_ForInference, RetinaNet):
    """RetinaNet's inference form."""

    def __init__(self, plain: RetinaNet, *, quick: bool) -> None:
        self._take(plain, {"head": FusedRetinaHead(plain.head, quick=quick)}, quick)
        self.select = plain.select

    def forward(self, images: Tensor, sizes: Sizes) -> list[Instances]:
        return RetinaNet.forward(self, images.contiguous(memory_format=torch.channels_last), sizes)


def _neck_of(plain: Detector, quick: bool) -> nn.Module:
    neck = fused_neck(plain.neck, quick=quick)
    if neck is None:
        neck = copy.deepcopy(plain.neck)
        fold_within(neck, quick=quick)
    return neck


@torch.no_grad()
def optimize(model: Detector, *, dtype: torch.dtype | None = None, compile: bool = False) -> Detector:
    """A detector's inference form: BatchNorms folded into convolutions, sums and ReLUs taken along, maps in
    channels-last order; in float32 on the CPU, 3x3 convolutions with a quarter of the multiplications (Winograd). It
    detects what `model` does, to rounding, and can neither be trained nor saved, nor, with such convolutions, be moved
    or converted. It takes up to twice the model's memory. Autocast and a precision of products lower than when it was
    made (`torch.set_float32_matmul_precision`) would cost it more digits than the model: `dtype` is for that.

    Args:
        model: in eval mode; it is left as it is.
        dtype: what to compute the network in; boxes, scores and the choice among them stay in float32. None for the
            model's own.
        compile: also compile backbone and neck with torch.compile, which takes a minute at each new input size; with
            all of the multiplications.

    Returns:
        A new detector on the model's device, with its own weights, whose `detect`, `config` and `name` are the model's.

    Raises:
        ValueError: the model is in train mode or already optimised, or `dtype` is none of float32, bfloat16, float16.
    """
    if isinstance(model, _ForInference):
        raise ValueError(f"{model.name} is already optimised: give the model it was made of")
    if model.training:
        raise ValueError("the model is in train mode: call model.eval() first")
    if dtype is not None and dtype not in _DTYPES:
        raise ValueError(f"dtype={dtype}: the network computes in one of {', '.join(map(str, _DTYPES))}")
    # A compiler would take the strips apart that these convolutions work in.
    quick = not compile and dtype in (None, torch.float32) and has_every_digit(model.device, model.dtype)
    if isinstance(model, TwoStageDetector):
        made: Detector = OptimizedTwoStage(model, quick=quick)
    elif isinstance(model, RetinaNet):
        made = OptimizedRetinaNet(model, quick=quick)
    else:
        raise TypeError(f"{type(model).__name__} has no inference form")
    made.eval().requires_grad_(False)
    if dtype is not None:
        made.to(dtype)
    if compile:
        made.backbone.compile()
        made.neck.compile()
    return made
