"""`fpg-zoo predict`: images in, detections out."""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path
from typing import get_args

from fpg_zoo.cli.exit_codes import DONE, INCOMPLETE
from fpg_zoo.cli.model_options import add_trained_model, check_least, trained_model_arguments
from fpg_zoo.cli.printing import print_line
from fpg_zoo.errors import ConfigError
from fpg_zoo.inference.precisions import Precision
from fpg_zoo.text import printable


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Enter it into the parser."""
    command = commands.add_parser("predict", help="detect objects in images and videos")
    command.add_argument(
        "images", nargs="+", metavar="IMAGES", help="files, videos, folders (without subfolders), glob patterns, URLs"
    )
    add_trained_model(command, exported=True)
    command.add_argument("--score", type=float, default=0.3, metavar="S", help="least score, 0..1 (default: 0.3)")
    command.add_argument("--max-detections", type=int, metavar="N", help="give the N best of an image at most")
    looking = command.add_argument_group("how images are looked at")
    looking.add_argument("--slice", type=int, metavar="PX", help="also look at tiles of PX x PX pixels: large images")
    looking.add_argument(
        "--overlap", type=float, default=0.2, metavar="X", help="least share that neighboring tiles have in common"
    )
    looking.add_argument("--no-whole-image", action="store_true", help="with --slice, look at tiles only")
    looking.add_argument("--tta", action="store_true", help="test-time augmentation: three scales, mirrored")
    writing = command.add_argument_group("what is written")
    writing.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="annotated images (default: predictions, if nothing else is written); those of earlier runs are not read "
        "from folders and patterns",
    )
    writing.add_argument("--json", type=Path, metavar="F", help="a COCO results file")
    writing.add_argument("--jsonl", type=Path, metavar="F", help="a line of JSON for each image")
    writing.add_argument("--csv", type=Path, metavar="F", help="a row for each detection")
    writing.add_argument("--yolo", type=Path, metavar="DIR", help="YOLO's label files")
    writing.add_argument("--labelme", type=Path, metavar="DIR", help="labelme's files")
    writing.add_argument("--crops", type=Path, metavar="DIR", help="what is in each box, as images")
    writing.add_argument("--resume", action="store_true", help="go on with a run that was killed")
    computing = command.add_argument_group("how it is computed")
    computing.add_argument(
        "--device",
        metavar="D",
        help="cpu, cuda, cuda:1, mps (default: cuda if there is one, else cpu; of an exported file cpu)",
    )
    computing.add_argument("--batch-size", type=int, default=1, metavar="N", help="images a pass (default: 1)")
    computing.add_argument("--dtype", choices=get_args(Precision), help="compute in this precision")
    computing.add_argument("--optimize", action="store_true", help="use the model's faster inference form")
    computing.add_argument(
        "--compile", action="store_true", help="compile the network, a minute for each new shape of images"
    )
    computing.add_argument(
        "--cudnn-benchmark", action="store_true", help="on CUDA, time cuDNN's algorithms at each new shape of images"
    )
    command.set_defaults(run=_predict)


def _predict(options: argparse.Namespace) -> int:
    _check(options)
    from fpg_zoo.inference.predict_files import Running, predict_files
    from fpg_zoo.inference.result_files import Outputs
    from fpg_zoo.structures.images import counted, search_images

    # Of damaged metadata, and that an image may be an attack, from 89 million pixels on; it refuses from twice that.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    files, passed_over = search_images(options.images)
    for source, types in passed_over.items():
        print_line(f"{printable(source)}: passed over {counted(types)}", to_stderr=True)
    outputs = Outputs(
        annotated=options.output,
        crops=options.crops,
        yolo=options.yolo,
        labelme=options.labelme,
        json=options.json,
        jsonl=options.jsonl,
        csv=options.csv,
    )
    if not outputs.folders and not outputs.files:
        outputs = Outputs(annotated=Path("predictions"))
    summary = predict_files(
        files,
        model_arguments=trained_model_arguments(options),
        outputs=outputs,
        running=Running(
            device=options.device,
            batch_size=options.batch_size,
            dtype=options.dtype,
            optimize=options.optimize,
            compile=options.compile,
            cudnn_benchmark=options.cudnn_benchmark,
            detecting={
                "score": options.score,
                "max_detections": options.max_detections,
                "slice": options.slice,
                "overlap": options.overlap,
                "whole_image": not options.no_whole_image,
                "tta": options.tta,
            },
            resume=options.resume,
        ),
    )
    for place in (*(outputs.folders.values() if summary.detected else ()), *outputs.files.values()):
        print_line(f"written: {place}")
    if summary.resumed:
        print_line(f"{summary.resumed} images are of an earlier run")
    print_line(f"{summary.detected} of {len(files)} images, {summary.objects} objects")
    return INCOMPLETE if summary.skipped else DONE


def _check(options: argparse.Namespace) -> None:
    if not 0 <= options.score <= 1:
        raise ConfigError(f"--score {options.score}: a score lies in 0..1")
    if not 0 <= options.overlap <= 0.9:
        raise ConfigError(f"--overlap {options.overlap}: the share of a tile lies in 0..0.9")
    check_least(options, batch_size=1, max_detections=1, slice=32)
    if options.no_whole_image and options.slice is None:
        raise ConfigError("--no-whole-image: there are no tiles without --slice PX; leave it out")
    if options.model is None and options.config is None and options.checkpoint is None:
        raise ConfigError("no model: give --model NAME (`fpg-zoo list` has the names) or --checkpoint FILE")
