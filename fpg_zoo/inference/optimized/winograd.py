"""3x3 convolutions in float32 with a quarter of the multiplications, after Winograd.

Outputs are computed tile by tile. Along one axis, `m` outputs and the window of inputs that they depend on are taken
for values of polynomials at as many points as there are products; the products of what the window and the filter give
at a point, and sums of them, are the outputs. Along two axes the matrices of one axis are applied to either. The
products at a point, for all tiles and channels, are one product of matrices, where nearly all the time goes.

Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", arXiv 1509.09308; Winograd, "Arithmetic
Complexity of Computations", 1980. Points of either sign that are small keep rounding errors small (Barabasz and
others, arXiv 1803.10986).

Legend: N images, maps (N, C, H, W) in channels-last order; T tiles of m x m outputs, windows of w x w inputs,
p x p points.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fpg_zoo.inference.optimized.convolutions import OUTPUTS_AT_ONCE, Convolution, in_double, scale_and_shift

_LEAST_CHANNELS = 128  # with fewer, moving tiles about takes longer than the products that are saved


class Along(NamedTuple):
    """How outputs come of inputs along one axis; all in double precision.

    Attributes:
        outputs: (m, p), from products to outputs.
        at_once: whether `outputs` goes along both axes at once: more multiplications, in one pass over memory.
        filter: (p, 3), from a filter's taps to its values at the points.
        inputs: (p, w), from a window to its values at the points.
        step: inputs from a window to the next; the first window begins one before the first input.
        tiles: whose intermediate values stay in the cache together.
    """

    outputs: Tensor
    at_once: bool
    filter: Tensor
    inputs: Tensor
    step: int
    tiles: int


def toom_cook(points: Sequence[Fraction], taps: int) -> tuple[Tensor, Tensor, Tensor]:
    """Matrices (A, G, B) with A ((G filter) * (B window)) the filter's outputs on the window.

    Args:
        points: different ones, p - 1 of them; infinity is the last.
        taps: of the filter; there are p - taps + 1 outputs.

    Returns:
        A (outputs, p), G (p, taps) and B (p, p) in double precision.
    """
    number = len(points) + 1
    outputs = number - taps + 1
    others = [[other for other in points if other != point] for point in points]
    scale = [
        math.prod((point - other for other in rest), start=Fraction(1))
        for point, rest in zip(points, others, strict=True)
    ]
    last = [Fraction(0)]
    to_outputs = [[point**row for point in points] + [Fraction(row == outputs - 1)] for row in range(outputs)]
    of_filter = [[point**tap / factor for tap in range(taps)] for point, factor in zip(points, scale, strict=True)]
    of_filter.append([Fraction(tap == taps - 1) for tap in range(taps)])
    of_inputs = [_coefficients(rest) + last for rest in others] + [_coefficients(points)]
    made = [
        torch.tensor([[float(x) for x in row] for row in matrix], dtype=torch.float64, device="cpu")
        for matrix in (to_outputs, of_filter, of_inputs)
    ]
    return made[0], made[1], made[2]


@functools.cache
def of_a_map() -> Along:
    """F(4, 3): six products for four outputs, 36 for 4 x 4, where there were 144."""
    points = [Fraction(0), Fraction(3, 4), Fraction(-3, 4), Fraction(3, 2), Fraction(-3, 2)]
    to_outputs, of_filter, of_inputs = toom_cook(points, taps=3)
    return Along(to_outputs, True, of_filter, of_inputs, step=4, tiles=160)


@functools.cache
def of_an_enlarged_map() -> Along:
    """Outputs on a map enlarged by 2, nearest neighbour, from the map itself: ten products for eight outputs.

    Of the three taps two fall on the same pixel, so that even and odd outputs are filters of two taps each, F(4, 2),
    on windows that are a pixel apart: 100 products for 8 x 8 outputs, where there were 576.
    """
    points = [Fraction(1, 2), Fraction(-1, 2), Fraction(3, 2), Fraction(-3, 2)]
    to_outputs, of_filter, of_inputs = toom_cook(points, taps=2)
    outputs, number = to_outputs.shape
    phases = to_outputs.new_tensor([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]])
    both_outputs = to_outputs.new_zeros(2 * outputs, 2 * number)
    both_inputs = of_inputs.new_zeros(2 * number, number + 1)
    for odd in range(2):
        rows = slice(odd * number, (odd + 1) * number)
        both_outputs[odd::2, rows] = to_outputs
        both_inputs[rows, odd : odd + number] = of_inputs
    return Along(both_outputs, False, (of_filter @ phases).flatten(0, 1), both_inputs, step=outputs, tiles=80)


class _Piece(NamedTuple):
    """Rows of tiles of some images of a map."""

    pixels: Tensor  # (N', H, W, in), all of the images' rows
    top: int  # the first row of tiles
    target: Tensor  # (N', h, W', out), the outputs' rows that these tiles give
    total: Tensor | None  # of the target's shape
    level: int
    shape: tuple[int, int, int]  # images, rows and columns of tiles

    @property
    def tiles(self) -> int:
        return math.prod(self.shape)


class WinogradConvolution(nn.Module):
    """A 3x3 convolution of stride 1 with a border of zeros, on a map or on the map enlarged by 2 (nearest neighbour),
    times `scale`, plus `shift`; in float32.

    `forward`: (N, in, H, W) to (N, out, H, W), or (N, out, 2H, 2W); added to `total` if that is given, after ReLU if
    wanted. `on_levels` takes the maps of a pyramid, each with its own scale and shift if
    there are several.
    """

    products: Tensor
    scale: Tensor
    shift: Tensor
    to_outputs: Tensor
    of_inputs: Tensor

    def __init__(self, products: Tensor, scale: Tensor, shift: Tensor, along: Along) -> None:
        """Of the filter's values (p * p, in, out) at the points, scales (L, out) and shifts (L, out), L levels or 1."""
        super().__init__()
        self.register_buffer("products", products)
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)
        outputs = torch.kron(along.outputs, along.outputs) if along.at_once else along.outputs
        self.register_buffer("to_outputs", outputs.to(products))
        self.register_buffer("of_inputs", along.inputs.to(products))
        self.side, self.at_once, self.step, self.tiles = len(along.outputs), along.at_once, along.step, along.tiles

    @classmethod
    def of(
        cls, conv: nn.Conv2d, norms: Sequence[nn.BatchNorm2d | None] = (None,), *, enlarged: bool = False
    ) -> WinogradConvolution:
        """The convolution and the BatchNorm after it; one for all levels or one for each."""
        along = of_an_enlarged_map() if enlarged else of_a_map()
        scales, shifts = zip(*(scale_and_shift(conv, norm) for norm in norms), strict=True)
        return cls(
            _at_points(conv.weight, along.filter),
            torch.stack(scales).to(conv.weight),
            torch.stack(shifts).to(conv.weight),
            along,
        )

    def forward(self, x: Tensor, total: Tensor | None = None, *, relu: bool = False) -> Tensor:
        return self._of_all([x], [total], relu)[0]

    def on_levels(self, maps: Sequence[Tensor], *, relu: bool = False) -> list[Tensor]:
        """Each level's output. Small levels go together, since the weights are larger than they are."""
        return self._of_all(maps, [None] * len(maps), relu)

    def _of_all(self, maps: Sequence[Tensor], totals: Sequence[Tensor | None], relu: bool) -> list[Tensor]:
        made: list[Tensor] = []
        waiting: list[_Piece] = []
        levels = [0] * len(maps) if len(self.scale) == 1 else range(len(self.scale))
        for level, x, total in zip(levels, maps, totals, strict=True):
            target = self._outputs_like(x)
            made.append(target.permute(0, 3, 1, 2))
            for piece in self._pieces(x, target, total, level):
                if waiting and sum(one.tiles for one in (*waiting, piece)) > self.tiles:
                    self._strip(waiting, relu)
                    waiting = []
                waiting.append(piece)
        if waiting:  # there are none for no image
            self._strip(waiting, relu)
        return made

    def _outputs_like(self, x: Tensor) -> Tensor:
        height, width = (length * self.side // self.step for length in x.shape[2:])
        return x.new_empty(len(x), height, width, self.shift.shape[1])

    def _pieces(self, x: Tensor, target: Tensor, total: Tensor | None, level: int) -> Iterator[_Piece]:
        """As many rows of tiles each as the cache holds, or as many images if one is small."""
        pixels, side = x.permute(0, 2, 3, 1), self.side
        added = None if total is None else total.permute(0, 2, 3, 1)
        rows, columns = (-(-length // side) for length in target.shape[1:3])
        high = min(rows, max(1, self.tiles // columns))
        deep = max(1, self.tiles // (rows * columns))
        for first in range(0, len(x), deep):
            for top in range(0, rows, high):
                part = (slice(first, first + deep), slice(side * top, side * (top + high)))
                images = pixels[part[0]]
                yield _Piece(
                    pixels=images,
                    top=top,
                    target=target[part],
                    total=None if added is None else added[part],
                    level=level,
                    shape=(len(images), min(high, rows - top), columns),
                )

    def _strip(self, pieces: Sequence[_Piece], relu: bool) -> None:
        """What the pieces' targets are to hold."""
        points, side = len(self.of_inputs), self.side
        channels, outputs = self.products.shape[1:]
        windows = [self._windows(piece) for piece in pieces]
        values = _on_both_axes(self.of_inputs, windows[0] if len(windows) == 1 else torch.cat(windows, 2))
        products = torch.bmm(values.view(points**2, -1, channels), self.products)
        if self.at_once:
            tiles = torch.mm(self.to_outputs, products.view(points**2, -1))
        else:
            tiles = _on_both_axes(self.to_outputs, products.view(points, points, -1))
        tiles = tiles.view(side, side, -1, outputs)
        for piece, part in zip(pieces, torch.split(tiles, [one.tiles for one in pieces], 2), strict=True):
            self._write(piece, part.view(side, side, *piece.shape, outputs))
            if piece.total is not None:
                piece.target.add_(piece.total)
            if relu:
                piece.target.relu_()

    def _windows(self, piece: _Piece) -> Tensor:
        """(w, w, T * in), with zeros beyond the border."""
        images, rows, columns = piece.shape
        height, width, channels = piece.pixels.shape[1:]
        window = self.of_inputs.shape[1]
        above, over = self.step * piece.top - 1, window - self.step - 1
        below = self.step * (piece.top + rows) + over
        bordered = F.pad(
            piece.pixels[:, max(above, 0) : below],
            (0, 0, 1, self.step * columns + over - width, max(-above, 0), max(below - height, 0)),
        )
        image, row, pixel, _ = bordered.stride()
        windows = bordered.as_strided(
            (window, window, images, rows, columns, channels),
            (row, pixel, image, self.step * row, self.step * pixel, 1),
        )
        return windows.flatten(2)

    def _write(self, piece: _Piece, tiles: Tensor) -> None:
        """Outputs (m, m, images, rows, columns, out) into their places."""
        side, (images, rows, columns) = len(tiles), piece.shape
        shift, scale = self.shift[piece.level], self.scale[piece.level]
        tiles = tiles.permute(2, 3, 0, 4, 1, 5)
        height, width = piece.target.shape[1:3]
        if (height, width) == (side * rows, side * columns):
            torch.addcmul(shift, tiles, scale, out=piece.target.view(tiles.shape))
        else:  # the last tiles reach beyond the map
            whole = tiles.reshape(images, side * rows, side * columns, -1)
            torch.addcmul(shift, whole[:, :height, :width], scale, out=piece.target)


def convolution(
    conv: nn.Conv2d, norm: nn.BatchNorm2d | None = None, *, quick: bool
) -> Convolution | WinogradConvolution:
    """The convolution and the BatchNorm after it, with fewer multiplications if that is wanted and pays."""
    return WinogradConvolution.of(conv, [norm]) if quick and pays(conv) else Convolution.of(conv, norm)


def has_every_digit(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether torch's products of such matrices have all of float32's digits, which these sums need.

    On other devices the libraries choose such convolutions by themselves.
    """
    if device.type != "cpu" or dtype != torch.float32:
        return False
    setting = getattr(getattr(torch.backends.mkldnn, "matmul", None), "fp32_precision", None)
    if setting is None:  # before torch 2.9
        return torch.get_float32_matmul_precision() == "highest"
    return setting in ("none", "ieee")


def pays(conv: nn.Conv2d) -> bool:
    """Whether a convolution of this kind gains by fewer multiplications, on a map that is not small."""
    return (
        conv.kernel_size == (3, 3)
        and conv.stride == conv.padding == conv.dilation == (1, 1)
        and conv.groups == 1
        and min(conv.in_channels, conv.out_channels) >= _LEAST_CHANNELS
    )


def _on_both_axes(matrix: Tensor, x: Tensor) -> Tensor:
    """(after, before) along the first two axes of (before, before, M): (after, after, M)."""
    after, before = matrix.shape
    rows = torch.mm(matrix, x.reshape(before, -1)).view(after, before, -1)
    return torch.bmm(matrix.expand(after, -1, -1), rows)


def _at_points(weight: Tensor, along: Tensor) -> Tensor:
    """A filter (out, in, 3, 3) at all points (p, 3): (p * p, in, out)."""
    points = len(along) ** 2
    made = weight.new_empty(points, weight.shape[1], weight.shape[0])
    both = torch.kron(along, along)
    for first in range(0, len(weight), OUTPUTS_AT_ONCE):
        part = slice(first, first + OUTPUTS_AT_ONCE)
        taps = in_double(weight[part]).permute(2, 3, 1, 0).flatten(0, 1)  # (9, in, out')
        made[:, :, part] = (both @ taps.flatten(1)).view(points, *taps.shape[1:]).to(weight)
    return made


def _coefficients(roots: Sequence[Fraction]) -> list[Fraction]:
    """Of the product of (x - root), the constant first."""
    made = [Fraction(1)]
    for root in roots:
        shifted = [Fraction(0), *made]
        for power, value in enumerate(made):
            shifted[power] -= root * value
        made = shifted
    return made
