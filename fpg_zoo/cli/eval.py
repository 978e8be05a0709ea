"""`fpg-zoo eval`: COCO's metrics of a model on a data set, or of anybody's detections."""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fpg_zoo.cli.exit_codes import DONE
from fpg_zoo.cli.model_options import add_trained_model, check_least, trained_model_arguments
from fpg_zoo.cli.printing import print_line, print_lines
from fpg_zoo.errors import ConfigError
from fpg_zoo.files import check_writable
from fpg_zoo.text import printable

if TYPE_CHECKING:
    from fpg_zoo.evaluation.coco_metrics import IouType, Scores
    from fpg_zoo.evaluation.errors import Errors
    from fpg_zoo.evaluation.intervals import Interval

# Options, without a default.
_OF_A_MODEL = ("model", "backbone", "config", "checkpoint", "data", "split", "limit", "device", "dtype", "save")


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Enter it into the parser."""
    command = commands.add_parser(
        "eval",
        help="box and mask AP of a model on a data set, or of a results file",
        description="Either a model with --data, or with --annotations and --images; or --results with --annotations. "
        "Under torchrun, the images are shared among the processes.",
    )
    add_trained_model(command, exported=True)
    command.add_argument("--data", type=Path, metavar="DIR", help="a data set (docs/data.md), or: shapes")
    command.add_argument("--split", metavar="S", help="of DIR (default: val2017, or val if that is there instead)")
    command.add_argument("--limit", type=int, metavar="N", help="the first N images only")
    command.add_argument("--device", metavar="D", help="cpu, cuda, mps (default: cuda if there is one, else cpu)")
    command.add_argument("--batch-size", type=int, default=8, metavar="N", help="images a pass (default: 8)")
    command.add_argument("--dtype", choices=("bf16",), help="compute in this precision instead of float32")
    command.add_argument(
        "--workers", type=int, metavar="N", help="processes that read images (default: what the processors leave)"
    )
    command.add_argument(
        "--save", type=Path, metavar="RESULTS", help="write detections as a COCO results file; goes on after a kill"
    )
    command.add_argument("--results", type=Path, metavar="RESULTS", help="detections, as a COCO results file")
    command.add_argument(
        "--annotations", type=Path, metavar="F", help="ground truth in COCO's format, in place of --data"
    )
    command.add_argument(
        "--allow-losses", action="store_true", help="go on where more than one annotation in ten cannot be used"
    )
    command.add_argument(
        "--interval",
        type=int,
        nargs="?",
        const=1000,
        metavar="N",
        help="95 %% intervals by so many resamples of the images (default: 1000)",
    )
    command.add_argument("--seed", type=int, default=0, metavar="N", help="of --interval (default: 0)")
    command.add_argument(
        "--errors", action="store_true", help="kinds of errors, and the AP50 that each would give back if fixed"
    )
    command.add_argument(
        "--backend",
        choices=("pycocotools", "faster"),
        default="pycocotools",
        help="what computes AP (default: pycocotools); faster: faster-coco-eval, the same in less time",
    )
    command.add_argument("--json", type=Path, metavar="F", help="write the figures, AP of each class included")
    command.add_argument("--report", type=Path, metavar="F", help="write a page of HTML: curves, confusion, images")
    command.add_argument("--images", type=Path, metavar="DIR", help="the images of --annotations (default: beside it)")
    command.set_defaults(run=_eval)


def _eval(options: argparse.Namespace) -> int:
    if options.interval is not None:
        from fpg_zoo.evaluation.intervals import check_draws

        check_draws(options.interval, options.seed)
    if options.backend != "pycocotools":
        from fpg_zoo.evaluation.coco_metrics import evaluator_of

        if options.interval is not None:
            raise ConfigError(
                f"--interval and --backend {options.backend}: it does not tell its matches, which are resampled; leave "
                "one of them out"
            )
        evaluator_of(options.backend)
    places = [place for place in (options.json, options.save, options.report) if place is not None]
    for place in places:
        if place.is_dir():
            raise ConfigError(f"{place}: a folder; name the file to write")
        if sum(other.absolute() == place.absolute() for other in places) > 1:
            raise ConfigError(f"{place}: two files to write have this name; name another for one of them")
        check_writable(place.parent)
    if options.images is not None and not options.images.is_dir():
        raise ConfigError(f"{options.images}: no such folder; name the one that the annotation file's names start from")
    if options.annotations is None and options.images is not None:
        raise ConfigError("--images DIR: it has the images of --annotations F; give that, too, or leave it out")
    if options.results is None:
        return _eval_model(options)
    if options.annotations is None:
        raise ConfigError("no --annotations: --results RESULTS and --annotations F go together")
    if options.images is not None and options.report is None:
        raise ConfigError("--images DIR: with --results, it has the images of --report F; give that, or leave it out")
    model_options = [f"--{name}" for name in _OF_A_MODEL if getattr(options, name) is not None]
    if model_options:
        raise ConfigError(
            f"--results and {', '.join(model_options)}: detections are there already; leave one of them out"
        )
    return _eval_results(options)


def _eval_results(options: argparse.Namespace) -> int:
    from fpg_zoo.evaluation.coco_metrics import no_mask_note
    from fpg_zoo.evaluation.results_file import read_results

    annotations, rows, iou_types, report = read_results(
        options.results, options.annotations, allow_losses=options.allow_losses
    )
    if report:
        print_lines("\n".join([f"{options.annotations}:", *(f"  {line}" for line in report.lines())]), to_stderr=True)
    if note := no_mask_note(iou_types, annotations):
        print_line(note, to_stderr=True)
    ids = [image["id"] for image in annotations["images"]]
    judged = _judge(iou_types, annotations, rows, options)
    _tell(judged, options.json)
    if options.report is not None:
        from fpg_zoo.evaluation.report.writing import info_of_results, pixels_in, write_report

        about = info_of_results(options.results, options.annotations, options.argv)
        pixels = None if options.images is None else pixels_in(options.images, annotations["images"])
        write_report(options.report, about, annotations, rows, judged.scores, ids, pixels, judged.parts())
        print_line(f"written: {options.report}")
    return DONE


def _eval_model(options: argparse.Namespace) -> int:
    if options.model is None and options.config is None and options.checkpoint is None:
        raise ConfigError(
            "nothing to evaluate: give --model NAME (`fpg-zoo list` has the names) or --checkpoint FILE, or detections "
            "by --results"
        )
    if options.data is None and options.annotations is None:
        raise ConfigError(
            "no images: give --data DIR, a data set (docs/data.md), --data shapes, or --annotations F with --images DIR"
        )
    check_least(options, limit=1, batch_size=1, workers=0)
    import torch

    from fpg_zoo.data.open_split import open_held_out
    from fpg_zoo.data.workers import usable_workers
    from fpg_zoo.distributed import device_of_process, process_group
    from fpg_zoo.evaluation.coco_metrics import no_mask_note
    from fpg_zoo.evaluation.detect import categories_of, detect_all, image_ids_of, iou_types_of, parts_of
    from fpg_zoo.inference.open_model import open_model
    from fpg_zoo.modeling.detectors import Detector

    device = device_of_process(options.device)
    model = open_model(**trained_model_arguments(options), device=device)
    if options.dtype is not None:
        if not isinstance(model, Detector):
            raise ConfigError(f"--dtype {options.dtype}: an exported file has its precision; export it in that one")
        model = model.to(torch.bfloat16)
    iou_types = iou_types_of(model)
    data = open_held_out(
        options.data,
        options.split,
        limit=options.limit,
        masks="segm" in iou_types,
        allow_losses=options.allow_losses,
        annotations=options.annotations,
        images=options.images,
    )
    category_ids = categories_of(model, data)
    parts = parts_of(options.save, model, data) if options.save is not None else None
    with process_group(device) as processes, parts.exclusive(processes) if parts else contextlib.nullcontext():
        if processes.is_main and data.summary is not None:
            print_lines(data.summary, to_stderr=True)
        if processes.is_main and (note := no_mask_note(iou_types, data.annotations)):
            print_line(note, to_stderr=True)
        rows = detect_all(
            model,
            data.dataset,
            category_ids,
            batch_size=options.batch_size,
            workers=usable_workers() if options.workers is None else options.workers,
            processes=processes,
            parts=parts,
        )
        if processes.is_main:
            if parts is not None:
                parts.finish(rows)
            ids = image_ids_of(data.dataset)
            judged = _judge(iou_types, data.annotations, rows, options)
            _tell(judged, options.json)
            if options.save is not None:
                print_line(f"written: {options.save}")
            if options.report is not None:
                from fpg_zoo.evaluation.report.writing import info_of_model, pixels_of, write_report

                about = info_of_model(
                    model,
                    name=options.model,
                    checkpoint=options.checkpoint,
                    data=options.data or options.annotations,
                    split=data.split,
                    arguments=options.argv,
                )
                pixels = pixels_of(data.dataset, data.folder)
                more = judged.parts()
                write_report(options.report, about, data.annotations, rows, judged.scores, ids, pixels, more)
                print_line(f"written: {options.report}")
    return DONE


class _Judged(NamedTuple):
    """What is said of detections, by each kind that an object can be found by."""

    scores: dict[IouType, Scores]
    intervals: dict[IouType, dict[str, Interval]]
    errors: dict[IouType, Errors]

    def parts(self) -> str:
        """What the report has of it besides the scores."""
        from fpg_zoo.evaluation.report import reliability

        return reliability.parts(self.scores, self.intervals, self.errors)


def _judge(
    iou_types: Sequence[IouType],
    annotations: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    options: argparse.Namespace,
) -> _Judged:
    """Of all images of the annotations; intervals and errors where they are asked for."""
    from fpg_zoo.evaluation.coco_metrics import scores_by_type

    judged = _Judged(scores_by_type(iou_types, annotations, rows, backend=options.backend), {}, {})
    if options.errors:
        from fpg_zoo.evaluation.errors import error_breakdown

        ids = [image["id"] for image in annotations["images"]]
        for iou_type in judged.scores:
            judged.errors[iou_type] = error_breakdown(annotations, rows, iou_type, ids)
    if options.interval is not None:
        from fpg_zoo.evaluation.intervals import intervals

        matches = {iou_type: one.matches for iou_type, one in judged.scores.items() if one.matches is not None}
        judged.intervals.update(intervals(matches, resamples=options.interval, seed=options.seed))
    return judged


def _tell(judged: _Judged, file: Path | None) -> None:
    """Print a table of the metrics and one of the classes, intervals and errors; write all to `file`."""
    from fpg_zoo.evaluation.coco_metrics import IOU_TYPES
    from fpg_zoo.files import atomic_write

    if file is not None:
        content: dict[str, dict[str, Any]] = {
            IOU_TYPES[iou_type]: {"figures": one.metrics, "classes": one.classes}
            for iou_type, one in judged.scores.items()
        }
        for iou_type, of_kind in judged.intervals.items():
            content[IOU_TYPES[iou_type]]["intervals"] = of_kind
        for iou_type, errors in judged.errors.items():
            content[IOU_TYPES[iou_type]]["errors"] = {
                kind: {"count": errors.counts[kind], "ap50_gain": gain} for kind, gain in errors.gains.items()
            }
        with atomic_write(file) as temporary:
            temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    labels = [IOU_TYPES[iou_type] for iou_type in judged.scores]
    _print_table("", labels, [one.metrics for one in judged.scores.values()])
    for iou_type, of_kind in judged.intervals.items():
        for name, interval in of_kind.items():
            value = judged.scores[iou_type].metrics[name]
            if value is not None:
                bounds = f"{interval.lower:.3f} to {interval.upper:.3f}"
                print_line(f"{IOU_TYPES[iou_type]} {name} {value:.3f} (95 %: {bounds})")
    print_line()
    if judged.errors:
        _print_errors(labels, list(judged.errors.values()))
    _print_table("AP of class", labels, [one.classes for one in judged.scores.values()])
    if file is not None:
        print_line(f"written: {file}")


def _print_errors(labels: list[str], columns: list[Errors]) -> None:
    width = max(map(len, columns[0].gains))
    print_line(" ".join(["error".ljust(width), *(f"{label.rjust(8)}   AP50" for label in labels)]))
    for kind in columns[0].gains:
        cells = []
        for column in columns:
            gain = column.gains[kind]
            cells.append(f"{column.counts[kind]:8} {'     -' if gain is None else f'{gain:+.3f}'}")
        print_line(" ".join([kind.ljust(width), *cells]))
    print_line()


def _print_table(title: str, labels: list[str], columns: list[dict[str, float | None]]) -> None:
    row_labels = {name: printable(name) for name in columns[0]}  # classes are named by the data
    width = max(map(len, (title, *row_labels.values())))
    print_line(" ".join([title.ljust(width), *(label.rjust(6) for label in labels)]))
    for name, row_label in row_labels.items():
        values = ("-" if value is None else f"{value:.3f}" for value in (column[name] for column in columns))
        print_line(" ".join([row_label.ljust(width), *(value.rjust(6) for value in values)]))
