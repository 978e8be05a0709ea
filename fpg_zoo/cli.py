"""The command `fpg-zoo`: parse and print, nothing else.

Exit codes: 0 done, 1 done but for what was reported, 2 refused, 130 interrupted.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from fpg_zoo.errors import ConfigError, FPGZooError, UnknownNameError
from fpg_zoo.version import __version__

DONE, INCOMPLETE, REFUSED, INTERRUPTED = 0, 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; `arguments` default to the process's. Returns the exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file name may hold what the terminal cannot show
    options = _parser().parse_args(arguments)
    try:
        code = int(options.run(options))
        sys.stdout.flush()  # here, where a reader that has gone is handled
        return code
    except FPGZooError as error:
        return _refuse(str(error))
    except BrokenPipeError:
        _flush_or_drop()
        return DONE  # the reader (`head`, say) has what it wanted
    except OSError as error:
        _flush_or_drop()
        return _refuse(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except KeyboardInterrupt:
        print("fpg-zoo: interrupted", file=sys.stderr)
        return INTERRUPTED


def _flush_or_drop() -> None:
    """Empty standard output; what cannot be written goes nowhere, or Python would complain of it again at exit."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _refuse(message: str) -> int:
    print(f"fpg-zoo: {message}", file=sys.stderr)
    return REFUSED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fpg-zoo", description="The published Feature Pyramid Grids detectors.")
    parser.add_argument("--version", action="version", version=f"fpg-zoo {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser("list", help="the models of the zoo")
    command.add_argument("pattern", nargs="*", metavar="PATTERN", help="names to list, as in 'mask*' (default: all)")
    command.add_argument("--pretrained", action="store_true", help="only those with a published checkpoint")
    command.add_argument("--json", action="store_true", help="as JSON")
    command.set_defaults(run=_list)

    command = commands.add_parser("info", help="all about one model")
    command.add_argument("name", metavar="NAME", help="NAME or NAME.TAG")
    command.set_defaults(run=_info)

    command = commands.add_parser("download", help="fetch, verify and convert published checkpoints into the cache")
    command.add_argument("names", nargs="+", metavar="NAME", help="NAME or NAME.TAG")
    command.set_defaults(run=_download)

    command = commands.add_parser("verify", help="hash a checkpoint file, or all of the cache, and compare")
    command.add_argument("file", nargs="?", type=Path, metavar="FILE", help="default: every file of the cache")
    command.set_defaults(run=_verify)

    command = commands.add_parser("convert", help="a checkpoint in the reference's format to safetensors")
    command.add_argument("file", type=Path, metavar="FILE.pth")
    command.add_argument("out", type=Path, metavar="OUT", help="a file ending in .safetensors, or a folder")
    command.set_defaults(run=_convert)

    command = commands.add_parser("predict", help="detect objects in pictures")
    command.add_argument("images", nargs="+", metavar="IMAGES", help="files, folders, glob patterns, URLs")
    command.add_argument("--model", metavar="NAME", help="with its published weights unless --checkpoint is given")
    command.add_argument("--checkpoint", type=Path, metavar="F", help="weights to use instead; tells the model, too")
    command.add_argument("--score", type=float, default=0.3, metavar="S", help="least score, 0..1 (default: 0.3)")
    command.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="for annotated pictures (default: predictions, if --json is not given)",
    )
    command.add_argument("--json", type=Path, metavar="F", help="write detections as a COCO results file")
    command.add_argument("--device", default="cpu", metavar="D", help="cpu, cuda, cuda:1, mps (default: cpu)")
    command.set_defaults(run=_predict)
    return parser


