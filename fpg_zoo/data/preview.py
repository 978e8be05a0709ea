"""A page of images as they are trained on, with what is annotated in them."""

from __future__ import annotations

import base64
import collections
import html
import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from torch.nn import functional

from fpg_zoo.data.augment import Augmented
from fpg_zoo.errors import ConfigError
from fpg_zoo.files import atomic_write, check_writable
from fpg_zoo.structures.detections import Detections
from fpg_zoo.structures.drawing import draw_detections
from fpg_zoo.text import printable

MOST_IMAGES = 100  # on a page
_SUFFIXES = (".png", ".html")
_TILE = 480  # pixels that the crop's side is drawn at on a picture
_GAP = 8  # pixels between images
_COLUMNS = 4
_BEYOND = (48, 48, 48)  # the color of the padding
_BACKGROUND = (255, 255, 255)
_JPEG_QUALITY = 90
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 24px; background: #fff; color: #222 }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(320px, 1fr)); gap: 20px }
figure { margin: 0 }
img { width: 100%; height: auto; display: block }
figcaption { overflow-wrap: anywhere }
"""


def check_page(page: Path, inputs: Iterable[Path]) -> None:
    """Whether a page can be written where it is to be.

    Args:
        page: the file to write.
        inputs: the files that it is made of.

    Raises:
        ConfigError: it cannot; or it is none of the formats that are written, or one of the inputs.
    """
    if page.suffix.lower() not in _SUFFIXES:
        raise ConfigError(f"{page}: a page is written as {' or '.join(_SUFFIXES)}; let its name end so")
    if page.is_dir():
        raise ConfigError(f"{page}: a folder; name the file to write")
    check_writable(page.parent)
    if page.exists() and any(
        file.name.casefold() == page.name.casefold() and file.exists() and os.path.samefile(file, page)
        for file in inputs
    ):
        raise ConfigError(f"{page}: a file of the data set; name another to write")


def write_page(
    page: Path, samples: Sequence[Augmented], class_names: tuple[str, ...], *, crop: int, title: str
) -> None:
    """Write samples with their masks, boxes and class names.

    Args:
        page: a picture (.png), or a page with a line about each (.html).
        samples: what is drawn, at least one.
        class_names: in the order of labels.
        crop: pixels, at least the greatest side of any sample. What a sample is smaller by is shown as padding.
        title: of the page.

    Raises:
        StorageError: it cannot be written.
    """
    drawn = [_drawn(sample, class_names, crop) for sample in samples]
    content = io.BytesIO()
    if page.suffix.lower() == ".png":
        _grid(drawn).save(content, "PNG")
    else:
        captions = [_caption(sample, class_names) for sample in samples]
        content.write(_html(drawn, captions, title).encode())
    with atomic_write(page) as temporary:
        temporary.write_bytes(content.getbuffer())


def _drawn(sample: Augmented, class_names: tuple[str, ...], crop: int) -> Image.Image:
    """A square, the crop, with the sample in its upper left corner."""
    scale = _TILE / crop
    height, width = (max(round(side * scale), 1) for side in sample.image.shape[-2:])
    pixels = Image.fromarray(np.ascontiguousarray(sample.image.permute(1, 2, 0).numpy())).resize((width, height))
    masks = sample.target.get("masks")
    if masks is not None and len(masks):
        masks = functional.interpolate(masks[None].byte(), (height, width), mode="nearest-exact")[0].bool()
    elif masks is not None:
        masks = masks.new_zeros((0, height, width))
    boxes = sample.target["boxes"]
    # The smallest on top, which would be hidden by others otherwise.
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    found = Detections(boxes * scale, 1 / areas, sample.target["labels"], masks, class_names, (height, width))
    square = Image.new("RGB", (_TILE, _TILE), _BEYOND)
    square.paste(draw_detections(found, pixels, scores=False))
    return square


def _grid(drawn: Sequence[Image.Image]) -> Image.Image:
    columns = min(len(drawn), _COLUMNS)
    rows = -(-len(drawn) // columns)
    grid = Image.new("RGB", (columns * (_TILE + _GAP) - _GAP, rows * (_TILE + _GAP) - _GAP), _BACKGROUND)
    for place, image in enumerate(drawn):
        row, column = divmod(place, columns)
        grid.paste(image, (column * (_TILE + _GAP), row * (_TILE + _GAP)))
    return grid


def _caption(sample: Augmented, class_names: tuple[str, ...]) -> str:
    """As HTML."""
    height, width = sample.image.shape[-2:]
    counts = collections.Counter(class_names[label] for label in sample.target["labels"].tolist())
    objects = ", ".join(f"{count} {printable(name)}" for name, count in counts.most_common()) or "no object"
    return html.escape(f"{printable(sample.info.file.name)}: {width}x{height}, {objects}")


def _html(drawn: Sequence[Image.Image], captions: Sequence[str], title: str) -> str:
    figures = []
    for image, caption in zip(drawn, captions, strict=True):
        encoded = io.BytesIO()
        image.save(encoded, "JPEG", quality=_JPEG_QUALITY)
        source = f"data:image/jpeg;base64,{base64.b64encode(encoded.getvalue()).decode()}"
        figures.append(f'<figure><img src="{source}" alt="{caption}"><figcaption>{caption}</figcaption></figure>')
    title = html.escape(printable(title))
    return (
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{title}</title>\n<style>{_STYLE}</style>\n'
        f"<h1>{title}</h1>\n<main>\n" + "\n".join(figures) + "\n</main>\n</html>\n"
    )
