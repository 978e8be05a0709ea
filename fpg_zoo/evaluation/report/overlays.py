"""Images as inline SVG, with what was annotated and detected in them drawn over their pixels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from fpg_zoo.evaluation.report.confusion import MIDDLE
from fpg_zoo.evaluation.report.html import TIMES, coordinate, escaped
from fpg_zoo.evaluation.report.worst_images import Shape, State, WorstImage

_LETTERS = (1 / 40, 1 / 60)  # height of a label's letters, at least, of the image's width and height
_CHARACTER = 0.66  # width of a letter, of its height, on average
_FLAGS: dict[State, str] = {
    "object": "missed: ",
    "crowd": "crowd: ",
    "right": "",
    "wrong": f"{TIMES} ",
    "ignored": "ignored: ",
}

Rectangle = tuple[float, float, float, float]  # left, top, right, bottom in pixels as drawn


def annotated(image: WorstImage, number: int) -> str:
    """What is annotated in an image, over its pixels, which `detected` takes from here by the number."""
    width, height = image.size
    pixels = f'<rect class="blank" width="{width}" height="{height}"/>'
    if image.jpeg is not None:
        pixels = f'<image id="pixels-{number}" width="{width}" height="{height}" href="{image.jpeg}"/>'
    return _svg(image, f"Annotated: {_counted(image.objects)}", pixels, image.objects)


def detected(image: WorstImage, number: int) -> str:
    """What is detected in it; all detections, those below the threshold not shown."""
    width, height = image.size
    pixels = f'<rect class="blank" width="{width}" height="{height}"/>'
    if image.jpeg is not None:
        pixels = f'<use href="#pixels-{number}"/>'
    visible = [shape for shape in image.detections if shape.step >= MIDDLE]
    return _svg(image, f"Detected: {_counted(visible)}", pixels, image.detections)


def _counted(shapes: Iterable[Shape]) -> str:
    names = [shape.name for shape in shapes]
    counts = [f"{names.count(name)} {name}" for name in dict.fromkeys(names)]
    return ", ".join(counts) or "nothing"


def outcome(image: WorstImage) -> tuple[int, int, int]:
    """Right and wrong detections and missed objects at the middle threshold."""
    visible = [shape.state for shape in image.detections if shape.step >= MIDDLE]
    missed = sum(shape.state == "object" and shape.step < MIDDLE for shape in image.objects)
    return visible.count("right"), visible.count("wrong"), missed


def _svg(image: WorstImage, label: str, pixels: str, shapes: Sequence[Shape]) -> str:
    width, height = image.size
    letters = max(side * share for side, share in zip(image.size, _LETTERS, strict=True))
    # The last ones lie on top, so they have the first choice of a place for their labels.
    places = reversed(list(_label_places(list(reversed(shapes)), image.size, letters)))
    labels = "".join(_label(shape, place, letters) for shape, place in zip(shapes, places, strict=True))
    drawing = "".join(map(_shape, shapes)) + labels
    return (
        f'<svg class="image" viewBox="0 0 {width} {height}" role="img" aria-label="{escaped(label)}">'
        f"{pixels}{drawing}</svg>"
    )


def _label_places(shapes: Iterable[Shape], size: tuple[int, int], letters: float) -> Iterator[tuple[float, float]]:
    """Left and base of each label: above its box, below it or within, the first that lies on no other label."""
    taken: list[Rectangle] = []
    for shape in shapes:
        width = len(_FLAGS[shape.state] + shape.label) * _CHARACTER * letters
        x, y, across, down = shape.box
        lefts = [max(min(at, size[0] - width), 0.0) + 2 for at in (x, x + across - width)]
        line, highest, lowest = 1.2 * letters, letters, size[1] - 0.3 * letters
        above, bottom = y - 0.3 * letters, y + down
        bases = (above, above + line, bottom - 0.4 * letters, bottom + line, above + 2 * line, bottom + 2 * line)
        choices = [(left, base) for base in bases for left in lefts if highest <= base <= lowest]
        inside = choices or [(lefts[0], min(max(above, highest), lowest))]
        covers = [(at, base - letters, at + width, base + 0.2 * letters) for at, base in inside]
        free = [place for place, cover in enumerate(covers) if not any(_meet(cover, other) for other in taken)]
        best = free[0] if free else 0
        taken.append(covers[best])
        yield inside[best]


def _meet(one: Rectangle, other: Rectangle) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _shape(shape: Shape) -> str:
    x, y, width, height = (coordinate(side) for side in shape.box)
    box = f'x="{x}" y="{y}" width="{width}" height="{height}"'
    region = f'<path class="region" d="{shape.path}"/>' if shape.path else ""
    lines = f'<rect class="casing" {box}/><rect class="line" {box}/>'
    return f"<g {_marks(shape)}><title>{escaped(shape.title)}</title>{region}{lines}</g>"


def _label(shape: Shape, place: tuple[float, float], letters: float) -> str:
    flag = _FLAGS[shape.state]
    if shape.state == "object":
        flag = f'<tspan class="flag">{flag}</tspan>'  # shown or not as page.js finds
    at = f'x="{coordinate(place[0])}" y="{coordinate(place[1])}" font-size="{coordinate(letters)}"'
    return f"<text {_marks(shape)} {at}>{flag}{escaped(shape.label)}</text>"


def _marks(shape: Shape) -> str:
    """What the style sheet and page.js go by."""
    names = f"shape {shape.state}"
    if shape.step < MIDDLE and shape.state != "crowd":
        names += " missed" if shape.state == "object" else " below"
    return f'class="{names}" data-step="{shape.step}"'
