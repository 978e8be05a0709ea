"""Random weights that give a detector as much to select, and to paste, as trained ones do.

Freshly initialized, maps grow from block to block and no score passes the threshold, so that half of a detector has
nothing to do. So the BatchNorms are given the statistics that they see in an image, and the class layer is scaled and
shifted so that as many scores pass as `_PASSING` says.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from fpg_zoo.modeling.detectors import Detector, RetinaNet, Sizes, TwoStageDetector

# Pairs of RoI and class that pass the threshold of scores in an image. Trained detectors have some hundreds of them, of
# which 100 are detected.
_PASSING = {"two-stage": 400, "dense": 1000}
_SPREAD = 2.0  # standard deviation of class logits


def give_work(model: Detector, images: Tensor, sizes: Sizes) -> None:
    """Change a model with initial weights so that it detects as many objects in these images as a trained one may.

    Args:
        model: in place; in eval mode afterwards. A RetinaNet's head of one's own class keeps its initial scores.
        images, sizes: as of `Detector.detect`; two or more where a map of the pyramid is a single pixel, which has no
            statistics of its own.
    """
    with torch.no_grad(), norms_following(model):
        if isinstance(model, TwoStageDetector):
            head = model.box_head
            spread_rois(
                head.classes,
                lambda: model(images, sizes),
                background=head.classes.out_features - 1,
                threshold=model.config.box.score_threshold,
                images=len(images),
            )
        elif isinstance(model, RetinaNet):
            layer = getattr(model.head, "classes", None)
            if isinstance(layer, nn.Conv2d):
                spread_dense(
                    layer,
                    lambda: model(images, sizes),
                    threshold=model.config.head.score_threshold,
                    images=len(images),
                )
            else:
                model(images, sizes)
    model.eval()


@contextlib.contextmanager
def norms_following(model: nn.Module) -> Iterator[None]:
    """While this is open, BatchNorms take the statistics of what they see, and keep the last ones."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
        norm.train()
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.eval()


def _inputs_of(layer: nn.Module, run: Callable[[], object]) -> list[Tensor]:
    """What a layer is given while `run` runs."""
    captured: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _, inputs: captured.append(inputs[0]))
    run()
    hook.remove()
    return captured


def spread_rois(
    layer: nn.Linear, run: Callable[[], object], *, background: int, threshold: float, images: int = 1
) -> None:
    """Scale and shift the class layer of RoIs so that as many scores pass the threshold as `_PASSING` says.

    Args:
        layer: gives the logits; in place.
        run: one pass of the model.
        background: the place of its logit.
        threshold: of scores.
        images: of a pass.
    """
    (features,) = _inputs_of(layer, run)
    classes = [place for place in range(layer.out_features) if place != background]
    layer.weight.mul_(_SPREAD / layer(features)[:, classes].std())
    layer.weight[background] = 0  # background's logit is the same everywhere
    layer.bias.zero_()
    layer.bias[classes] = -layer(features)[:, classes].mean(dim=0)
    low, high = 0.0, 50.0  # the more for background, the fewer pass
    for _ in range(40):
        layer.bias[background] = (low + high) / 2
        passing = int((layer(features).softmax(dim=-1)[:, classes] > threshold).sum())
        low, high = ((low + high) / 2, high) if passing > images * _PASSING["two-stage"] else (low, (low + high) / 2)


def spread_dense(layer: nn.Conv2d, run: Callable[[], object], *, threshold: float, images: int = 1) -> None:
    """As `spread_rois`, of a dense head's class layer, which looks at one level after the other."""
    assert layer.bias is not None
    levels = _inputs_of(layer, run)

    def logits() -> Tensor:
        return torch.cat([layer(level).flatten() for level in levels])

    values = logits()
    layer.weight.mul_(_SPREAD / values.std())
    if 0 < threshold < 1:  # else all of them pass, or none
        least = logits().topk(min(images * _PASSING["dense"], values.numel())).values[-1]
        layer.bias.add_(math.log(threshold / (1 - threshold)) - least)
