"""The published table, measured again: `python benchmarks/reproduce_table.py --data COCO_DIR`, or `--quick` offline.

AP, memory and frames per second of each checkpoint beside what was published and what it costs, as Markdown, CSV and
JSON; blank where not measured. The models that come with the package are always among the rows, on data that are drawn.
What has been measured with the same settings is not measured again.

Exit codes: 0 every verdict is met (a blank is none); 1 one is missed, or a row failed for another reason than that its
weights or data are not there; 2 refused; 130 interrupted.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import fnmatch
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

import torch
from harness.measure import RESULTS, Row, command_line, commit, record, save
from harness.models import unavailable

from fpg_zoo.data.open_split import open_held_out
from fpg_zoo.distributed import device_of_process
from fpg_zoo.errors import ConfigError, FPGZooError, UnknownNameError
from fpg_zoo.evaluation.benchmark import RANDOM
from fpg_zoo.evaluation.timing import device_name, processor
from fpg_zoo.files import atomic_write, on_terminal
from fpg_zoo.models.factory import list_models
from fpg_zoo.progress import tqdm
from fpg_zoo.weights.manifest import Published
from table.cells import COLUMNS, Cell, Run, cell_of, first_checkpoint, measure_cell, metrics_of, table_checkpoints
from table.text import MISSED, UNITS, as_csv, as_markdown, results_rows, rows_of

DONE, NOT_MET, REFUSED, INTERRUPTED = 0, 1, 2, 130
_RUNS = {True: 3, False: 5}  # timings of each model alone: quick or not


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options.

    Raises:
        ConfigError: they cannot be used.
    """
    parser = _Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, metavar="COCO_DIR", help="annotations/instances_val2017.json, val2017/")
    parser.add_argument(
        "--models",
        nargs="+",
        default=["*"],
        metavar="PATTERN",
        help="of names, for their first checkpoint, or of names with tags, as 'retinanet*.*' (default: all names)",
    )
    parser.add_argument("--columns", default=",".join(COLUMNS), metavar="C,...", help=f"of {', '.join(COLUMNS)}")
    parser.add_argument("--device", metavar="D", help="cpu, cuda, mps (default: cuda if there is one, else cpu)")
    parser.add_argument("--output", type=Path, default=RESULTS / "table", metavar="DIR", help="(default: %(default)s)")
    parser.add_argument("--limit", type=int, metavar="N", help="AP of the first N images: to try; no verdict on it")
    parser.add_argument("--force", action="store_true", help="measure again what is there")
    parser.add_argument(
        "--quick",
        action="store_true",
        dest="packaged_only",
        help="the models that come with the package alone, offline",
    )
    options = parser.parse_args(arguments)
    options.columns = [name.strip() for name in options.columns.split(",")]
    unknown = [name for name in options.columns if name not in COLUMNS]
    if unknown:
        raise ConfigError(f"--columns: no column {unknown[0]!r}: known are {', '.join(COLUMNS)}")
    if options.packaged_only and (options.data is not None or options.models != ["*"]):
        raise ConfigError("--quick takes the models that come with the package alone: leave out --data and --models")
    if options.limit is not None and options.limit < 1:
        raise ConfigError(f"--limit {options.limit}: it takes at least 1")
    return options


def chosen(patterns: Sequence[str]) -> list[Published]:
    """The checkpoints that are asked for, and those that come with the package.

    Raises:
        UnknownNameError: a pattern matches none.
    """
    checkpoints = table_checkpoints()
    firsts = {name: first_checkpoint(name) for name in list_models()}
    matching_by_name: dict[str, Published] = {}
    for pattern in patterns:
        names = {entry.name: entry for entry in checkpoints} if "." in pattern else {}
        names = names or firsts
        matching = [entry for name, entry in names.items() if fnmatch.fnmatchcase(name, pattern)]
        if not matching:
            raise UnknownNameError(f"--models: nothing matches {pattern!r}: known are {', '.join(names)}")
        matching_by_name.update({entry.name: entry for entry in matching})
    return [entry for entry in checkpoints if entry.packaged or entry.name in matching_by_name]


@dataclasses.dataclass
class Outcome:
    """What came of a run, by checkpoint and column."""

    records: dict[tuple[str, str], Row] = dataclasses.field(default_factory=dict)
    notes: dict[tuple[str, str], str] = dataclasses.field(default_factory=dict)
    failed: list[tuple[str, str]] = dataclasses.field(default_factory=list)

    def fail(self, name: str, column: str, error: BaseException) -> None:
        """Report it, for the rest goes on."""
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        self.notes[name, column] = f"failed: {text}"
        self.failed.append((name, column))
        tqdm.write(f"reproduce_table.py: {name}, {column}: {text}", file=sys.stderr)


def cells_of(checkpoints: Sequence[Published], columns: Sequence[str], run: Run, outcome: Outcome) -> list[Cell]:
    """What is to be measured or known; what cannot be had is noted."""
    cells: list[Cell] = []
    for entry in checkpoints:
        try:
            reason = unavailable(entry.name)
        except FPGZooError as error:
            for column in columns:
                outcome.fail(entry.name, column, error)
            continue
        for column in columns:
            if column != "ap":
                cells.append(cell_of(entry, column, RANDOM if reason else entry.tag, run))
            elif reason:
                outcome.notes[entry.name, column] = "weights not available"
                print(f"reproduce_table.py: {entry.name}: weights not available: {reason}", file=sys.stderr)
            elif run.data is None and not entry.packaged:
                outcome.notes[entry.name, column] = "no data given"
            else:
                cells.append(cell_of(entry, column, entry.tag, run))
    return cells


