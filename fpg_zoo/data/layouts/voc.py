"""Pascal VOC's layout, read as it is."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from fpg_zoo.data.content import Content
from fpg_zoo.data.voc_folder import VocFolder, read_voc

LOOKED_FOR = "Annotations/*.xml with JPEGImages (Pascal VOC)"


class VocLayout:
    """A folder in Pascal VOC's format; a `Layout`.

    Attributes:
        label, place, splits, folder: as of `Layout`.
    """

    label = "Pascal VOC"

    def __init__(self, folder: Path) -> None:
        """Look what there is.

        Raises:
            ConfigError: as of `VocFolder`.
        """
        self._voc = VocFolder(folder)
        self.place = self.folder = folder
        self.splits: Collection[str] = tuple(self._voc.splits)

    def read(self, split: str) -> Content:
        """As of `Layout`."""
        return read_voc(self._voc, split)


def find_voc(root: Path) -> VocLayout | None:
    """A folder that has VOC's folders."""
    has_both = (root / "Annotations").is_dir() and (root / "JPEGImages").is_dir()
    return VocLayout(root) if has_both else None
