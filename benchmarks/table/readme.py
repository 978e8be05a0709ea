"""The README's table and the image beside it, of the committed results: `python benchmarks/readme_table.py`.

Run it after `python benchmarks/reproduce_table.py`; a test fails where the README says something else than the results.
"""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

from harness.measure import RESULTS, Row

import fpg_zoo
from fpg_zoo.evaluation.benchmark import RANDOM
from fpg_zoo.files import atomic_write
from table.cells import first_checkpoint
from table.scatter import Panel, Point, drawn
from table.text import costs_of, table_of

ROOT = Path(__file__).resolve().parents[2]
README, SCATTER = ROOT / "README.md", ROOT / "docs" / "table.svg"
BEGIN, END = "<!-- table: python benchmarks/readme_table.py -->", "<!-- end of table -->"
_COCO = "*_r50_*"


class Metrics:
    """What a table says, by checkpoint and metric."""

    def __init__(self, table: dict[str, Any]) -> None:
        self.environment: dict[str, Any] = table["environment"]
        self._rows: dict[tuple[str, str], Row] = {(row["model"], row["figure"]): row for row in table["rows"]}

    def of(self, name: str, figure: str, field: str = "measured") -> Any:
        """A field of the row of an architecture's first checkpoint; None where there is none."""
        return self._rows.get((first_checkpoint(name).name, figure), {}).get(field)

    @property
    def where(self) -> str:
        """What speed was measured on."""
        at = self.environment
        if at["device"] == "cpu":
            return f"{at['processor']}, {at['threads']} threads, torch {at['torch'].partition('+')[0]}"
        return f"{at['device']}, torch {at['torch'].partition('+')[0]}"


def in_order() -> list[str]:
    """The architectures as the published table has them, the small ones last."""
    return [*fpg_zoo.list_models(_COCO), *fpg_zoo.list_models(exclude=_COCO)]


def table_text(metrics: Metrics) -> str:
    """A table in Markdown for each data set that AP is of, and what a reader has to know of the metrics."""
    heads = ["name", "method", "neck", "box AP", "measured", "mask AP", "measured"]
    heads += ["training, GB", "memory, MB", "predicted", "parameters, M", "GFLOPs", "activations, M"]
    heads += ["fps", "fps, optimized", "tags"]
    sections: dict[str, list[list[str]]] = {}
    for name in in_order():
        info = fpg_zoo.model_info(name)
        first = first_checkpoint(name)
        line = [f"`{name}`", info.method, info.neck]
        line += [_formatted(first.box_ap), _formatted(metrics.of(name, "box AP"), 2)]
        line += [_formatted(first.mask_ap), _formatted(metrics.of(name, "mask AP"), 2)]
        line += [_formatted(first.memory_gb), _formatted(metrics.of(name, "inference memory"), 0), *costs_of(name)]
        line += [_formatted(metrics.of(name, "fps"), 2), _formatted(metrics.of(name, "fps optimized"), 2)]
        sections.setdefault(first.data, []).append([*line, ", ".join(f"`{tag}`" for tag in info.tags)])
    tables = "\n".join(f"AP on {data}:\n\n{table_of(heads, lines)}" for data, lines in sections.items())
    at_random = sum(metrics.of(name, "fps", "weights") == RANDOM for name in in_order())
    note = (
        "AP in percent, as published with the first tag (`name.tag` selects another): of the `r50` models with the "
        "longest side 640, after 50 epochs; `fpg_zoo.data.shapes` are the zoo's own drawn scenes. Training: published "
        "peak of a GPU at 8 images. Predicted memory, parameters, FLOPs and activations are counted, with 80 classes, "
        "as `fpg-zoo info` does. Memory, of weights and a pass, and fps: batch 1, 640x640 (nano: 384x384), "
        f"float32, from pixels to detections with masks, on {metrics.where}; random weights in {at_random} of "
        f"{len(in_order())} rows. Blank: not measured. [docs/benchmarks.md](docs/benchmarks.md) has the command that "
        "measures it all again."
    )
    return f"{tables}\n{textwrap.fill(note, 120, break_long_words=False, break_on_hyphens=False)}\n"


def _formatted(value: float | None, digits: int | None = None) -> str:
    if value is None:
        return ""
    return str(value) if digits is None else f"{value:.{digits}f}"


def scatter(metrics: Metrics) -> str:
    """Published AP on COCO against measured speed and memory, as SVG."""

    def points(figure: str) -> list[Point]:
        points_of = []
        for name in fpg_zoo.list_models(_COCO):
            info, x = fpg_zoo.model_info(name), metrics.of(name, figure)
            ap = first_checkpoint(name).box_ap
            if x is not None and ap is not None:
                points_of.append(Point(info.method, info.neck, ap, x))
        return points_of

    panels = (
        Panel("Box AP against speed", "images per second", points("fps")),
        Panel("Box AP against memory", "MB of weights and a pass", points("inference memory")),
    )
    return drawn(panels, f"AP as published, COCO val2017. Batch 1, 640x640, float32, {metrics.where}.")


def with_table(readme: str, table: str) -> str:
    """The README with this table between its markers.

    Raises:
        ValueError: the markers are not there.
    """
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"the README has no lines {BEGIN} and {END}")
    return f"{before}{begin}\n{table}{end}{after}"


def main() -> int:
    metrics = Metrics(json.loads((RESULTS / "table" / "table.json").read_text(encoding="utf-8")))
    readme = with_table(README.read_text(encoding="utf-8"), table_text(metrics))
    for target, text in ((README, readme), (SCATTER, scatter(metrics))):
        with atomic_write(target) as temporary:
            temporary.write_text(text, encoding="utf-8")
        print(target.relative_to(ROOT))
    return 0
