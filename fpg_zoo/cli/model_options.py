"""The options of several commands: which model, and checks of their numbers."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

from fpg_zoo.errors import ConfigError
from fpg_zoo.inference.exported.formats import format_of
from fpg_zoo.text import printable

MODEL_HELP = (
    "NAME or NAME.TAG, as `fpg-zoo list` has them; a family, with --backbone; local-dir:FOLDER or hf-hub:OWNER/REPO"
)
EXPORTED_HELP = "Or an exported file: .onnx, .pt2, .xml"


def add_architecture(command: argparse.ArgumentParser) -> None:
    """Enter the options that say what a model is made of beside its name."""
    command.add_argument(
        "--backbone",
        metavar="B",
        help="of a family (a name of `fpg-zoo list` without r50): resnet18, resnet101, ... or timm:NAME",
    )
    command.add_argument(
        "--config",
        type=Path,
        metavar="F",
        help="a TOML or JSON file of a detector of your own: all of it, or what differs from a named one",
    )


def add_trained_model(command: argparse.ArgumentParser, *, exported: bool) -> None:
    """Enter the options of a model with weights; `exported` ones may be named, too."""
    files = f". {EXPORTED_HELP}" if exported else ""
    command.add_argument(
        "--model", metavar="NAME", help=f"{MODEL_HELP}; published weights unless --checkpoint is given{files}"
    )
    add_architecture(command)
    add_checkpoint(command)


def add_checkpoint(command: argparse.ArgumentParser) -> None:
    """Enter the option of weights of one's own."""
    command.add_argument("--checkpoint", type=Path, metavar="F", help="weights to use instead; tells the model, too")


def trained_model_arguments(options: argparse.Namespace) -> dict[str, Any]:
    """What `open_model` takes for a model with weights: the published ones, those of `--checkpoint`, or a file's own.

    Raises:
        ConfigError: there are no weights.
        UnknownNameError: no such model, or it has no published weights.
    """
    from fpg_zoo.models.factory import check_source

    if options.model is not None and format_of(options.model) is not None:
        return {name: getattr(options, name) for name in ("backbone", "config", "checkpoint")} | {"name": options.model}
    own = options.backbone is not None or options.config is not None
    if options.checkpoint is None:
        if own:
            raise ConfigError(
                f"{'--config' if options.config else '--backbone'}: a detector of your own has no published weights; "
                "give its own by --checkpoint"
            )
        check_source(options.model)
    return {
        "name": options.model,
        "backbone": options.backbone,
        "config": options.config,
        "checkpoint": options.checkpoint,
        "pretrained": options.checkpoint is None,
    }


def image_size(text: str) -> tuple[int, int]:
    """(height, width) of an option that takes `N`, the side of a square, or `HxW`, for argparse."""
    sides = re.fullmatch(r"([1-9]\d{0,5})(?:x([1-9]\d{0,5}))?", text)
    if sides is None:
        raise argparse.ArgumentTypeError(f"{printable(text)}: it takes N or HxW in pixels, as 640 or 480x640")
    return int(sides[1]), int(sides[2] or sides[1])


def check_least(options: argparse.Namespace, **least: int) -> None:
    """Refuse an option, by its name, that is less than it takes at least; None is not looked at.

    Raises:
        ConfigError: with the option, its value and the least one.
    """
    for name, bound in least.items():
        value = getattr(options, name)
        if value is not None and value < bound:
            raise ConfigError(f"--{name.replace('_', '-')} {value}: it takes at least {bound}")
