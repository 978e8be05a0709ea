"""Detections of an evaluation as they come, kept beside its results file, so that a killed run goes on from there.

Each process appends to a file of its own, `RESULTS.part-RANK.jsonl`: a line about the run, then one for each batch. All
of them are read when a run begins, so another number of processes may go on.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fpg_zoo.errors import ConfigError
from fpg_zoo.files import aside, explained

Found = tuple[int | str, list[dict[str, Any]]]  # a picture's id and its rows of a results file
_HEADER = "fpg_zoo_evaluation"


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

    def done(self) -> dict[int | str, list[dict[str, Any]]]:
        """What earlier runs with these settings have detected, by picture.

        A line that was being written when its process was killed is passed over, as is any that cannot be read: its
        pictures are looked at again.

        Raises:
            ConfigError: they were of other settings, or a file is no part of an evaluation.
        """
        found: dict[int | str, list[dict[str, Any]]] = {}
        for file in self._files():
            with file.open("rb") as stream:
                lines = _whole(stream)
                header = next(lines, None)
                if header is not None:
                    self._check(file, header)
                for line in lines:
                    with contextlib.suppress(ValueError, TypeError):
                        for image_id, rows in json.loads(line):
                            found.setdefault(image_id, rows)
        return found

    def _check(self, file: Path, header: bytes) -> None:
        try:
            settings = json.loads(header)[_HEADER]
            names = {**self._settings, **settings}
        except (ValueError, TypeError, KeyError):
            raise ConfigError(
                f"{file}: not begun by an evaluation; move it away, or save the results under another name"
            ) from None
        other = [name for name in names if settings.get(name) != self._settings.get(name)]
        if other:
            told = ", ".join(f"{name} {settings.get(name)}, now {self._settings.get(name)}" for name in other)
            raise ConfigError(
                f"{file}: begun with another {told}; give what it was begun with to go on, or remove "
                f"{self._results}.part-*.jsonl to begin again, or save the results under another name"
            )

    @contextlib.contextmanager
    def writing(self, rank: int) -> Iterator[Callable[[Sequence[Found]], None]]:
        """A function that keeps a batch's detections; what it was given outlives a kill.

        Args:
            rank: this process's number.

        Raises:
            StorageError: the file cannot be written; what it holds is kept.
        """
        folder = self._results.parent
        with explained(folder):
            folder.mkdir(parents=True, exist_ok=True)
            stream = self._file(rank).open("a+b")
        with stream:
            with explained(folder):
                stream.seek(0)
                kept = sum(map(len, _whole(stream)))
                stream.truncate(kept)
                if not kept:
                    stream.write(json.dumps({_HEADER: self._settings}).encode() + b"\n")
                stream.flush()

            def write(batch: Sequence[Found]) -> None:
                with explained(folder):
                    stream.write(json.dumps(batch).encode() + b"\n")
                    stream.flush()

            yield write

    def finish(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write the results file, all or nothing, and remove the parts.

        Raises:
            StorageError: it cannot be written; the parts are kept.
        """
        folder = self._results.parent
        with aside(folder, ".json") as temporary, explained(folder):
            with temporary.open("w", encoding="utf-8") as stream:
                stream.write("[")
                for place, row in enumerate(rows):
                    stream.write((",\n" if place else "\n") + json.dumps(row))
                stream.write("\n]\n")
            temporary.replace(self._results)
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


def _whole(stream: Iterable[bytes]) -> Iterator[bytes]:
    """Its lines, less the last if that was torn."""
    return (line for line in stream if line.endswith(b"\n"))
