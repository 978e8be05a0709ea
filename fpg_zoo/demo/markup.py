"""The texts of the page as HTML: what was found and how long it took, the table, one line for what went wrong."""

from __future__ import annotations

import base64
import html
import json

from fpg_zoo.demo.finding import Found, Shown
from fpg_zoo.structures.drawing import class_color
from fpg_zoo.text import printable

STYLE = """
.gradio-container { width: 100%; max-width: 1360px !important; margin: 0 auto !important; }
.gradio-container .fillable { padding: 1.5rem clamp(.8rem, 3vw, 2rem) !important; }
#drawn img { max-height: 85vh; }
#picture .image-container, #drawn .image-container { padding-top: 2rem; }
.html-container:has(.fpg) { padding: .2rem 0 !important; }
.fpg h1 { font-size: 1.5rem; font-weight: 650; margin: 0 0 .2rem; letter-spacing: -.01em; }
.fpg p { margin: 0; line-height: 1.45; overflow-wrap: anywhere; }
.fpg .quiet { color: var(--body-text-color-subdued); }
.fpg .problem { border-left: 4px solid #d92d20; background: #d92d2018; padding: .6rem .8rem; border-radius: 4px; }
.fpg dl { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; margin: .3rem 0 0; }
.fpg dl div { display: flex; gap: .4rem; }
.fpg dt { color: var(--body-text-color-subdued); }
.fpg dd { margin: 0; font-variant-numeric: tabular-nums; }
.fpg .scroll { overflow-x: auto; border: 1px solid var(--border-color-primary); border-radius: 6px; }
.gradio-container .fpg table { border: 0; border-collapse: collapse; width: 100%; margin: 0; }
.gradio-container .fpg tr { border: 0; }
.gradio-container .fpg :is(th, td) { border: 0; padding: .3rem clamp(.3rem, 1.2vw, .7rem); }
.gradio-container .fpg :is(th, td) { font-size: clamp(.8rem, 2vw, .9rem); text-align: right; white-space: nowrap; }
.gradio-container .fpg td { border-top: 1px solid var(--border-color-primary); font-variant-numeric: tabular-nums; }
.gradio-container .fpg :is(th, td):first-child { text-align: left; }
.gradio-container .fpg th { font-weight: 600; color: var(--body-text-color-subdued); }
.fpg i { display: inline-block; width: .7em; height: .7em; border-radius: 2px; margin-right: .5em; }
.fpg a { color: var(--link-text-color); text-decoration: underline; }
.fpg .scroll + p { margin-top: .5rem; }
"""


def heading() -> str:
    """The page's title and what to do with it."""
    return _block(
        "<h1>Feature Pyramid Grids</h1>"
        '<p class="quiet">Object detectors of the zoo. Drop a picture in, or take an example.</p>'
    )


def problem(message: str) -> str:
    """One line for what went wrong."""
    return _block(f'<p class="problem" role="alert">{html.escape(printable(message, None))}</p>')


def summary(found: Found, shown: Shown) -> str:
    """How many are shown, of which picture by which model, and the times."""
    height, width = found.detections.size
    size = f"{width}x{height} pixels"
    if found.original_size != found.detections.size:
        size += f", reduced from {found.original_size[1]}x{found.original_size[0]}"
    times = found.seconds | {"drawing": shown.seconds}
    stages = "".join(f"<div><dt>{name}</dt><dd>{_milliseconds(value)}</dd></div>" for name, value in times.items())
    return _block(
        f'<p role="status"><b>{len(shown.detections)} of {len(found.detections)}</b> detections shown. '
        f'<span class="quiet">{html.escape(printable(found.model))}; {size}</span></p><dl>{stages}</dl>'
    )


def table(found: Found, shown: Shown) -> str:
    """A row for each detection that is shown, and a link to them as a COCO results file."""
    if not len(shown.detections):
        return _block('<p class="quiet">Nothing at this score and of these classes.</p>')
    detections = shown.detections
    rows = "".join(
        f'<tr><td><i style="background:rgb{class_color(label)}"></i>{html.escape(printable(name))}</td>'
        f"<td>{score:.2f}</td>" + "".join(f"<td>{side:.0f}</td>" for side in box) + "</tr>"
        for label, name, score, box in zip(
            detections.labels.tolist(),
            detections.names,
            detections.scores.tolist(),
            detections.boxes.tolist(),
            strict=True,
        )
    )
    head = "".join(f'<th scope="col">{name}</th>' for name in ("class", "score", "x1", "y1", "x2", "y2"))
    content = base64.b64encode(json.dumps(shown.rows).encode()).decode("ascii")
    file_name = html.escape(f"{printable(found.name)}.json")
    return _block(
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
        '<p class="quiet">Boxes in pixels of the picture shown. '
        f'<a download="{file_name}" href="data:application/json;base64,{content}">Download as COCO JSON</a></p>'
    )


def _block(content: str) -> str:
    return f'<div class="fpg">{content}</div>'


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 10 else f"{seconds:.1f} s"
