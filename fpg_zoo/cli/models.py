"""`fpg-zoo list` and `fpg-zoo info`: what is in the zoo."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from fpg_zoo.cli.exit_codes import DONE
from fpg_zoo.cli.model_options import MODEL_HELP, add_architecture, image_size
from fpg_zoo.cli.printing import print_line, print_lines
from fpg_zoo.errors import ConfigError, UnknownNameError
from fpg_zoo.text import printable, quoted

if TYPE_CHECKING:
    from fpg_zoo.config import NeckConfig
    from fpg_zoo.models.factory import ModelInfo
    from fpg_zoo.weights.manifest import Published


class _Column(NamedTuple):
    """A column of the list: its head, its value of a model as JSON has it, and how it is printed."""

    head: str
    value: Callable[[ModelInfo], Any]
    text: Callable[[Any], str]


_AP = "ap"  # box and mask AP, in columns of their own for each data set
_COLUMNS = {
    "method": _Column("method", lambda info: info.method, str),
    "neck": _Column("neck", lambda info: info.neck, str),
    "backbone": _Column("backbone", lambda info: info.config.backbone.label, str),
    "image_size": _Column("size", lambda info: info.config.preprocess.square_size, lambda size: "{}x{}".format(*size)),
    "parameters": _Column("params M", lambda info: info.cost().parameters, lambda value: f"{value / 1e6:.2f}"),
    "flops": _Column("GFLOPs", lambda info: info.cost().flops, lambda value: f"{value / 1e9:.1f}"),
    "activations": _Column("activations M", lambda info: info.cost().activations, lambda value: f"{value / 1e6:.1f}"),
    "memory": _Column("memory MB", lambda info: info.cost().memory, lambda value: f"{value / 1e6:.0f}"),
    "training_memory": _Column(
        "training GB",
        lambda info: info.checkpoints[0].memory_gb if info.checkpoints else None,
        lambda value: _figure(value),
    ),
    "tags": _Column("tags", lambda info: info.tags, lambda tags: ", ".join(tags) or "-"),
}
_DEFAULT_COLUMNS = ("method", "neck", _AP, "training_memory", "tags")


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Enter them into the parser."""
    command = commands.add_parser("list", help="the models of the zoo")
    command.add_argument("pattern", nargs="*", metavar="PATTERN", help="names to list, as in 'mask*' (default: all)")
    command.add_argument("--pretrained", action="store_true", help="only those with a published checkpoint")
    command.add_argument(
        "--columns",
        metavar="C,...",
        help=f"what to tell, of {', '.join([_AP, *_COLUMNS])} (default: {','.join(_DEFAULT_COLUMNS)}); costs are for "
        "one image of the model's own size",
    )
    command.add_argument("--json", action="store_true", help="as JSON")
    command.set_defaults(run=_list)

    command = commands.add_parser("info", help="all about one model")
    command.add_argument("name", nargs="?", metavar="MODEL", help=MODEL_HELP)
    add_architecture(command)
    command.add_argument(
        "--image-size",
        type=image_size,
        metavar="N",
        help="what it costs for one image of N or HxW pixels (default: the model's own size)",
    )
    command.add_argument("--json", action="store_true", help="as JSON")
    command.set_defaults(run=_info)


