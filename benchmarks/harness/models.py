"""What is measured: models with real weights where they can be had, random ones that work as hard where not, and the
drawn images that they are given."""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor, nn

import fpg_zoo
from fpg_zoo.config import DetectorConfig
from fpg_zoo.data.shapes import ShapesDataset
from fpg_zoo.errors import DownloadError
from fpg_zoo.modeling.detectors import Detector, RetinaNet, TwoStageDetector
from fpg_zoo.modeling.preprocess import preprocess
from fpg_zoo.models.factory import published
from fpg_zoo.models.loading import fetch
from fpg_zoo.models.names import HUB, LOCAL
from fpg_zoo.weights.manifest import load_manifest

SEED = 0
RANDOM, SAVED = "random", "saved"
JPEG_QUALITY = 95
# Pairs of RoI and class that pass the threshold of scores, over a batch's images each. Trained detectors have some
# hundreds of them, of which 100 are detected; an untrained one has none, and nothing to select or to paste.
_PASSING = {"two-stage": 400, "dense": 1000}
_SPREAD = 2.0  # standard deviation of class logits

PLAIN = "plain"
FORMS: dict[str, Callable[[Detector], Detector]] = {
    PLAIN: lambda model: model,
    "optimized": lambda model: fpg_zoo.optimize(model),
    "optimized_bf16": lambda model: fpg_zoo.optimize(model, dtype=torch.bfloat16),
}


def is_own(name: str) -> bool:
    """Whether a name is none of the catalog's, but `local-dir:`, `hf-hub:` or a config file."""
    return name.startswith((LOCAL, HUB)) or is_config_file(name)


def is_config_file(name: str) -> bool:
    """Whether a name is that of a TOML or JSON file."""
    return Path(name).suffix.lower() in (".toml", ".json")


def config_of(name: str) -> DetectorConfig:
    """The config of what `named` gives."""
    info = fpg_zoo.model_info(config=name) if is_config_file(name) else fpg_zoo.model_info(name)
    return info.config


def side_of(name: str) -> int:
    """The side in pixels of the square input that a model is measured on: 640, or less for the nano ones."""
    return config_of(name).preprocess.longest_side


def scenes_of(side: int, count: int, *, split: Literal["train", "val"] = "val") -> list[Tensor]:
    """Drawn scenes of `side` x `side` pixels, (3, side, side) uint8; held-out ones by default."""
    scenes = ShapesDataset(split, count, size=(side, side))
    return [scenes[index].image for index in range(count)]


def batch_of(name: str, count: int, *, device: torch.device | str = "cpu") -> tuple[Tensor, list[tuple[int, int]]]:
    """The input of `Detector.detect` for that many scenes, which need no padding; (N, 3, side, side) float32."""
    images, sizes = preprocess(scenes_of(side_of(name), count), config_of(name).preprocess)
    return images.to(device), sizes


def draw_files(folder: Path, side: int, count: int) -> list[Path]:
    """Write held-out scenes as JPEG files, `side` wide and three quarters of it high."""
    scenes = ShapesDataset("val", count, size=(side * 3 // 4, side))
    files = [folder / f"{index + 1:06d}.jpg" for index in range(count)]
    for index, file in enumerate(files):
        Image.fromarray(scenes[index].image.permute(1, 2, 0).numpy()).save(file, quality=JPEG_QUALITY)
    return files


def described(images: Tensor) -> dict[str, Any]:
    """What a record says of a batch."""
    return {
        "what": f"scenes 0 to {len(images) - 1} of fpg_zoo.data.shapes val, drawn at this size",
        "shape": list(images.shape),
        "dtype": str(images.dtype).removeprefix("torch."),
        "memory_format": "channels first",
        "seed": SEED,
    }


def described_file(file: Path) -> dict[str, Any]:
    """What a record says of an image file."""
    content = file.read_bytes()
    with Image.open(file) as image:
        size = [image.height, image.width]
    return {
        "what": "scene 0 of fpg_zoo.data.shapes val, drawn at this size",
        "format": f"JPEG, quality {JPEG_QUALITY}",
        "size": size,
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }


def unavailable(name: str) -> str | None:
    """Why a model's published checkpoint cannot be had; None if it can, and is here from now on.

    Raises:
        WeightsError: it can be had and not be trusted, or does not fit.
    """
    if not load_manifest().of(architecture_of(name)):
        return "none was published"
    entry = published(name)
    try:
        fetch(entry, fpg_zoo.model_info(name).config)
    except DownloadError as error:
        return str(error)
    return None


def whose(name: str) -> str:
    """Which weights a model is measured with: its tag, `SAVED`, or `RANDOM` where there are none to be had."""
    if is_own(name):
        return RANDOM if is_config_file(name) else SAVED
    return RANDOM if unavailable(name) else published(name).tag


def model_with(name: str, weights: str) -> Detector:
    """A model with its published weights, or at random where `weights` is `RANDOM`.

    Args:
        name: an architecture, or one with a tag; or as of `is_own`.
        weights: as `whose` gives them.
    """
    if weights == RANDOM:
        return at_random(name if is_own(name) else architecture_of(name))
    if weights == SAVED:
        return fpg_zoo.create_model(name)
    return fpg_zoo.create_model(published(name).name)


def architecture_of(name: str) -> str:
    """The architecture of a name with or without a tag."""
    return name.partition(".")[0]


def at_random(name: str) -> Detector:
    """A model of seeded random weights that has as much to select, and to paste, as a trained one.

    Freshly initialized, maps grow from block to block and no score passes the threshold. So the BatchNorms are given
    the statistics that they see in a drawn scene, and the class layer is scaled and shifted so that as many scores pass
    as `_PASSING` says.
    """
    torch.manual_seed(SEED)
    model = fpg_zoo.create_model(config=name) if is_config_file(name) else fpg_zoo.create_model(name)
    images, sizes = batch_of(name, 1)
    with torch.no_grad(), norms_following(model):
        if isinstance(model, RetinaNet):
            threshold = model.config.head.score_threshold
            layer = model.head.classes
            assert isinstance(layer, nn.Conv2d)
            spread_dense(layer, lambda: model(images, sizes), threshold=threshold)
        else:
            assert isinstance(model, TwoStageDetector)
            head = model.box_head
            spread_rois(
                head.classes,
                lambda: model(images, sizes),
                background=head.classes.out_features - 1,
                threshold=model.config.box.score_threshold,
            )
    return model.eval()


@contextlib.contextmanager
def norms_following(model: nn.Module) -> Iterator[None]:
    """While this is open, BatchNorms take the statistics of what they see, and keep the last ones."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
        norm.train()
    yield
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


def spread_rois(layer: nn.Linear, run: Callable[[], object], *, background: int, threshold: float) -> None:
    """Scale and shift the class layer of RoIs so that as many scores pass the threshold as `_PASSING` says.

    Args:
        layer: gives the logits; in place.
        run: one pass of the model.
        background: the place of its logit.
        threshold: of scores.
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
        low, high = ((low + high) / 2, high) if passing > _PASSING["two-stage"] else (low, (low + high) / 2)


def spread_dense(layer: nn.Conv2d, run: Callable[[], object], *, threshold: float) -> None:
    """As `spread_rois`, of a dense head's class layer, which looks at one level after the other."""
    assert layer.bias is not None
    levels = _inputs_of(layer, run)

    def logits() -> Tensor:
        return torch.cat([layer(level).flatten() for level in levels])

    layer.weight.mul_(_SPREAD / logits().std())
    least = logits().topk(_PASSING["dense"]).values[-1]
    layer.bias.add_(math.log(threshold / (1 - threshold)) - least)
