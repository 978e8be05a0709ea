"""The options that the scripts which measure models share."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import fpg_zoo
from fpg_zoo.distributed import device_of_process
from fpg_zoo.errors import ConfigError, FPGZooError, UnknownNameError
from harness.measure import Row, command_line, commit, write
from harness.models import FORMS, is_exported, is_own

TOLD_APART_BY = ("model", "form", "batch", "device", "threads")


def parser_of(description: str | None, *, patterns: Sequence[str] = ("*_r50_*",)) -> argparse.ArgumentParser:
    """A parser of which models, in which forms and batches, on what; `patterns` are the default."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("patterns", nargs="*", default=patterns, metavar="PATTERN", help="of models' names")
    parser.add_argument("--forms", nargs="+", default=list(FORMS), choices=FORMS, help="(default: all)")
    parser.add_argument("--batch", type=int, nargs="+", default=[1], metavar="N", help="images a pass (default: 1)")
    parser.add_argument("--device", metavar="D", help="cpu, cuda, mps (default: cuda if there is one, else cpu)")
    parser.add_argument("--threads", type=int, metavar="N", help="of the CPU (default: torch's choice)")
    return parser


def write_rows(
    name: str,
    rows: Sequence[Row],
    device: str,
    *,
    units: Mapping[str, str],
    identified_by: Sequence[str] = TOLD_APART_BY,
    **inputs: Any,
) -> Path:
    """Write a record whose rows each have their own input; as `harness.write` does; `inputs` is the whole record's."""
    return write(
        name,
        command_line(),
        rows,
        device=device,
        inputs={"what": "of each row, its own", **inputs},
        units=units,
        identified_by=identified_by,
    )


def parsed(parser: argparse.ArgumentParser, *, exported: bool = False) -> argparse.Namespace:
    """The options, checked, with the threads set and the device chosen; ends with code 2 where they cannot be used.

    Args:
        parser: of `parser_of`.
        exported: whether the script takes exported files.
    """
    options = parser.parse_args()
    commit()
    try:
        least = {"batch": 1, "threads": 1, "runs": 2, "images": 1}  # quartiles are of two runs or more
        for name, number in least.items():
            value = getattr(options, name, None)
            if value is not None and min(value if isinstance(value, list) else [value]) < number:
                raise ConfigError(f"--{name} {value}: it takes at least {number}")
        for name in named(options.patterns):
            if is_exported(name) and not exported:
                raise ConfigError(f"{name}: exported files are for latency.py, throughput.py and exported.py --files")
        options.device = str(device_of_process(options.device))
    except FPGZooError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        sys.exit(2)
    if options.threads:
        torch.set_num_threads(options.threads)
    return options


def named(patterns: Sequence[str]) -> list[str]:
    """The architectures that match; `local-dir:FOLDER`, `hf-hub:OWNER/REPO`, config and exported files as they are.

    Raises:
        UnknownNameError: none does.
    """
    own = [pattern for pattern in patterns if is_own(pattern)]
    others = [pattern for pattern in patterns if not is_own(pattern)]
    names = [*own, *(fpg_zoo.list_models(*others) if others or not own else [])]
    if not names:
        raise UnknownNameError(f"no model matches {' '.join(patterns)}: known are {', '.join(fpg_zoo.list_models())}")
    return names
