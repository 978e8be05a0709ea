"""Progress bars: tqdm's, or none where tqdm is not installed."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import Any, TextIO


class NoBar:
    """Stands for tqdm's bar where there is no tqdm: counts, and shows nothing."""

    def __init__(self, iterable: Iterable[Any] = (), *, initial: int = 0, **_: Any) -> None:
        self._iterable, self.n = iterable, initial

    def __iter__(self) -> Iterator[Any]:
        return iter(self._iterable)

    def __enter__(self) -> NoBar:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def update(self, number: int = 1) -> None:
        self.n += number

    def set_postfix(self, *_: Any, **__: Any) -> None: ...

    def close(self) -> None: ...

    @staticmethod
    def write(text: str, file: TextIO | None = None) -> None:
        """A line to `file`, standard output if None."""
        print(text, file=sys.stdout if file is None else file)


try:
    from tqdm import tqdm
except ImportError:
    tqdm = NoBar

__all__ = ["tqdm"]
