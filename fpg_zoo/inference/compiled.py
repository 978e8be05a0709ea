"""A detector's network through torch.compile; on a GPU as CUDA graphs, for inputs of few shapes."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fpg_zoo.config import PreprocessConfig
from fpg_zoo.inference.views import TTA_SCALES, scaled
from fpg_zoo.modeling.detectors import Detector
from fpg_zoo.modeling.preprocess import padded_size, resized_size

_ASPECTS = ((9, 16), (3, 4), (1, 1), (4, 3), (16, 9))  # height to width, of photos and videos
_MOST_SHAPES = 64  # that are compiled before torch goes on without; its own limit is 8

Dense = tuple[Sequence[Tensor], ...]


def compile_network(model: Detector) -> None:
    """Compile backbone, neck and dense head of a model in place, at the first input of each shape.

    On CUDA each input shape becomes a CUDA graph, which is launched at once where it was thousands of kernels. So there
    are few shapes, as of `FewShapes`. Elsewhere torch makes the second shape one for all sizes.

    Args:
        model: in eval mode, where it is to stay. One that is compiled already is left as it is.
    """
    if "run_dense" in vars(model):
        return
    run: Callable[[Tensor], Dense]
    if model.device.type == "cuda":
        allow_shapes(_MOST_SHAPES)
        run = FewShapes(torch.compile(model.run_dense, mode="reduce-overhead", dynamic=False), model.config.preprocess)
    else:
        run = torch.compile(model.run_dense)
    model.run_dense = run  # type: ignore[assignment, method-assign]


def allow_shapes(number: int) -> None:
    """Let torch compile a function for so many shapes, where it would allow fewer."""
    config: Any = torch._dynamo.config
    name = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"  # before torch 2.7
    setattr(config, name, max(getattr(config, name), number))


class FewShapes:
    """A network behind padding, so that it sees few shapes.

    Images are padded to the smallest of `shapes_of` that holds them, and a batch by blank images to the next power of
    two. An image of a usual aspect ratio has no padding but its own. What is detected in others changes a little, as it
    does by any padding: it is zero in the input, but not in the maps, where biases are added.

    Args:
        run: the network, as `Detector.run_dense`.
        config: the preprocessing of its images.
    """

    def __init__(self, run: Callable[[Tensor], Dense], config: PreprocessConfig) -> None:
        self.run, self.config = run, config

    def __call__(self, images: Tensor) -> Dense:
        number, _, height, width = images.shape
        high, wide = shape_for((height, width), self.config)
        blank = (1 << (number - 1).bit_length()) - number
        outputs = self.run(F.pad(images, (0, wide - width, 0, high - height, 0, 0, 0, blank)))
        return tuple([level[:number] for level in levels] for levels in outputs)


def shape_for(size: tuple[int, int], config: PreprocessConfig) -> tuple[int, int]:
    """The smallest of `shapes_of` that holds (height, width); of a larger input, of the next scale that has one."""
    for power in itertools.count():
        for shape in shapes_of(scaled(config, TTA_SCALES[-1] ** power)):
            if shape[0] >= size[0] and shape[1] >= size[1]:
                return shape
    raise AssertionError("there is a scale for every size")


@functools.cache
def shapes_of(config: PreprocessConfig) -> tuple[tuple[int, int], ...]:
    """The padded (height, width) of images of the usual aspect ratios, smallest first.

    Those are 16:9, 4:3 and square, upright and across; and for what lies between them, one upright and one across that
    hold all others.
    """
    sizes = [resized_size(1000 * height, 1000 * width, config) for height, width in _ASPECTS]
    upright = [size for size in sizes if size[0] >= size[1]]
    across = [size for size in sizes if size[0] <= size[1]]
    for kind in (upright, across):
        if kind:  # none where all are stretched to one size
            sizes.append((max(size[0] for size in kind), max(size[1] for size in kind)))
    shapes = {padded_size(*size, config.pad_divisor) for size in sizes}
    return tuple(sorted(shapes, key=lambda shape: (shape[0] * shape[1], shape)))
