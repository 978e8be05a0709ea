"""Tensor names as modules have them, without what wrappers and averagers of weights add to a state dict."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import TypeVar

_Value = TypeVar("_Value")

# Put before every name by DataParallel, torch.compile and Lightning.
_WRAPPERS = ("module.", "_orig_mod.", "model.")
_COMPILED_PART = re.compile(r"(?<=\.)_orig_mod\.")  # where a part of a model was compiled
# Counted beside the weights by the averagers of mmengine and torch, which both wrap the module.
_COUNTERS = ("steps", "n_averaged")


def with_plain_names(state_dict: Mapping[str, _Value]) -> dict[str, _Value]:
    """A state dict under the module's own names, and without the raw weights that an EMA hook stores beside averages.

    Args:
        state_dict: anything by tensor name.

    Returns:
        The same values, less those that are no weights of the module.
    """
    return _without_raw_weights(_unwrapped(_without_counters(state_dict)))


def _without_counters(state_dict: Mapping[str, _Value]) -> dict[str, _Value]:
    weights = {name: value for name, value in state_dict.items() if name not in _COUNTERS}
    return weights if _all_begin(weights, "module.") else dict(state_dict)


def _unwrapped(state_dict: dict[str, _Value]) -> dict[str, _Value]:
    """Without what wrappers put before each name, or a compiled part before those of its own."""
    while prefix := next((prefix for prefix in _WRAPPERS if _all_begin(state_dict, prefix)), ""):
        state_dict = {name.removeprefix(prefix): value for name, value in state_dict.items()}
    plain = {_COMPILED_PART.sub("", name): value for name, value in state_dict.items()}
    return plain if len(plain) == len(state_dict) else state_dict


def _all_begin(names: Collection[str], prefix: str) -> bool:
    return bool(names) and all(name.startswith(prefix) and name != prefix for name in names)


def _without_raw_weights(state_dict: dict[str, _Value]) -> dict[str, _Value]:
    """Without the buffers of mmcv's EMA hook.

    It keeps an average of each parameter, named `ema_` and the parameter's name with underscores for dots. At an
    epoch's end it swaps their values before it writes a checkpoint: the plain names then hold the averages.
    """
    buffers = {"ema_" + name.replace(".", "_") for name in state_dict}
    return {name: value for name, value in state_dict.items() if name not in buffers}
