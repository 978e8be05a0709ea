"""`fpg-zoo data show`: images as they are trained on."""

from __future__ import annotations

import argparse
import functools
import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from fpg_zoo.cli.exit_codes import DONE
from fpg_zoo.cli.printing import print_line, print_lines
from fpg_zoo.config.training import PRESETS, AugmentConfig, preset_named
from fpg_zoo.errors import ConfigError

if TYPE_CHECKING:
    from fpg_zoo.data.dataset import Dataset


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Enter them into the parser."""
    parts = commands.add_parser("data", help="look at a data set").add_subparsers(required=True, metavar="COMMAND")
    command = parts.add_parser(
        "show",
        help="a page of images as they are trained on",
        description="The first images of a run with this seed, with their masks, boxes and class names.",
    )
    command.add_argument("--data", required=True, type=Path, metavar="DIR", help="as of train; or: shapes")
    command.add_argument("--split", metavar="S", help="of DIR (default: train, or all images without splits)")
    command.add_argument(
        "--allow-losses", action="store_true", help="go on where more than one annotation in ten cannot be used"
    )
    command.add_argument(
        "--augment", default="recipe", metavar="PRESET", help=f"{', '.join(PRESETS)} (default: recipe)"
    )
    command.add_argument("--seed", type=int, default=0, metavar="N", help="of everything random (default: 0)")
    command.add_argument("--count", type=int, default=12, metavar="N", help="images on the page (default: 12)")
    command.add_argument("--output", required=True, type=Path, metavar="F", help="the page to write, .png or .html")
    command.set_defaults(run=_show)


def _show(options: argparse.Namespace) -> int:
    augment = preset_named(options.augment, AugmentConfig())
    from fpg_zoo.data.loader import train_samples
    from fpg_zoo.data.preview import MOST_IMAGES, check_page, write_page

    if not 1 <= options.count <= MOST_IMAGES:
        raise ConfigError(f"--count {options.count}: a page takes 1 to {MOST_IMAGES} images")
    dataset, inputs = _dataset(options)
    check_page(options.output, inputs)
    samples = list(itertools.islice(train_samples(dataset, augment, seed=options.seed), options.count))
    title = f"{options.data}, augmentation {options.augment}, seed {options.seed}"
    write_page(options.output, samples, dataset.class_names, crop=augment.crop, title=title)
    print_line(f"written: {options.output}")
    return DONE


def _dataset(options: argparse.Namespace) -> tuple[Dataset, Iterable[Path]]:
    """What `train` trains on, with masks where there are any; and the files that it is read from."""
    from fpg_zoo.data.open_split import open_train
    from fpg_zoo.data.shapes import ShapesDataset

    opened = functools.partial(open_train, options.data, split=options.split, allow_losses=options.allow_losses)
    try:
        dataset = opened(masks=True)
    except ConfigError:  # there may be no mask; anything else that is wrong is raised again
        dataset = opened(masks=False)
    if isinstance(dataset, ShapesDataset):
        return dataset, ()
    print_lines(dataset.summary(), to_stderr=True)
    images = (dataset.image_info(index).file for index in range(len(dataset)))
    return dataset, itertools.chain((dataset.annotation_file,), images)
