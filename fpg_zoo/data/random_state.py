"""The random numbers of a process, made to depend on a generator for a while."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch


@contextlib.contextmanager
def seeded(generator: np.random.Generator) -> Iterator[None]:
    """Seed what torch (on the CPU), numpy and Python draw from by themselves; afterwards all are as they were before.

    Args:
        generator: what the seed comes from; one number is taken.
    """
    seed = int(generator.integers(2**32))
    numpy_before, python_before = np.random.get_state(), random.getstate()
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which seeds accelerators, too; nothing would bring their states back.
        torch.default_generator.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(numpy_before)
            random.setstate(python_before)
