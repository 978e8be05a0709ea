"""Detections drawn on their image, legible on any background."""

from __future__ import annotations

import colorsys
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

from fpg_zoo.structures.fonts import Font, lettering
from fpg_zoo.structures.images import ChannelOrder, ImageLike, read_image

if TYPE_CHECKING:
    from fpg_zoo.structures import Detections

MASK_OPACITY = 0.45
_GOLDEN_RATIO = 0.618034

Color = tuple[int, int, int]


def class_color(label: int) -> Color:
    """A bright color for a class, well apart from those of the neighboring classes."""
    hue = (label * _GOLDEN_RATIO) % 1.0
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.85, 1.0)
    return round(red * 255), round(green * 255), round(blue * 255)


def text_color(background: Color) -> Color:
    """Black or white, whichever stands out more (relative luminance, ITU-R BT.709)."""
    red, green, blue = background
    return (0, 0, 0) if 0.2126 * red + 0.7152 * green + 0.0722 * blue > 128 else (255, 255, 255)


def draw_detections(
    detections: Detections,
    image: ImageLike,
    channel_order: ChannelOrder = "rgb",
    *,
    boxes: bool = True,
    scores: bool = True,
) -> Image.Image:
    """A copy of an image with masks, and with boxes, names and `scores`, the best on top; see `Detections.draw`.

    Args:
        detections, image, channel_order: as of `Detections.draw`.
        boxes: draw boxes with their names; without, masks alone.
        scores: write scores behind names.
    """
    canvas = read_image(image, channel_order=channel_order)
    if (canvas.height, canvas.width) != tuple(detections.size):
        raise ValueError(
            f"the image is {canvas.height}x{canvas.width} and the detections are of an image of "
            f"{detections.size[0]}x{detections.size[1]} (height x width): draw on the image they were found in"
        )
    order = detections.scores.sort(stable=True).indices
    ordered = replace(detections, masks=None)[order].to("cpu")
    colors = [class_color(label) for label in ordered.labels.tolist()]
    if detections.masks is not None and len(ordered):
        # One by one: reordered or moved together, a large image's masks would take twice their memory.
        masks = (detections.masks[index].cpu().numpy() for index in order.tolist())
        canvas = _tinted(canvas, zip(masks, colors, strict=True))
    if not boxes:
        return canvas
    pen = ImageDraw.Draw(canvas)
    line = max(round(max(canvas.size) / 400), 1)
    size = max(round(max(canvas.size) / 50), 10)
    letterings = {name: lettering(name, ordered.class_names) for name in ordered.names}
    fonts = {each.font_file: each.font(size) for each in letterings.values()}
    right, bottom = canvas.width - 1, canvas.height - 1
    for (x1, y1, x2, y2), color in zip(ordered.boxes.tolist(), colors, strict=True):
        box = [min(x1, right), min(y1, bottom), min(x2, right), min(y2, bottom)]
        # A dark line around the colored one keeps the box visible where the image has its color.
        pen.rectangle(box, outline=(0, 0, 0), width=line + 2)
        pen.rectangle(
            [box[0] + 1, box[1] + 1, max(box[2] - 1, box[0] + 1), max(box[3] - 1, box[1] + 1)],
            outline=color,
            width=line,
        )
    for box, color, name, score in zip(
        ordered.boxes.tolist(), colors, ordered.names, ordered.scores.tolist(), strict=True
    ):
        text, font_file = letterings[name]
        _label(pen, box, f"{text} {score:.2f}" if scores else text, color, fonts[font_file], canvas.size)
    return canvas


def _tinted(image: Image.Image, masks: Iterable[tuple[np.ndarray, Color]]) -> Image.Image:
    """The image with each mask's pixels, (height, width) bool, blended with its color."""
    pixels = np.array(image)
    values = np.arange(256)
    for mask, color in masks:
        rows = np.flatnonzero(mask.any(axis=1))
        if not len(rows):
            continue
        down = slice(rows[0], rows[-1] + 1)
        columns = np.flatnonzero(mask[down].any(axis=0))
        across = slice(columns[0], columns[-1] + 1)
        region, inside = pixels[down, across], mask[down, across]
        for channel, tint in enumerate(color):
            # There are but 256 values to blend; looking them up takes a tenth of the time.
            blended = (values * (1 - MASK_OPACITY) + tint * MASK_OPACITY).round().astype(np.uint8)
            np.copyto(region[..., channel], blended[region[..., channel]], where=inside)
    return Image.fromarray(pixels)


def _label(
    pen: ImageDraw.ImageDraw,
    box: list[float],
    text: str,
    color: Color,
    font: Font,
    size: tuple[int, int],
) -> None:
    left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
    width, height = right - left + 6, bottom - top + 6
    x = min(max(box[0], 0), max(size[0] - width - 1, 0))
    # Above the box where there is room, else inside it.
    y = box[1] - height if box[1] >= height else min(box[1], max(size[1] - height - 1, 0))
    pen.rectangle([x, y, x + width, y + height], fill=color, outline=(0, 0, 0))
    pen.text((x + 3 - left, y + 3 - top), text, fill=text_color(color), font=font)
