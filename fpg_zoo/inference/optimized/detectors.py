"""From a detector to its inference form, which detects the same in less time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from fpg_zoo.inference.compiled import compile_network
from fpg_zoo.inference.optimized.backbone import FusedResNet
from fpg_zoo.inference.optimized.convolutions import copy_with_folded_norms, release_sources
from fpg_zoo.inference.optimized.heads import FusedBoxHead, FusedMaskHead, FusedRetinaHead, FusedRPN
from fpg_zoo.inference.optimized.necks import FusedFPN, fuse_fpg, fuse_nasfpn
from fpg_zoo.inference.optimized.winograd import WinogradConvolution, has_full_precision_matmul, use_winograd
from fpg_zoo.modeling.backbones.resnet import ResNet
from fpg_zoo.modeling.detectors import Detector, RetinaNet, TwoStageDetector
from fpg_zoo.modeling.heads.retina_head import RetinaHead
from fpg_zoo.modeling.heads.roi_heads import BoxHead, MaskHead
from fpg_zoo.modeling.heads.rpn import RPN
from fpg_zoo.modeling.necks.fpg import FPG
from fpg_zoo.modeling.necks.fpn import FPN
from fpg_zoo.modeling.necks.nasfpn import NASFPN

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

# Backbones, necks and heads by class, exactly that: a subclass may compute something else. What builds the fused form
# takes the plain part.
FUSED_PARTS: dict[type[nn.Module], Callable[[Any], nn.Module]] = {
    ResNet: FusedResNet,
    FPG: fuse_fpg,
    FPN: FusedFPN,
    NASFPN: fuse_nasfpn,
    RPN: FusedRPN,
    BoxHead: FusedBoxHead,
    MaskHead: FusedMaskHead,
    RetinaHead: FusedRetinaHead,
}


def fuse(part: nn.Module) -> nn.Module:
    """The fused form of a backbone, neck or head; without one, a copy with the BatchNorms of its `ConvNorm`s folded."""
    return FUSED_PARTS.get(type(part), copy_with_folded_norms)(part)


class InferenceForm(Detector):
    """A detector of fused parts under the plain parts' names, which refuses what such parts cannot do."""

    def __init__(self, plain: Detector) -> None:
        nn.Module.__init__(self)
        self.config, self.name = plain.config, plain.name
        for name, part in plain.named_children():
            setattr(self, name, fuse(part))

    def train(self, mode: bool = True) -> InferenceForm:
        if mode:
            self._refuse("trained")
        return super().train(False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> InferenceForm:
        winograd = next((part for part in self.modules() if isinstance(part, WinogradConvolution)), None)
        if winograd is not None:
            before, after = winograd.shift, fn(winograd.shift)
            if (before.dtype, before.device) != (after.dtype, after.device):
                self._refuse(f"converted to {after.dtype} on {after.device}")
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def save_pretrained(self, target: str | Path) -> NoReturn:
        self._refuse(f"saved to {target}")

    def reset_classes(self) -> NoReturn:
        self._refuse("given other classes")

    def _refuse(self, what: str) -> NoReturn:
        raise ValueError(f"this {self.name} is an optimized form, which cannot be {what}: use the one it was made of")


class OptimizedTwoStage(InferenceForm, TwoStageDetector):
    """A two-stage detector's inference form."""

    def __init__(self, plain: TwoStageDetector) -> None:
        super().__init__(plain)
        self.select_proposals, self.select_boxes = plain.select_proposals, plain.select_boxes
        if plain.mask_head is None:
            self.mask_head = None

    def run_dense(self, images: Tensor) -> tuple[Sequence[Tensor], ...]:
        return TwoStageDetector.run_dense(self, images.contiguous(memory_format=torch.channels_last))


class OptimizedRetinaNet(InferenceForm, RetinaNet):
    """RetinaNet's inference form."""

    def __init__(self, plain: RetinaNet) -> None:
        super().__init__(plain)
        self.select = plain.select

    def run_dense(self, images: Tensor) -> tuple[Sequence[Tensor], ...]:
        return RetinaNet.run_dense(self, images.contiguous(memory_format=torch.channels_last))


# Detectors by class, exactly that, as of `FUSED_PARTS`.
OPTIMIZED_DETECTORS: dict[type[Detector], Callable[[Any], Detector]] = {
    TwoStageDetector: OptimizedTwoStage,
    RetinaNet: OptimizedRetinaNet,
}


@torch.no_grad()
def optimize(model: Detector, *, dtype: torch.dtype | None = None, compile: bool = False) -> Detector:
    """A detector's inference form, which detects what `model` does, to rounding, in less time.

    BatchNorms are folded into convolutions; sums and ReLUs are computed in the convolutions' pass; maps are in
    channels-last order. In float32 on the CPU, 3x3 convolutions have a quarter of the multiplications (Winograd). A
    part without a fused form, such as a neck of your own, is copied as it is.

    The form can be neither trained nor saved, nor, with Winograd convolutions, moved or converted. It takes up to twice
    the model's memory. Lower precision set later, by autocast or `torch.set_float32_matmul_precision`, would cost it
    more digits than the model: `dtype` is for that.

    Args:
        model: in eval mode; it is left as it is.
        dtype: what to compute the network in; boxes, scores and the choice among them stay in float32. None for the
            model's own.
        compile: also compile the form, as of `compile_network`, which takes a minute at each new input shape. There
            are no Winograd convolutions then.

    Returns:
        A new detector on the model's device, with its own weights, whose `detect`, `config` and `name` are the model's.

    Raises:
        ValueError: the model is in train mode or already optimized, or `dtype` is none of float32, bfloat16, float16.
        TypeError: the detector's class has no inference form.
    """
    if isinstance(model, InferenceForm):
        raise ValueError(f"{model.name} is already optimized: give the model it was made of")
    if model.training:
        raise ValueError("the model is in train mode: call model.eval() first")
    if dtype is not None and dtype not in _DTYPES:
        raise ValueError(f"dtype={dtype}: the network computes in one of {', '.join(map(str, _DTYPES))}")
    if type(model) not in OPTIMIZED_DETECTORS:
        raise TypeError(f"{type(model).__name__} has no inference form")
    form = OPTIMIZED_DETECTORS[type(model)](model)
    # A compiler would take apart the batches of tiles that Winograd convolutions work in.
    if not compile and dtype in (None, torch.float32) and has_full_precision_matmul(model.device, model.dtype):
        use_winograd(form)
    release_sources(form)
    form.eval().requires_grad_(False)
    if dtype is not None:
        form.to(dtype)
    if form.device.type != "cpu":  # a part without a fused form, too, whose weights would be turned at every call
        form.to(memory_format=torch.channels_last)
    if compile:
        compile_network(form)
    return form