def _list(options: argparse.Namespace) -> int:
    from fpg_zoo.factory import list_models, model_info
    from fpg_zoo.weights.manifest import nearest

    names = list_models(*options.pattern, pretrained=options.pretrained)
    if not names and list_models(*options.pattern):
        raise UnknownNameError(f"no model that matches {' '.join(options.pattern)} has a published checkpoint")
    if not names:
        raise UnknownNameError(
            f"no model matches {' '.join(options.pattern)}: {nearest(options.pattern[0], list_models())}"
        )
    infos = [model_info(name) for name in names]
    if options.json:
        rows = [
            {
                "name": info.name,
                "method": info.method,
                "neck": info.neck,
                "checkpoints": [
                    {"tag": entry.tag, "box_ap": entry.box_ap, "mask_ap": entry.mask_ap, "memory_gb": entry.memory_gb}
                    for entry in info.checkpoints
                ],
            }
            for info in infos
        ]
        print(json.dumps(rows, indent=1))
        return DONE
    table: list[tuple[str, ...]] = [("name", "method", "neck", "box AP", "mask AP", "mem GB", "tags")]
    for info in infos:
        best = info.checkpoints[0] if info.checkpoints else None
        figures = (best.box_ap, best.mask_ap, best.memory_gb) if best else (None, None, None)
        table.append((info.name, info.method, info.neck, *map(_figure, figures), ", ".join(info.tags) or "-"))
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return DONE


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _info(options: argparse.Namespace) -> int:
    from fpg_zoo.factory import model_info
    from fpg_zoo.weights.manifest import load_manifest

    info = model_info(options.name)
    config = info.config
    print(f"{info.name}: {info.method} with {info.neck}")
    print(f"  parameters    {info.parameters:,}")
    print(f"  backbone      {config.backbone}")
    print(f"  neck          {type(config.neck).__name__}, start {config.neck.start}, width {config.neck.width}")
    print(f"  preprocess    {config.preprocess}")
    print(f"  classes       {len(config.class_names)}: {', '.join(config.class_names[:4])}, ...")
    if not info.checkpoints:
        print("  checkpoints   none published")
    for entry in info.checkpoints:
        print(f"  {entry.name}")
        print(f"    published   box AP {_figure(entry.box_ap)}, mask AP {_figure(entry.mask_ap)}, ", end="")
        print(f"training memory {_figure(entry.memory_gb)} GB, fps {_figure(entry.fps)}")
        print(f"    file        {entry.url}")
        print(f"    SHA-256     {entry.sha256}...")
        print(f"    licence     {entry.licence}")
        print(f"    recipe      {entry.recipe}: {load_manifest().recipes[entry.recipe]}")
        for label, value in (("config", entry.config_url), ("log", entry.log_url), ("note", entry.note)):
            if value:
                print(f"    {label:<11} {value}")
    return DONE


def _download(options: argparse.Namespace) -> int:
    from fpg_zoo.factory import model_info, published

    entries = [published(name) for name in options.names]  # a misspelt name is told before anything is fetched
    from fpg_zoo.loading import fetch

    for entry in entries:
        print(f"{entry.name}: {fetch(entry, model_info(entry.architecture).config)}", flush=True)
    return DONE


def _verify(options: argparse.Namespace) -> int:
    from fpg_zoo.weights.store import Store, verify_file

    verdicts = [verify_file(options.file)] if options.file else Store().verify()
    checked, bad = 0, 0
    for verdict in verdicts:
        print(f"{verdict.state:<8} {verdict.path}  {verdict.detail}".rstrip(), flush=True)
        checked += 1
        bad += verdict.state != "good"
    if not checked:
        print(f"nothing in the cache {Store().folder}")
    return INCOMPLETE if bad else DONE


def _convert(options: argparse.Namespace) -> int:
    from fpg_zoo.factory import create_model
    from fpg_zoo.files import sha256_of
    from fpg_zoo.model_files import save

    if options.out.suffix in (".pth", ".pt", ".ckpt", ".bin"):
        raise ConfigError(f"{options.out}: convert writes safetensors; name a file ending so, or a folder")
    if options.file.is_dir():
        raise ConfigError(f"{options.file}: a folder; convert takes a checkpoint file")
    model = create_model(checkpoint=options.file)
    digest = sha256_of(options.file)
    save(model, options.out, {"source_file": options.file.name, "source_sha256": digest})
    tensors = len(model.state_dict())
    print(f"{options.out}: {model.name}, {len(model.class_names)} classes, {tensors} tensors (from SHA-256 {digest})")
    return DONE


def _predict(options: argparse.Namespace) -> int:
    if not 0 <= options.score <= 1:
        raise ConfigError(f"--score {options.score}: a score lies in 0..1")
    if options.model is None and options.checkpoint is None:
        raise ConfigError("no model: give --model NAME (`fpg-zoo list` has the names) or --checkpoint FILE")
    from PIL import Image

    from fpg_zoo.images import find_images
    from fpg_zoo.prediction_files import predict_files

    # From 89 million pixels on Pillow warns that a picture may be an attack; it refuses from twice that.
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    files = find_images(options.images)
    output = options.output
    if output is None and options.json is None:
        output = Path("predictions")
    summary = predict_files(
        files,
        model_name=options.model,
        checkpoint=options.checkpoint,
        device=options.device,
        score=options.score,
        output=output,
        results=options.json,
    )
    if output is not None and summary.detected:
        print(f"written: {output}")
    if options.json is not None:
        print(f"written: {options.json}")
    print(f"{summary.detected} of {len(files)} pictures, {summary.objects} objects")
    return INCOMPLETE if summary.skipped else DONE


if __name__ == "__main__":
    sys.exit(main())
