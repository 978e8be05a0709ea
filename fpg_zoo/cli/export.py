"""`fpg-zoo export`: a detector as a file for another runtime."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from fpg_zoo.cli.exit_codes import DONE
from fpg_zoo.cli.model_options import add_trained_model, trained_model_arguments
from fpg_zoo.cli.printing import print_line, print_lines
from fpg_zoo.errors import ConfigError
from fpg_zoo.inference.exported.formats import DTYPES, DYNAMIC, FORMATS, INCLUDE, SUFFIXES, format_of
from fpg_zoo.text import printable

if TYPE_CHECKING:
    from fpg_zoo.modeling.detectors import Detector


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Enter it into the parser."""
    command = commands.add_parser(
        "export",
        help="a model as a file for another runtime",
        description="Writes the whole detector, from images to boxes, scores, labels and masks, and compares it with "
        "the model. Where they do not agree, no file is left.",
    )
    add_trained_model(command, exported=False)
    command.add_argument("--format", choices=FORMATS, help="default: what the suffix of --output stands for")
    command.add_argument(
        "--output", type=Path, metavar="F", required=True, help=f"the file to write: {', '.join(SUFFIXES)}"
    )
    command.add_argument("--dtype", choices=DTYPES, default="fp32", help="to compute in (default: fp32)")
    command.add_argument("--size", type=_size, metavar="HxW", help="of the network's input (default: the largest)")
    command.add_argument("--batch", type=int, default=1, metavar="N", help="images in a pass (default: 1)")
    command.add_argument("--dynamic", type=_words, default=(), metavar="LIST", help=f"of {', '.join(DYNAMIC)}")
    command.add_argument("--include", type=_words, default=(), metavar="LIST", help=f"of {', '.join(INCLUDE)}")
    command.add_argument(
        "--check", nargs="+", default=(), metavar="IMAGES", help="images to compare on (default: drawn scenes)"
    )
    command.add_argument(
        "--calibrate",
        nargs="+",
        default=(),
        metavar="IMAGES",
        help="images for the ranges of int8 (default: of --check)",
    )
    command.add_argument("--data", type=Path, metavar="DIR", help="AP of the model and of the file on it, as of eval")
    command.add_argument("--split", metavar="S", help="of DIR (default: val2017, or val if that is there instead)")
    command.add_argument("--limit", type=int, metavar="N", help="its first N images only")
    command.add_argument("--json", action="store_true", help="print what was written and how it agrees as JSON")
    command.set_defaults(run=_export)


def _size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{1,6})x(\d{1,6})", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{printable(text)}: it takes HxW in pixels, as 640x640")
    return int(found[1]), int(found[2])


def _words(text: str) -> tuple[str, ...]:
    return tuple(word for word in text.split(",") if word)


def _export(options: argparse.Namespace) -> int:
    if options.model is None and options.config is None and options.checkpoint is None:
        raise ConfigError("no model: give --model NAME (`fpg-zoo list` has the names) or --checkpoint FILE")
    if options.model is not None and format_of(options.model) is not None:
        raise ConfigError(f"--model {printable(options.model)}: it is exported already; name the model it was made of")
    if options.data is None and (options.split is not None or options.limit is not None):
        raise ConfigError("--split and --limit are of --data DIR: give it, too")
    if options.output.is_dir():
        raise ConfigError(f"--output {printable(options.output)}: a folder; name the file to write")
    arguments = trained_model_arguments(options)
    from fpg_zoo.inference.export import check_export, export
    from fpg_zoo.models.factory import create_model
    from fpg_zoo.structures.images import search_images

    settings = {
        "format": options.format,
        "dtype": options.dtype,
        "batch": options.batch,
        "dynamic": options.dynamic,
        "include": options.include,
    }
    check_export(options.output, **settings)  # before weights are fetched
    warnings.filterwarnings("ignore", module=r"PIL\.")
    images, ranges = (search_images(given)[0] if given else [] for given in (options.check, options.calibrate))
    model = create_model(**arguments)
    if not options.json:
        print_line(f"exporting {model.name}, which takes a minute or two", to_stderr=True)
    exported = export(model, options.output, size=options.size, check=images, calibration=ranges, **settings)
    ap = {} if options.data is None else _precision(model, exported.path, options)
    if options.json:
        print_lines(
            json.dumps(
                {
                    "file": str(exported.path),
                    "bytes": exported.bytes,
                    "description": json.loads(exported.description.to_json()),
                    "agreement": dataclasses.asdict(exported.agreement),
                    "ap": ap,
                },
                indent=1,
            )
        )
        return DONE
    print_line(exported.agreement.line())
    for name, (before, after) in ap.items():
        print_line(f"{name}: the model {before:.4f}, the file {after:.4f}")
    print_line(f"written: {printable(exported.path)}, {exported.bytes / 2**20:.1f} MiB")
    return DONE


def _precision(model: Detector, file: Path, options: argparse.Namespace) -> dict[str, tuple[float, float]]:
    """AP of the model and of the file, by its name; what has no ground truth is left out."""
    from fpg_zoo.data.open_split import open_held_out
    from fpg_zoo.evaluation.detect import categories_of, evaluate, iou_types_of
    from fpg_zoo.inference.exported.detector import ExportedDetector

    data = open_held_out(options.data, options.split, limit=options.limit, masks="segm" in iou_types_of(model))
    category_ids = categories_of(model, data)
    before, after = (evaluate(one, data.dataset, category_ids) for one in (model, ExportedDetector(file)))
    values = {name: (before[name], after[name]) for name in ("box_AP", "mask_AP") if name in before}
    return {name: (one, other) for name, (one, other) in values.items() if one is not None and other is not None}
