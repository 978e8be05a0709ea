"""Models of the timm library as backbones: any that gives feature maps of doubling strides (`features_only`)."""

from __future__ import annotations

import contextlib
import difflib
import importlib.metadata
import importlib.util
import itertools
import logging
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fpg_zoo.checkpoints.fit import some
from fpg_zoo.config import PreprocessConfig, TimmConfig
from fpg_zoo.config.backbones import RESNETS, TIMM_PREFIX, check_timm_name
from fpg_zoo.config.families import NamedBackbone
from fpg_zoo.errors import CheckpointError, ConfigError, DownloadError
from fpg_zoo.modeling.parts import Backbone

_STRIDES = (4, 8, 16, 32)
_PROBE = (256, 384)  # (height, width) in pixels of an image of no model's own size


def require_timm() -> None:
    """Refuse to go on where timm is not installed.

    Raises:
        ConfigError: it is not.
    """
    if importlib.util.find_spec("timm") is None:
        raise ConfigError("the backbone is one of timm, which is not installed: pip install 'fpg-zoo[timm]'")


def timm_backbone(name: str) -> NamedBackbone:
    """The backbone that timm has under a name, with those of its stages whose strides are 4, 8, 16 and 32.

    Args:
        name: timm's, with or without a tag.

    Raises:
        ConfigError: timm is not installed or has no such model, or the model gives no feature maps of doubling strides
            for images of any size.
    """
    require_timm()
    check_timm_name(name)
    import timm

    with torch.device("meta"):
        try:
            model = _features(name)
        except Exception as error:  # timm raises whatever it likes
            close = difflib.get_close_matches(name.partition(".")[0], timm.list_models(), n=3)
            hint = f"did you mean {', '.join(close)}?" if close else "timm.list_models() has the names"
            raise ConfigError(f"{TIMM_PREFIX}{name} gives no feature maps ({_first_line(error)}); {hint}") from None
        info = model.feature_info
        reductions = info.reduction()
        places = [max(at for at, one in enumerate(reductions) if one == s) for s in _STRIDES if s in reductions]
        if len(places) < 2:
            raise ConfigError(
                f"{TIMM_PREFIX}{name} has feature maps of strides {reductions}: a pyramid takes at least two "
                "of 4, 8, 16 and 32; choose a model with stages"
            )
        indices = tuple(info.out_indices[at] for at in places)
        channels = tuple(info.channels()[at] for at in places)
        strides = tuple(reductions[at] for at in places)
        last = _probe(model, places, name, channels, strides)
    config = TimmConfig(name=name, indices=indices, channels=channels, strides=strides, channels_last=last)
    base = name.partition(".")[0]
    data = timm.get_pretrained_cfg(name, allow_unregistered=True)
    usual = PreprocessConfig()
    return NamedBackbone(
        config=config,
        short_name=f"timm_{base}" if base in RESNETS else base,
        mean=_scaled(data.mean) if data else usual.mean,
        std=_scaled(data.std) if data else usual.std,
    )


def _scaled(values: Any) -> tuple[float, float, float]:
    red, green, blue = (round(255 * float(value), 6) for value in values)
    return red, green, blue


