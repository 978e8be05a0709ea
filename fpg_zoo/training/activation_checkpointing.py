"""Activation checkpointing of the grid (Chen et al., arXiv 1604.06174): less memory for a second forward pass of it."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from fpg_zoo.errors import ConfigError
from fpg_zoo.modeling.detectors import Detector


def apply_activation_checkpointing(model: Detector) -> None:
    """Have every pathway of the model's grid keep its inputs alone, and compute itself again for the gradients.

    The losses, gradients and statistics are those without it, bit for bit.

    Raises:
        ConfigError: the model's neck is no grid.
    """
    segments = model.neck.segments()
    if not segments:
        raise ConfigError(
            f"{model.name} has a {type(model.neck).__name__} neck: activation checkpointing is for FPG's grid"
        )
    for pathway in segments:
        pathway.forward = functools.partial(
            checkpoint,
            pathway.forward,
            use_reentrant=False,
            preserve_rng_state=False,  # nothing in it is random
            context_fn=functools.partial(_contexts, pathway),
        )


def _contexts(
    part: nn.Module,
) -> tuple[contextlib.AbstractContextManager[None], contextlib.AbstractContextManager[None]]:
    return contextlib.nullcontext(), _statistics_kept(part)


@contextlib.contextmanager
def _statistics_kept(part: nn.Module) -> Iterator[None]:
    """Without BatchNorms in train mode moving their running statistics, which the first pass has done."""
    norms = [module for module in part.modules() if isinstance(module, _BatchNorm) and module.training]
    kept = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, momentum, tracked in kept:
            norm.momentum, norm.num_batches_tracked = momentum, tracked
