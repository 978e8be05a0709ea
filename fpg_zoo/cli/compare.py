"""`fpg-zoo compare`: two results files on the same images, and how sure their difference is."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

from fpg_zoo.cli.exit_codes import DONE
from fpg_zoo.cli.printing import print_line, print_lines
from fpg_zoo.errors import ConfigError
from fpg_zoo.files import check_writable
from fpg_zoo.text import printable


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Enter it into the parser."""
    command = commands.add_parser("compare", help="AP of two COCO results files side by side, with 95 %% intervals")
    command.add_argument("first", type=Path, metavar="A.json", help="detections")
    command.add_argument("second", type=Path, metavar="B.json", help="detections in the same images")
    command.add_argument("--annotations", type=Path, required=True, metavar="F", help="the ground truth of both")
    command.add_argument("--resamples", type=int, metavar="N", help="draws of the images (default: 1000)")
    command.add_argument("--seed", type=int, default=0, metavar="N", help="of the draws (default: 0)")
    command.add_argument(
        "--allow-losses", action="store_true", help="go on where more than one annotation in ten cannot be used"
    )
    command.add_argument("--json", type=Path, metavar="F", help="write the comparison")
    command.set_defaults(run=_compare)


def _compare(options: argparse.Namespace) -> int:
    if options.json is not None:
        check_writable(options.json.parent)
    from fpg_zoo.evaluation.coco_metrics import IOU_TYPES, iou_types_with_objects, scores_by_type
    from fpg_zoo.evaluation.intervals import RESAMPLES, check_draws, difference_intervals
    from fpg_zoo.evaluation.results_file import read_results
    from fpg_zoo.files import atomic_write

    resamples = RESAMPLES if options.resamples is None else options.resamples
    check_draws(resamples, options.seed)
    files = (options.first, options.second)
    read = [read_results(file, options.annotations, allow_losses=options.allow_losses) for file in files]
    annotations, _, _, report = read[0]
    if report:
        print_lines("\n".join([f"{options.annotations}:", *(f"  {line}" for line in report.lines())]), to_stderr=True)
    common = [one for one in read[0][2] if one in read[1][2]]
    iou_types = iou_types_with_objects(common, annotations)
    if not iou_types:
        raise ConfigError(f"{options.first} and {options.second}: one has boxes and the other masks alone")
    scores = [scores_by_type(iou_types, annotations, rows) for _, rows, _, _ in read]
    before, after = (
        {kind: one.matches for kind, one in of_file.items() if one.matches is not None} for of_file in scores
    )
    reach = difference_intervals(before, after, resamples=resamples, seed=options.seed)
    content = {}
    for kind in iou_types:
        first, second = (of_file[kind] for of_file in scores)
        rows = _rows(first.metrics, second.metrics, reach[kind])
        classes = _rows(first.classes, second.classes, {})
        _print(f"{IOU_TYPES[kind]}", rows)
        _print(f"{IOU_TYPES[kind]} AP of class", classes)
        content[IOU_TYPES[kind]] = {"metrics": rows, "classes": classes}
    if options.json is not None:
        with atomic_write(options.json) as temporary:
            temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        print_line(f"written: {options.json}")
    return DONE


Row = dict[str, float | None]


def _rows(
    first: Mapping[str, float | None], second: Mapping[str, float | None], reach: Mapping[str, tuple[float, float]]
) -> dict[str, Row]:
    """Of each name both values, their difference, and its interval where there is one."""
    rows: dict[str, Row] = {}
    for name, before in first.items():
        after = second[name]
        difference = None if before is None or after is None else after - before
        rows[name] = {"first": before, "second": after, "difference": difference}
        if name in reach:
            rows[name] |= {"lower": reach[name][0], "upper": reach[name][1]}
    return rows


def _print(title: str, rows: dict[str, Row]) -> None:
    labels = {name: printable(name) for name in rows}
    width = max(map(len, (title, *labels.values())))
    print_line(f"{title.ljust(width)}      A      B  B - A")
    for name, row in rows.items():
        values = ("-" if row[key] is None else f"{row[key]:.3f}" for key in ("first", "second"))
        difference = "-" if row["difference"] is None else f"{row['difference']:+.3f}"
        interval = f"  (95 %: {row['lower']:+.3f} to {row['upper']:+.3f})" if "lower" in row else ""
        print_line(
            f"{labels[name].ljust(width)} {' '.join(one.rjust(6) for one in values)} {difference.rjust(6)}{interval}"
        )
    print_line()