def measure_all(cells: Sequence[Cell], run: Run, outcome: Outcome, *, force: bool) -> None:
    """Measure what is not known. AP of the small models goes side by side, all else one after the other."""
    unknown: list[Cell] = []
    for cell in cells:
        stored = None if force else cell.known()
        if stored is None:
            unknown.append(cell)
        else:
            outcome.records[cell.entry.name, cell.column] = stored
    small = [cell for cell in unknown if cell.column == "ap" and cell.entry.packaged and run.device == "cpu"]
    others = [cell for cell in unknown if cell not in small]
    with tqdm(total=len(unknown), unit="cell", disable=not on_terminal(), leave=False) as bar:

        def finish(cell: Cell, result: Callable[[], Row]) -> None:
            name, column = cell.entry.name, cell.column
            try:
                stored = outcome.records[name, column] = result()
            except Exception as error:  # of whatever kind: the other rows do not depend on it
                outcome.fail(name, column, error)
            else:
                text = ", ".join(
                    f"{figure} {value:.2f}" for figure, value in metrics_of(column, stored["rows"]).items()
                )
                seconds = stored["environment"]["seconds"]
                tqdm.write(f"{name:28} {text} ({cell.weights} weights; {seconds:.0f} s)", file=sys.stdout)
                sys.stdout.flush()
            bar.update()

        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as side_by_side:
            futures = {side_by_side.submit(measure_cell, cell, run, alone=False): cell for cell in small}
            for future in concurrent.futures.as_completed(futures):
                finish(futures[future], future.result)
        for cell in others:
            bar.set_postfix_str(f"{cell.entry.name} {cell.column}")
            finish(cell, lambda cell=cell: measure_cell(cell, run))  # type: ignore[misc]


def look_up(run: Run, outcome: Outcome) -> None:
    """Take what was measured before with these settings, and was not asked for now, into the table, too."""
    for entry in table_checkpoints():
        for column in COLUMNS:
            place = entry.name, column
            if place in outcome.records or place in outcome.notes:
                continue
            for weights in (entry.tag, RANDOM):
                stored = cell_of(entry, column, weights, run).known()
                if stored is not None:
                    outcome.records.setdefault(place, stored)


def table_of(asked: Sequence[Published], outcome: Outcome, *, compare_ap: bool) -> list[Row]:
    """The table's rows: of checkpoints that were asked for, or that something is known of."""
    rows: list[Row] = []
    known = {name for name, _ in outcome.records}
    for entry in table_checkpoints():
        if entry not in asked and entry.name not in known:
            continue
        metrics: dict[str, float] = {}
        weights: dict[str, str] = {}
        for column in COLUMNS:
            stored = outcome.records.get((entry.name, column))
            if stored is not None:
                metrics.update(metrics_of(column, stored["rows"]))
                weights[column] = stored["rows"][0]["weights"]
        notes = {column: note for (name, column), note in outcome.notes.items() if name == entry.name}
        rows += rows_of(entry, metrics, weights, notes, compare_ap=compare_ap)
    return rows


def write_table(rows: list[Row], run: Run) -> None:
    """`table.json` and `table.md` of this device, and `results.csv` of all devices, in the run's folder."""
    inputs = {"what": "of each cell, in its own file under cells/"}
    save(record(run.command, rows, device=run.device, inputs=inputs, units=UNITS), run.output / "table.json")
    results = run.output / "results.csv"
    earlier = results.read_text(encoding="utf-8") if results.is_file() else ""
    texts = {run.output / "table.md": as_markdown(rows), results: as_csv(results_rows(rows, machine(run)), earlier)}
    for target, text in texts.items():
        with atomic_write(target) as temporary:
            temporary.write_text(text, encoding="utf-8")


def machine(run: Run) -> str:
    """What tells a device of `results.csv` from others: a GPU's name, or the processor's and its threads."""
    if torch.device(run.device).type == "cpu":
        return f"{processor()}, {torch.get_num_threads()} threads"
    return device_name(run.device)


def reproduce(options: argparse.Namespace) -> int:
    """Measure what is asked for and write the table; returns the exit code."""
    commit()
    checkpoints = [entry for entry in chosen(options.models) if entry.packaged or not options.packaged_only]
    device = str(device_of_process(options.device))
    digest = None
    if options.data is not None and "ap" in options.columns:
        held_out = open_held_out(options.data, None, limit=options.limit, masks=False)
        digest = held_out.digest
        if held_out.summary is not None:
            print(held_out.summary, file=sys.stderr)
    run = Run(
        data=options.data,
        data_digest=digest,
        limit=options.limit,
        device=device,
        output=options.output,
        runs=_RUNS[options.packaged_only],
        command=command_line(),
    )
    outcome = Outcome()
    cells = cells_of(checkpoints, options.columns, run, outcome)
    measure_all(cells, run, outcome, force=options.force)
    look_up(run, outcome)
    rows = table_of(checkpoints, outcome, compare_ap=options.limit is None)
    write_table(rows, run)
    verdicts = [row["verdict"] for row in rows if row["verdict"] is not None]
    missed = verdicts.count(MISSED)
    print(as_markdown(rows))
    print(f"{len(verdicts) - missed} of {len(verdicts)} verdicts met, {len(outcome.failed)} cells failed")
    print(f"written: {run.output / 'table'}.md, table.json and results.csv")
    return NOT_MET if missed or outcome.failed else DONE


def main(arguments: Sequence[str] | None = None) -> int:
    try:
        return reproduce(parse(arguments))
    except FPGZooError as error:
        print(f"reproduce_table.py: {error}", file=sys.stderr)
        return REFUSED
    except KeyboardInterrupt:
        print("reproduce_table.py: interrupted; the same command goes on from here", file=sys.stderr)
        return INTERRUPTED
