"""3x3 convolutions in float32 with a quarter of the multiplications, after Winograd.

F(m, r) computes m outputs of a filter of r taps by m + r - 1 products, where there were m * r. The input transform
takes a window of m + r - 1 inputs to one value for each product; so does the filter transform the filter's taps. The
output transform takes the products to the outputs. The matrices come of polynomials, whose values at as many points as
there are products determine them. Along two axes the transforms of one axis are applied to either. The products at one
point, for all tiles and channels, are one product of matrices, where nearly all the time goes.

Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", arXiv 1509.09308; Winograd, "Arithmetic
Complexity of Computations", 1980. Points of either sign that are small keep rounding errors small (Barabasz and
others, arXiv 1803.10986).

Legend: N images, maps (N, C, H, W) in channels-last order; T tiles of m x m outputs, windows of w x w inputs,
p x p points.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fpg_zoo.inference.optimized.backbone import FusedResNet
from fpg_zoo.inference.optimized.convolutions import (
    CHANNELS_PER_CHUNK,
    FoldedConvolution,
    Source,
    compute_scale_shift,
    to_double,
)
from fpg_zoo.inference.optimized.heads import FusedMaskHead, FusedRetinaHead, FusedRPN
from fpg_zoo.inference.optimized.necks import FusedFPG, FusedFPN, FusedNode
from fpg_zoo.modeling.necks.nasfpn import Cell

_MIN_CHANNELS = 128  # with fewer, moving tiles takes longer than the products that are saved
_MIN_CHANNELS_UPSAMPLED = 256


class TransformSpec(NamedTuple):
    """The transforms of Winograd's form along one axis; in double precision.

    Attributes:
        output: (m, p), from products to outputs.
        input: (p, w), from a window of inputs to its values at the points.
        filter: (p, 3), from a filter's taps to its values at the points.
        output_2d_at_once: whether the output transform is applied along both axes in one product. That has more
            multiplications, and one pass over memory.
        stride: inputs from a window to the next; the first window begins one before the first input.
        tiles: how many are computed together, so that their intermediate values stay in the cache.
    """

    output: Tensor
    input: Tensor
    filter: Tensor
    output_2d_at_once: bool
    stride: int
    tiles: int


def toom_cook(points: Sequence[Fraction], taps: int) -> tuple[Tensor, Tensor, Tensor]:
    """Transforms (A, G, B) with A ((G filter) * (B window)) the filter's outputs on the window.

    Args:
        points: different ones, p - 1 of them; infinity is the last.
        taps: of the filter; there are p - taps + 1 outputs.

    Returns:
        A (outputs, p), G (p, taps) and B (p, p) in double precision.
    """
    outputs = len(points) + 1 - taps + 1
    others = [[other for other in points if other != point] for point in points]
    scales = [
        math.prod((point - other for other in rest), start=Fraction(1))
        for point, rest in zip(points, others, strict=True)
    ]
    zero = [Fraction(0)]
    output = [[point**row for point in points] + [Fraction(row == outputs - 1)] for row in range(outputs)]
    filter_ = [[point**tap / scale for tap in range(taps)] for point, scale in zip(points, scales, strict=True)]
    filter_.append([Fraction(tap == taps - 1) for tap in range(taps)])
    input_ = [_polynomial_coefficients(rest) + zero for rest in others] + [_polynomial_coefficients(points)]
    return _to_matrix(output), _to_matrix(filter_), _to_matrix(input_)


def _polynomial_coefficients(roots: Sequence[Fraction]) -> list[Fraction]:
    """Of the product of (x - root), the constant first."""
    product = [Fraction(1)]
    for root in roots:
        shifted = [Fraction(0), *product]
        for power, coefficient in enumerate(product):
            shifted[power] -= root * coefficient
        product = shifted
    return product


def _to_matrix(rows: Sequence[Sequence[Fraction]]) -> Tensor:
    return torch.tensor([[float(x) for x in row] for row in rows], dtype=torch.float64, device="cpu")


@functools.cache
def f_4_3() -> TransformSpec:
    """F(4, 3): six products for four outputs, 36 for 4 x 4, where there were 144."""
    points = [Fraction(0), Fraction(3, 4), Fraction(-3, 4), Fraction(3, 2), Fraction(-3, 2)]
    output, filter_, input_ = toom_cook(points, taps=3)
    return TransformSpec(output, input_, filter_, output_2d_at_once=True, stride=4, tiles=160)


@functools.cache
def upsampled_f_4_2() -> TransformSpec:
    """Two F(4, 2) for the outputs on a map upsampled by 2, from the map itself: ten products for eight outputs.

    Nearest-neighbor upsampling puts two of the three taps on the same pixel, so that even and odd outputs are filters
    of two taps each. Their windows are a pixel apart. Along both axes 100 products give 8 x 8 outputs, where there were
    576.
    """
    points = [Fraction(1, 2), Fraction(-1, 2), Fraction(3, 2), Fraction(-3, 2)]
    output, filter_, input_ = toom_cook(points, taps=2)
    outputs, products = output.shape
    phases = output.new_tensor([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]])  # even and odd: (2, 3) taps
    both_outputs = output.new_zeros(2 * outputs, 2 * products)
    both_inputs = input_.new_zeros(2 * products, products + 1)
    for odd in range(2):
        rows = slice(odd * products, (odd + 1) * products)
        both_outputs[odd::2, rows] = output
        both_inputs[rows, odd : odd + products] = input_
    return TransformSpec(
        both_outputs,
        both_inputs,
        (filter_ @ phases).flatten(0, 1),
        output_2d_at_once=False,
        stride=outputs,
        tiles=80,
    )


class _TileRows(NamedTuple):
    """Rows of tiles of some images of a map."""

    images: Tensor  # (N', H, W, in), all rows of pixels
    first_row: int  # of tiles
    output: Tensor  # (N', h, W', out), the rows of the output that these tiles give
    total: Tensor | None  # of the output's shape
    level: int
    shape: tuple[int, int, int]  # images, rows and columns of tiles

    @property
    def tiles(self) -> int:
        return math.prod(self.shape)


class WinogradConvolution(nn.Module):
    """A 3x3 convolution of stride 1 with zero padding, times `scale`, plus `shift`; in float32.

    `forward`: (N, in, H, W) to (N, out, H, W), or to (N, out, 2H, 2W) on the map upsampled by 2 (nearest neighbor). The
    output is added to `total` if that is given, then after ReLU with `relu`. `forward_levels` takes the maps of a
    pyramid, each with its own scale and shift if there are several.
    """

    weight: Tensor
    scale: Tensor
    shift: Tensor
    output_transform: Tensor
    input_transform: Tensor

    def __init__(self, weight: Tensor, scale: Tensor, shift: Tensor, spec: TransformSpec) -> None:
        """
        Args:
            weight: (p * p, in, out), the filter's values at the points.
            scale: (L, out), of L levels, or of 1 for all.
            shift: (L, out), like `scale`.
            spec: the transforms.
        """
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)
        output_transform = torch.kron(spec.output, spec.output) if spec.output_2d_at_once else spec.output
        self.register_buffer("output_transform", output_transform.to(weight))
        self.register_buffer("input_transform", spec.input.to(weight))
        self.output_2d_at_once, self.tile_size = spec.output_2d_at_once, len(spec.output)
        self.stride, self.tiles = spec.stride, spec.tiles

    @classmethod
    def of(
        cls, conv: nn.Conv2d, norms: Sequence[nn.BatchNorm2d | None] = (None,), *, upsample: bool = False
    ) -> WinogradConvolution:
        """The convolution and the BatchNorm after it; one for all levels or one for each."""
        spec = upsampled_f_4_2() if upsample else f_4_3()
        scales, shifts = zip(*(compute_scale_shift(conv, norm) for norm in norms), strict=True)
        return cls(
            _transform_filter(conv.weight, spec.filter),
            torch.stack(scales).to(conv.weight),
            torch.stack(shifts).to(conv.weight),
            spec,
        )

    def forward(self, x: Tensor, total: Tensor | None = None, *, relu: bool = False) -> Tensor:
        return self._forward_maps([x], [total], relu)[0]

    def forward_levels(self, maps: Sequence[Tensor], *, relu: bool = False) -> list[Tensor]:
        """Each level's output. Small levels are computed together, since the weights are larger than they are."""
        return self._forward_maps(maps, [None] * len(maps), relu)

    def _forward_maps(self, maps: Sequence[Tensor], totals: Sequence[Tensor | None], relu: bool) -> list[Tensor]:
        outputs: list[Tensor] = []
        batch: list[_TileRows] = []
        levels = [0] * len(maps) if len(self.scale) == 1 else range(len(self.scale))
        for level, x, total in zip(levels, maps, totals, strict=True):
            output = self._new_output(x)
            outputs.append(output.permute(0, 3, 1, 2))
            for rows in self._split_rows(x, output, total, level):
                if batch and sum(part.tiles for part in (*batch, rows)) > self.tiles:
                    self._compute(batch, relu)
                    batch = []
                batch.append(rows)
        if batch:  # without images there is none
            self._compute(batch, relu)
        return outputs

    def _new_output(self, x: Tensor) -> Tensor:
        height, width = (length * self.tile_size // self.stride for length in x.shape[2:])
        return x.new_empty(len(x), height, width, self.shift.shape[1])

    def _split_rows(self, x: Tensor, output: Tensor, total: Tensor | None, level: int) -> Iterator[_TileRows]:
        """As many rows of tiles at a time as the cache holds, of as many images as it holds whole."""
        pixels, size = x.permute(0, 2, 3, 1), self.tile_size
        total = None if total is None else total.permute(0, 2, 3, 1)
        rows, columns = (-(-length // size) for length in output.shape[1:3])
        row_step = min(rows, max(1, self.tiles // columns))
        image_step = max(1, self.tiles // (rows * columns))
        for first_image in range(0, len(x), image_step):
            for first_row in range(0, rows, row_step):
                part = (
                    slice(first_image, first_image + image_step),
                    slice(size * first_row, size * (first_row + row_step)),
                )
                images = pixels[part[0]]
                yield _TileRows(
                    images=images,
                    first_row=first_row,
                    output=output[part],
                    total=None if total is None else total[part],
                    level=level,
                    shape=(len(images), min(row_step, rows - first_row), columns),
                )

    def _compute(self, batch: Sequence[_TileRows], relu: bool) -> None:
        """Fill the outputs of a batch of tiles."""
        points, size = len(self.input_transform), self.tile_size
        in_channels, out_channels = self.weight.shape[1:]
        windows = [self._windows(rows) for rows in batch]
        values = _transform_2d(self.input_transform, windows[0] if len(windows) == 1 else torch.cat(windows, 2))
        products = torch.bmm(values.view(points**2, -1, in_channels), self.weight)
        if self.output_2d_at_once:
            tiles = torch.mm(self.output_transform, products.view(points**2, -1))
        else:
            tiles = _transform_2d(self.output_transform, products.view(points, points, -1))
        tiles = tiles.view(size, size, -1, out_channels)
        for rows, part in zip(batch, torch.split(tiles, [rows.tiles for rows in batch], 2), strict=True):
            self._write(rows, part.view(size, size, *rows.shape, out_channels))
            if rows.total is not None:
                rows.output.add_(rows.total)
            if relu:
                rows.output.relu_()

    def _windows(self, rows: _TileRows) -> Tensor:
        """(w, w, T * in), with zeros beyond the border."""
        num_images, num_rows, num_columns = rows.shape
        height, width, channels = rows.images.shape[1:]
        window = self.input_transform.shape[1]
        overlap = window - self.stride - 1
        top, bottom = self.stride * rows.first_row - 1, self.stride * (rows.first_row + num_rows) + overlap
        right = self.stride * num_columns + overlap
        padded = F.pad(
            rows.images[:, max(top, 0) : bottom],
            (0, 0, 1, right - width, max(-top, 0), max(bottom - height, 0)),
        )
        image_stride, row_stride, pixel_stride, _ = padded.stride()
        windows = padded.as_strided(
            (window, window, num_images, num_rows, num_columns, channels),
            (row_stride, pixel_stride, image_stride, self.stride * row_stride, self.stride * pixel_stride, 1),
        )
        return windows.flatten(2)

    def _write(self, rows: _TileRows, tiles: Tensor) -> None:
        """Put tiles (m, m, images, rows, columns, out) into their places in the output."""
        size, (num_images, num_rows, num_columns) = len(tiles), rows.shape
        shift, scale = self.shift[rows.level], self.scale[rows.level]
        tiles = tiles.permute(2, 3, 0, 4, 1, 5)
        height, width = rows.output.shape[1:3]
        if (height, width) == (size * num_rows, size * num_columns):
            torch.addcmul(shift, tiles, scale, out=rows.output.view(tiles.shape))
        else:  # the last tiles reach beyond the map
            whole = tiles.reshape(num_images, size * num_rows, size * num_columns, -1)
            torch.addcmul(shift, whole[:, :height, :width], scale, out=rows.output)


def _transform_2d(matrix: Tensor, x: Tensor) -> Tensor:
    """Apply a matrix (after, before) along the first two axes of (before, before, M): (after, after, M)."""
    after, before = matrix.shape
    rows = torch.mm(matrix, x.reshape(before, -1)).view(after, before, -1)
    return torch.bmm(matrix.expand(after, -1, -1), rows)


def _transform_filter(weight: Tensor, matrix: Tensor) -> Tensor:
    """Apply the filter transform (p, 3) to a weight (out, in, 3, 3): (p * p, in, out)."""
    points = len(matrix) ** 2
    transformed = weight.new_empty(points, weight.shape[1], weight.shape[0])
    matrix_2d = torch.kron(matrix, matrix)
    for first in range(0, len(weight), CHANNELS_PER_CHUNK):
        chunk = slice(first, first + CHANNELS_PER_CHUNK)
        taps = to_double(weight[chunk]).permute(2, 3, 1, 0).flatten(0, 1)  # (9, in, out')
        transformed[:, :, chunk] = (matrix_2d @ taps.flatten(1)).view(points, *taps.shape[1:]).to(weight)
    return transformed


def has_full_precision_matmul(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether torch's matrix products have all of float32's digits, which Winograd's form needs.

    False on other devices than the CPU, whose libraries choose such convolutions by themselves.
    """
    if device.type != "cpu" or dtype != torch.float32:
        return False
    setting = getattr(getattr(torch.backends.mkldnn, "matmul", None), "fp32_precision", None)
    if setting is None:  # before torch 2.9
        return torch.get_float32_matmul_precision() == "highest"
    return setting in ("none", "ieee")


def is_eligible(source: Source) -> bool:
    """Whether a convolution of this kind gains by Winograd's form, on a map that is not small."""
    conv = source.conv
    return (
        conv.kernel_size == (3, 3)
        and conv.stride == conv.padding == conv.dilation == (1, 1)
        and conv.groups == 1
        and min(conv.in_channels, conv.out_channels) >= (_MIN_CHANNELS_UPSAMPLED if source.upsample else _MIN_CHANNELS)
    )


def _fpg_places(neck: FusedFPG) -> Iterator[nn.Module]:
    yield from neck.outputs[:2]
    if neck.inputs.start_level == 0:  # then the finest level is at stride 4
        for node in neck.pathways.modules():
            if isinstance(node, FusedNode) and node.level == 0:
                yield node


# The modules of each part of a fused model in which eligible convolutions take Winograd's form. Its weights are four
# times as large, upsampled eleven times, and the coarser a level the less there is to gain. With these, a form has at
# most twice the model's memory.
WINOGRAD_PLACES: dict[type[nn.Module], Callable[[Any], Iterable[nn.Module]]] = {
    FusedResNet: lambda backbone: backbone.stages[:3],  # the last one's maps are small and its weights large
    FusedFPG: _fpg_places,
    FusedFPN: lambda neck: neck.outputs[:2],
    Cell: lambda cell: (cell.p3_sum_of_4_3, cell.p4_sum_of_3_4),
    FusedRPN: lambda head: (head,),
    FusedRetinaHead: lambda head: (head,),
    FusedMaskHead: lambda head: (head,),
}


def use_winograd(model: nn.Module) -> None:
    """Replace convolutions of a fused model by their Winograd form, in place, where that takes less time.

    Args:
        model: in float32 on the CPU; its folded convolutions have their sources.
    """
    in_places = {
        id(module)
        for part in model.modules()
        if type(part) in WINOGRAD_PLACES
        for place in WINOGRAD_PLACES[type(part)](part)
        for module in place.modules()
        if isinstance(module, FoldedConvolution)
    }
    sources = {
        path: module.source
        for path, module in model.named_modules()
        if id(module) in in_places and isinstance(module, FoldedConvolution) and module.source is not None
    }
    for path, source in sources.items():
        if is_eligible(source):
            model.set_submodule(path, WinogradConvolution.of(source.conv, source.norms, upsample=source.upsample))
