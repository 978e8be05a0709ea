"""`fpg-zoo predict`: images in, detections out."""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

from fpg_zoo.cli.exit_codes import DONE, INCOMPLETE
from fpg_zoo.cli.model_options import add_trained_model, trained_model_arguments
from fpg_zoo.cli.printing import print_line
from fpg_zoo.errors import ConfigError
from fpg_zoo.text import printable


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Enter it into the parser."""
    command = commands.add_parser("predict", help="detect objects in images")
    command.add_argument(
        "images", nargs="+", metavar="IMAGES", help="files, folders (without subfolders), glob patterns, URLs"
    )
    add_trained_model(command, exported=True)
    command.add_argument("--score", type=float, default=0.3, metavar="S", help="least score, 0..1 (default: 0.3)")
    command.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="for annotated images (default: predictions, if --json is not given); those of earlier runs are not read "
        "from folders and patterns",
    )
    command.add_argument("--json", type=Path, metavar="F", help="write detections as a COCO results file")
    command.add_argument("--device", default="cpu", metavar="D", help="cpu, cuda, cuda:1, mps (default: cpu)")
    command.set_defaults(run=_predict)


def _predict(options: argparse.Namespace) -> int:
    if not 0 <= options.score <= 1:
        raise ConfigError(f"--score {options.score}: a score lies in 0..1")
    if options.model is None and options.config is None and options.checkpoint is None:
        raise ConfigError("no model: give --model NAME (`fpg-zoo list` has the names) or --checkpoint FILE")
    from fpg_zoo.inference.predict_files import predict_files
    from fpg_zoo.structures.images import counted, search_images

    # Of damaged metadata, and that an image may be an attack, from 89 million pixels on; it refuses from twice that.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    files, passed_over = search_images(options.images)
    for source, types in passed_over.items():
        print_line(f"{printable(source)}: passed over {counted(types)}", to_stderr=True)
    output = options.output
    if output is None and options.json is None:
        output = Path("predictions")
    summary = predict_files(
        files,
        model_arguments=trained_model_arguments(options),
        device=options.device,
        score=options.score,
        output=output,
        results=options.json,
    )
    if output is not None and summary.detected:
        print_line(f"written: {output}")
    if options.json is not None:
        print_line(f"written: {options.json}")
    print_line(f"{summary.detected} of {len(files)} images, {summary.objects} objects")
    return INCOMPLETE if summary.skipped else DONE
