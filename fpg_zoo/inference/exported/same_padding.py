"""The padding of timm's models that came from TensorFlow, in a form that torch's exporter can follow."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from unittest import mock


def _without_quotients(x: int, kernel_size: int, stride: int, dilation: int) -> int:
    """Rows or columns of padding by which a convolution gives ceil(x / stride) of them."""
    reach = (kernel_size - 1) * dilation + 1
    # True of every map of an image that is padded to the model's divisor: a number, whatever the size of the image.
    if x % stride == 0:
        return max(reach - stride, 0)
    return max(reach - x % stride, 0)


@contextlib.contextmanager
def constant_same_padding() -> Iterator[None]:
    """While this is open, timm computes this padding without a quotient of floating point.

    With images of any size, the exporter carries such quotients on from layer to layer. Each one doubles the work of
    the next, and it never ends.
    """
    padding = sys.modules.get("timm.layers.padding")
    if padding is None:  # no model of timm was made
        yield
        return
    with mock.patch.object(padding, "get_same_padding", _without_quotients):
        yield
