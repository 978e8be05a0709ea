"""The options of several commands that say which model."""

from __future__ import annotations

import argparse
from pathlib import Path

MODEL_HELP = (
    "NAME or NAME.TAG, as `fpg-zoo list` has them; a family, with --backbone; local-dir:FOLDER or hf-hub:OWNER/REPO"
)


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
