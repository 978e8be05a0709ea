"""`fpg-zoo list` and `fpg-zoo info`: what is in the zoo."""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import TYPE_CHECKING

from fpg_zoo.cli.exit_codes import DONE
from fpg_zoo.cli.model_options import MODEL_HELP, add_architecture
from fpg_zoo.cli.printing import print_line, print_lines
from fpg_zoo.errors import ConfigError, UnknownNameError
from fpg_zoo.text import printable

if TYPE_CHECKING:
    from fpg_zoo.config import NeckConfig
    from fpg_zoo.weights.manifest import Published


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Enter them into the parser."""
    command = commands.add_parser("list", help="the models of the zoo")
    command.add_argument("pattern", nargs="*", metavar="PATTERN", help="names to list, as in 'mask*' (default: all)")
    command.add_argument("--pretrained", action="store_true", help="only those with a published checkpoint")
    command.add_argument("--json", action="store_true", help="as JSON")
    command.set_defaults(run=_list)

    command = commands.add_parser("info", help="all about one model")
    command.add_argument("name", nargs="?", metavar="MODEL", help=MODEL_HELP)
    add_architecture(command)
    command.add_argument("--json", action="store_true", help="as JSON")
    command.set_defaults(run=_info)


def _list(options: argparse.Namespace) -> int:
    from fpg_zoo.models.factory import list_models, model_info
    from fpg_zoo.weights.manifest import nearest

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
        print_lines(json.dumps(rows, indent=1))
        return DONE
    table: list[tuple[str, ...]] = [("name", "method", "neck", "box AP", "mask AP", "mem GB", "tags")]
    for info in infos:
        best = info.checkpoints[0] if info.checkpoints else None
        metrics = (best.box_ap, best.mask_ap, best.memory_gb) if best else (None, None, None)
        table.append((info.name, info.method, info.neck, *map(_figure, metrics), ", ".join(info.tags) or "-"))
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        print_line("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return DONE


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
    if options.json:
        content = {
            "name": info.name,
            "method": info.method,
            "neck": info.neck,
            "parameters": info.parameters,
            "flops": info.flops,
            "config": to_dict(info.config),
            "checkpoints": [
                {**dataclasses.asdict(entry), "name": entry.name, "recipe_text": recipes[entry.recipe]}
                for entry in info.checkpoints
            ],
        }
        print_lines(json.dumps(content, indent=1))
        return DONE
    config = info.config
    side = config.preprocess.longest_side
    print_line(f"{info.name}: {info.method} with {info.neck}")
    print_line(f"  parameters    {info.parameters:,}")
    print_line(f"  FLOPs         {info.flops / 1e9:,.1f} G for an image of {side}x{side}")
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