def _list(options: argparse.Namespace) -> int:
    from fpg_zoo.models.factory import list_models, model_info
    from fpg_zoo.weights.manifest import nearest

    columns = None if options.columns is None else _checked(options.columns)
    names = list_models(*options.pattern, pretrained=options.pretrained)
    if not names and list_models(*options.pattern):
        raise UnknownNameError(
            f"no model that matches {printable(' '.join(options.pattern))} has a published checkpoint"
        )
    if not names:
        raise UnknownNameError(
            f"no model matches {printable(' '.join(options.pattern))}: {nearest(options.pattern[0], list_models())}"
        )
    infos = [model_info(name) for name in names]
    if options.json:
        rows = [_described(info) if columns is None else _as_json(info, columns) for info in infos]
        print_lines(json.dumps(rows, indent=1))
        return DONE
    table = list(zip(*_table(infos, columns or _DEFAULT_COLUMNS), strict=True))
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        print_line("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return DONE


def _checked(text: str) -> list[str]:
    """The columns of `--columns`.

    Raises:
        ConfigError: there is no such column.
    """
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name != _AP and name not in _COLUMNS:
            raise ConfigError(f"--columns: no column {quoted(name)}: known are {', '.join([_AP, *_COLUMNS])}")
    return names


def _table(infos: Sequence[ModelInfo], columns: Sequence[str]) -> list[list[str]]:
    """The columns of text, each with its head first."""
    texts = [["name", *(info.name for info in infos)]]
    for name in columns:
        if name == _AP:
            texts += _ap_columns(infos)
        else:
            column = _COLUMNS[name]
            texts.append([column.head, *(column.text(column.value(info)) for info in infos)])
    return texts


def _ap_columns(infos: Sequence[ModelInfo]) -> list[list[str]]:
    """AP of each model's first checkpoint, a column for each data set and kind; none where nothing was published."""
    firsts = [info.checkpoints[0] if info.checkpoints else None for info in infos]
    data_sets = dict.fromkeys(entry.data_set for entry in firsts if entry is not None)
    texts = []
    for data_set in sorted(data_sets):
        for kind in ("box", "mask"):
            values = [
                None if entry is None or entry.data_set != data_set else getattr(entry, f"{kind}_ap")
                for entry in firsts
            ]
            if any(value is not None for value in values):
                texts.append([f"{data_set} {kind} AP", *map(_figure, values)])
    return texts


def _as_json(info: ModelInfo, columns: Sequence[str]) -> dict[str, Any]:
    first = info.checkpoints[0] if info.checkpoints else None
    ap = {} if first is None else {first.data: {"box_ap": first.box_ap, "mask_ap": first.mask_ap}}
    return {"name": info.name, **{name: ap if name == _AP else _COLUMNS[name].value(info) for name in columns}}


def _described(info: ModelInfo) -> dict[str, Any]:
    return {
        "name": info.name,
        "method": info.method,
        "neck": info.neck,
        "checkpoints": [
            {"tag": entry.tag, "box_ap": entry.box_ap, "mask_ap": entry.mask_ap, "memory_gb": entry.memory_gb}
            for entry in info.checkpoints
        ],
    }


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _info(options: argparse.Namespace) -> int:
    from fpg_zoo.config.serialization import to_dict
    from fpg_zoo.models.factory import model_info
    from fpg_zoo.weights.manifest import load_manifest

    if options.name is None and options.config is None:
        raise ConfigError("no model: give MODEL (`fpg-zoo list` has the names) or --config FILE")
    info = model_info(options.name, backbone=options.backbone, config=options.config)
    recipes = load_manifest().recipes
    cost = info.cost(options.image_size)
    height, width = options.image_size or info.config.preprocess.square_size
    if options.json:
        content = {
            "name": info.name,
            "method": info.method,
            "neck": info.neck,
            "image_size": [height, width],
            **dataclasses.asdict(cost),
            "config": to_dict(info.config),
            "checkpoints": [
                {**dataclasses.asdict(entry), "name": entry.name, "recipe_text": recipes[entry.recipe]}
                for entry in info.checkpoints
            ],
        }
        print_lines(json.dumps(content, indent=1))
        return DONE
    config = info.config
    print_line(f"{info.name}: {info.method} with {info.neck}")
    print_line(f"  parameters    {cost.parameters:,}")
    print_line(f"  FLOPs         {cost.flops / 1e9:,.1f} G for an image of {height}x{width}")
    print_line(f"  activations   {cost.activations / 1e6:,.1f} M")
    print_line(f"  memory        {cost.memory / 1e6:,.0f} MB of weights and tensors, predicted; kernels take more")
    print_line(f"  backbone      {config.backbone.label}, strides {', '.join(map(str, config.backbone.strides))}")
    print_line(f"  neck          {_briefly(config.neck)}")
    print_line(f"  preprocess    {config.preprocess}")
    print_line(f"  classes       {len(config.class_names)}: {', '.join(config.class_names[:4])}, ...")
    if not info.checkpoints:
        print_line("  checkpoints   none published")
    for entry in info.checkpoints:
        _print_checkpoint(entry, recipes[entry.recipe])
    return DONE


def _briefly(config: NeckConfig) -> str:
    """Its class and those of its fields that are short."""
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}  # type: ignore[arg-type]
    short = [f"{name}={value!r}" for name, value in fields.items() if isinstance(value, (int, float, str))]
    return f"{type(config).__name__}({', '.join(short)})"


def _print_checkpoint(entry: Published, recipe: str) -> None:
    print_line(f"  {entry.name}")
    print_line(
        f"    {entry.data:<11} box AP {_figure(entry.box_ap)}, mask AP {_figure(entry.mask_ap)}, "
        f"training memory {_figure(entry.memory_gb)} GB, fps {_figure(entry.fps)}"
    )
    print_line(f"    file        {entry.url}")
    print_line(f"    SHA-256     {entry.sha256}{'' if len(entry.sha256) == 64 else '...'}")
    print_line(f"    license     {entry.license}")
    print_line(f"    recipe      {entry.recipe}: {recipe}")
    facts = (("config", entry.config_url), ("log", entry.log_url), ("command", entry.command), ("note", entry.note))
    for label, value in facts:
        if value:
            print_line(f"    {label:<11} {value}")
