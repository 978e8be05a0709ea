"""Detections of an evaluation as they come, kept beside its results file, so that a killed run goes on from there.

Each process appends to a file of its own, `RESULTS.part-RANK.jsonl`: a line about the run, then one for each batch. All
of them are read when a run begins, so another number of processes may go on.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fpg_zoo.distributed import Processes
from fpg_zoo.errors import ConfigError
from fpg_zoo.files import atomic_write, storage_errors
from fpg_zoo.text import printable

ImageRows = tuple[int | str, list[dict[str, Any]]]  # an image's id and its rows of a results file
_HEADER = "fpg_zoo_evaluation"
_MAX_HEADER_BYTES = 1 << 16
_ROW_KEYS = {"image_id", "category_id", "bbox", "score", "segmentation"}


class Parts:
    """The unfinished and the finished results of one evaluation."""

    def __init__(self, results: Path, settings: Mapping[str, str | int | None]) -> None:
        """Nothing is read or written yet.

        Args:
            results: the file to write in the end.
            settings: everything that decides what is detected; not how it is shared among processes and batches.

        Raises:
            ConfigError: `results` is a folder.
        """
        if results.is_dir():
            raise ConfigError(f"{results}: a folder; name the file to write")
        self._results = results
        self._settings = dict(settings)

    def exclusive(self, processes: Processes) -> contextlib.AbstractContextManager[None]:
        """Keep other runs out, from before `done` to after `finish`; see `Processes.exclusive`.

        Raises:
            StorageError: another run has the lock, or it cannot be written; in every process.
        """
        return processes.exclusive(self._results.with_name(f".{self._results.name}.lock"), str(self._results))

    def done(self) -> dict[int | str, list[dict[str, Any]]]:
        """What earlier runs with these settings have detected, by image.

        A line that was being written when its process was killed is passed over. So is one that is no batch of
        detections, with a warning. The images of either are looked at again. Of two entries of an image, the first
        counts.

        Raises:
            ConfigError: they were of other settings, or a file is no part of an evaluation.
        """
        done: dict[int | str, list[dict[str, Any]]] = {}
        for file in self._files():
            with _opened(file, os.O_RDONLY) as descriptor, open(descriptor, "rb", closefd=False) as stream:
                header = stream.readline(_MAX_HEADER_BYTES)
                if not header.endswith(b"\n") and len(header) < _MAX_HEADER_BYTES:
                    continue  # its process was killed when it began
                self._check(file, header)
                damaged = 0
                for line in _whole(stream):
                    batch = _batch_of(line)
                    damaged += batch is None
                    for image_id, rows in batch or ():
                        done.setdefault(image_id, rows)
            if damaged:
                warnings.warn(f"{file}: {damaged} damaged lines; their images are looked at again", stacklevel=2)
        return done

    def _check(self, file: Path, header: bytes) -> None:
        try:
            settings = json.loads(header)[_HEADER]
            names = {**self._settings, **settings}
        except (ValueError, TypeError, KeyError, RecursionError):
            raise ConfigError(
                f"{file}: not begun by an evaluation; move it away, or save the results under another name"
            ) from None
        other = [name for name in names if settings.get(name) != self._settings.get(name)]
        if other:
            differing = ", ".join(
                f"{printable(name)} {printable(settings.get(name))}, now {self._settings.get(name)}" for name in other
            )
            raise ConfigError(
                f"{file}: begun with another {differing}; give what it was begun with to go on, or remove "
                f"{self._results}.part-*.jsonl to begin again, or save the results under another name"
            )

    @contextlib.contextmanager
    def writing(self, rank: int) -> Iterator[Callable[[Sequence[ImageRows]], None]]:
        """A function that keeps a batch's detections; what it was given outlives a kill.

        Args:
            rank: this process's number.

        Raises:
            ConfigError: the file is a link, or no regular one.
            StorageError: the file cannot be written; what it holds is kept.
        """
        folder = self._results.parent
        with contextlib.ExitStack() as stack:
            with storage_errors(folder):
                folder.mkdir(parents=True, exist_ok=True)
                descriptor = stack.enter_context(_opened(self._file(rank), os.O_RDWR | os.O_CREAT | os.O_APPEND))
                with open(descriptor, "rb", closefd=False) as stream:
                    kept = sum(map(len, _whole(stream)))
                os.truncate(descriptor, kept)

            def write(content: object) -> None:
                with storage_errors(folder):
                    line = memoryview(json.dumps(content).encode() + b"\n")
                    while line:
                        line = line[os.write(descriptor, line) :]

            if not kept:
                write({_HEADER: self._settings})
            yield write

    def finish(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write the results file, all or nothing, and remove the parts.

        Raises:
            StorageError: it cannot be written; the parts are kept.
        """
        with atomic_write(self._results) as temporary, temporary.open("w", encoding="utf-8") as stream:
            stream.write("[")
            for place, row in enumerate(rows):
                stream.write((",\n" if place else "\n") + json.dumps(row))
            stream.write("\n]\n")
        with storage_errors(self._results.parent):
            for file in self._files():
                file.unlink()

    def _file(self, rank: int) -> Path:
        return self._results.with_name(f"{self._results.name}.part-{rank}.jsonl")

    def _files(self) -> list[Path]:
        beginning = f"{self._results.name}.part-"
        folder = self._results.parent
        if not folder.is_dir():
            return []
        return sorted(file for file in folder.iterdir() if file.name.startswith(beginning) and file.suffix == ".jsonl")


@contextlib.contextmanager
def _opened(file: Path, flags: int) -> Iterator[int]:
    """A descriptor of a part. No link is followed, and no pipe waited for."""
    refusal = ConfigError(f"{file}: a link, or no regular file; move it away, or save the results under another name")
    flags |= getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(file, flags, 0o666)
    except OSError as error:
        raise refusal if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO) else error from None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise refusal
        yield descriptor
    finally:
        os.close(descriptor)


def _whole(stream: Iterable[bytes]) -> Iterator[bytes]:
    """Its lines, less the last if that was torn."""
    return (line for line in stream if line.endswith(b"\n"))


def _batch_of(line: bytes) -> list[ImageRows] | None:
    """The detections that a line holds; None if it holds anything else."""
    try:
        batch = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(batch, list) or not all(map(_is_entry, batch)):
        return None
    return [(image_id, rows) for image_id, rows in batch]


def _is_entry(entry: object) -> bool:
    """Whether it is an image's id with rows of a results file."""
    if not isinstance(entry, list) or len(entry) != 2:
        return False
    image_id, rows = entry
    return type(image_id) in (int, str) and isinstance(rows, list) and all(map(_is_row, rows))


def _is_row(row: object) -> bool:
    """Whether it is one of a results file."""
    if not isinstance(row, dict) or not row.keys() <= _ROW_KEYS:
        return False
    box, mask = row.get("bbox", [0] * 4), row.get("segmentation", {"size": [1, 1], "counts": ""})
    return (
        type(row.get("image_id")) in (int, str)
        and type(row.get("category_id", 0)) is int
        and _is_number(row.get("score"))
        and isinstance(box, list)
        and len(box) == 4
        and all(map(_is_number, box))
        and isinstance(mask, dict)
        and isinstance(mask.get("size"), list)
        and [type(side) for side in mask["size"]] == [int, int]
        and isinstance(mask.get("counts"), str)
    )


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and abs(value) <= sys.float_info.max  # type: ignore[arg-type]