def _probe(model: Any, places: list[int], name: str, channels: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether the maps come with their channels last; refuses a model that does not take images of any size."""
    height, width = _PROBE
    try:
        maps = model.eval()(torch.empty(1, 3, height, width, device="meta"))
    except Exception as error:
        raise ConfigError(
            f"{TIMM_PREFIX}{name} takes no image of {width}x{height} pixels ({_first_line(error)}): a detector needs a "
            "backbone for images of any size; choose another model"
        ) from None
    sizes = [(1, height // stride, width // stride) for stride in strides]
    firsts = [(1, channel, *size[1:]) for channel, size in zip(channels, sizes, strict=True)]
    lasts = [(*size, channel) for channel, size in zip(channels, sizes, strict=True)]
    shapes = [tuple(maps[at].shape) for at in places]
    if shapes not in (firsts, lasts):
        raise ConfigError(
            f"{TIMM_PREFIX}{name} gives maps of {shapes}, and says it would of {firsts}: choose another model"
        )
    return shapes == lasts


def _features(name: str, indices: tuple[int, ...] | None = None, **more: Any) -> Any:
    import timm

    if indices is not None:
        more["out_indices"] = indices
    try:  # models with windows take other sizes only with this
        return timm.create_model(name, features_only=True, strict_img_size=False, **more)
    except TypeError:
        return timm.create_model(name, features_only=True, **more)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0]


@contextlib.contextmanager
def _quiet(logger_name: str) -> Iterator[None]:
    logger = logging.getLogger(logger_name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def fetch_timm_weights(config: TimmConfig) -> Path:
    """The safetensors file that timm's catalog names for a backbone, from the Hugging Face hub or its cache.

    Raises:
        DownloadError: there is none, or it cannot be had.
    """
    require_timm()
    import timm
    from huggingface_hub import hf_hub_download

    remedy = "backbone_checkpoint= takes a file of your own"
    data = timm.get_pretrained_cfg(config.name, allow_unregistered=True)
    if data is None or not data.hf_hub_id:
        raise DownloadError(f"{TIMM_PREFIX}{config.name}: timm names no weights on the hub for it; {remedy}")
    repo, _, revision = data.hf_hub_id.partition("@")
    try:
        return Path(hf_hub_download(repo, "model.safetensors", revision=revision or None))
    except Exception as error:  # of the hub's client or the network
        raise DownloadError(
            f"{TIMM_PREFIX}{config.name}: {repo} on the Hugging Face hub cannot be had ({_first_line(error)}); "
            f"HF_ENDPOINT names a mirror, and {remedy}"
        ) from None


def from_timm(config: TimmConfig, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of timm's whole model by the names of `TimmBackbone`; timm knows the names of its models' authors, too.

    Raises:
        CheckpointError: they are of another model.
    """

    def loaded(state_dict: Mapping[str, Tensor]) -> Any:
        # What timm initializes first moves no generator of the caller's; that a backbone has no classifier is no news.
        with torch.random.fork_rng(devices=[]), _quiet("timm"):
            return _features(
                config.name,
                config.indices,
                pretrained=True,
                pretrained_cfg_overlay={"state_dict": dict(state_dict)},
            )

    try:
        body = loaded(tensors)
        # timm passes over what a file lacks. What is a number after loading NaN alone did not come from the file.
        probe = loaded(
            {name: torch.full_like(x, math.nan) if x.is_floating_point() else x for name, x in tensors.items()}
        )
    except Exception as error:  # timm raises whatever it likes
        raise CheckpointError(
            f"not the weights of timm's {config.name} ({type(error).__name__}: {_first_line(error)})"
        ) from None
    missing = [name for name, parameter in probe.named_parameters() if not parameter.isnan().any()]
    if missing:
        raise CheckpointError(f"not the weights of timm's {config.name}, as it lacks {some(missing)}")
    return {f"body.{name}": tensor for name, tensor in body.state_dict().items()}


class TimmBackbone(Backbone):
    """A timm model's feature maps.

    `forward`: (N, 3, H, W) to a map for each of `TimmConfig.indices`, (N, channels[i], H / strides[i], W / strides[i]).

    Raises:
        ConfigError: timm is not installed, or gives other maps than the config has.
    """

    def __init__(self, config: TimmConfig) -> None:
        super().__init__()
        require_timm()
        self.config, self.channels = config, config.channels
        self.body = _features(config.name, config.indices)
        channels = tuple(self.body.feature_info.channels())
        if channels != config.channels:
            raise ConfigError(
                f"{TIMM_PREFIX}{config.name} has maps of {channels} channels in the installed timm, "
                f"{importlib.metadata.version('timm')}, and was saved with {config.channels}: "
                "install the version of timm that it was saved with"
            )

    def stages(self) -> list[list[nn.Module]]:
        ends = [self._module_of(name) for name in self.body.feature_info.module_name()]
        units = _units(self.body, ends)
        after = [units.index(end) + 1 for end in ends]
        return [units[first:last] for first, last in itertools.pairwise((0, after[0] - 1, *after))]

    def _module_of(self, name: str) -> nn.Module:
        modules = dict(self.body.named_modules())
        # timm takes a model's modules out and names them anew, or puts the model into another.
        places = (name.replace(".", "_"), name, f"model.{name}")
        found: nn.Module | None = next((modules[place] for place in places if place in modules), None)
        if found is None:
            raise ConfigError(
                f"{TIMM_PREFIX}{self.config.name} does not say where its stages end, so none can be frozen: "
                "train it with a recipe that freezes none, as scratch is"
            )
        return found

    def forward(self, images: Tensor) -> list[Tensor]:
        maps = self.body(images)
        return [x.permute(0, 3, 1, 2) for x in maps] if self.config.channels_last else list(maps)


def _units(module: nn.Module, ends: list[nn.Module]) -> list[nn.Module]:
    """The modules within, in order, taken apart as far as the ends of stages need it."""
    units: list[nn.Module] = []
    for child in module.children():
        inside = set(map(id, child.modules()))
        if any(id(end) in inside and end is not child for end in ends):
            units += _units(child, ends)
        else:
            units.append(child)
    return units
