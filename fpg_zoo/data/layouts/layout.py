"""What a layout is."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Protocol

from fpg_zoo.data.content import Content


class Layout(Protocol):
    """A data set as it was found; nothing but the names of its splits is read yet.

    Attributes:
        label: of the layout, for messages.
        place: the file or folder that was found, for messages.
        splits: names, at least one.
        folder: that its images lie in, as the user named it; None where they are no files.
    """

    @property
    def label(self) -> str: ...

    @property
    def place(self) -> Path: ...

    @property
    def splits(self) -> Collection[str]: ...

    @property
    def folder(self) -> Path | None: ...

    def read(self, split: str) -> Content:
        """One of `splits`.

        Raises:
            ConfigError: it cannot be read.
        """
        ...
