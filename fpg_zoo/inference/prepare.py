"""A model as it was asked for: in which precision, optimized, compiled."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import get_args

import torch

from fpg_zoo.config.validation import check_one_of
from fpg_zoo.errors import ConfigError
from fpg_zoo.inference.compiled import compile_network
from fpg_zoo.inference.exported.detector import ExportedDetector
from fpg_zoo.inference.open_model import AnyDetector
from fpg_zoo.inference.optimized.detectors import optimize as optimized
from fpg_zoo.inference.precisions import Precision
from fpg_zoo.text import printable

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@contextlib.contextmanager
def cudnn_benchmark(enabled: bool) -> Iterator[None]:
    """While it is open and `enabled`, cuDNN times its algorithms for each new shape and takes the fastest.

    On CUDA this pays where few shapes come often. Results may differ in the last digits from run to run.
    """
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = before or enabled
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def prepare(
    model: AnyDetector, *, dtype: Precision | None = None, optimize: bool = False, compile: bool = False
) -> AnyDetector:
    """A detector to predict with.

    Args:
        model: as it was opened; it may be changed.
        dtype: what the network computes in; None for the model's own.
        optimize: take its inference form, as of `fpg_zoo.optimize`.
        compile: compile the network, as of `compile_network`.

    Raises:
        ConfigError: an exported file comes with any of these, the detector's class has no inference form, or `dtype` is
            none of the three.
    """
    if dtype is not None:
        check_one_of(get_args(Precision), dtype=dtype)
    if isinstance(model, ExportedDetector):
        asked = f"dtype {dtype}" if dtype else "optimize" if optimize else "compile" if compile else None
        if asked:
            raise ConfigError(
                f"{printable(model.path)}: {asked} does not apply to an exported file, whose network is as it was "
                "written; export it so, or give the model"
            )
        return model
    kind = None if dtype is None else _DTYPES[dtype]
    if optimize:
        try:
            return optimized(model, dtype=kind, compile=compile)
        except TypeError as error:
            raise ConfigError(f"{printable(error)}: leave out optimize") from None
    model = model.to(kind)
    if compile:
        compile_network(model)
    return model
