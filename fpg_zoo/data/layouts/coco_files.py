"""Annotation files in COCO's format, where COCO itself and the exports of labeling tools put them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fpg_zoo.data.coco import image_places
from fpg_zoo.data.content import Content, read_coco
from fpg_zoo.data.split_names import WHOLE

_PREFIX = "instances_"
_BESIDE = "_annotations.coco.json"  # Roboflow's, in the folder of a split's images
_RESULT = "result.json"  # Label Studio's
LOOKED_FOR = f"annotations/{_PREFIX}SPLIT.json, SPLIT/{_BESIDE}, {_RESULT} with images (COCO)"


class CocoFiles:
    """An annotation file for each split; a `Layout`.

    Attributes:
        label, place, folder: as of `Layout`.
        splits: the file of each, and the folders that its images may be in.
    """

    label = "COCO"

    def __init__(self, place: Path, folder: Path, splits: Mapping[str, tuple[Path, tuple[Path, ...]]]) -> None:
        self.place = place
        self.folder = folder
        self.splits = splits

    def read(self, split: str) -> Content:
        """As of `Layout`."""
        return read_coco(*self.splits[split])


def find_coco(root: Path) -> CocoFiles | None:
    """COCO's own layout, which CVAT exports, too; or Roboflow's; or Label Studio's."""
    own = {file.stem.removeprefix(_PREFIX): file for file in sorted((root / "annotations").glob(f"{_PREFIX}*.json"))}
    if own:
        return CocoFiles(root, root, {split: (file, image_places(root, split)) for split, file in own.items()})
    beside = {file.parent.name: file for file in sorted(root.glob(f"*/{_BESIDE}"))}
    if not beside and (root / _BESIDE).is_file():
        beside = {WHOLE: root / _BESIDE}
    if beside:
        return CocoFiles(root, root, {split: (file, (file.parent,)) for split, file in beside.items()})
    if (root / _RESULT).is_file():
        return CocoFiles(root, root, {WHOLE: (root / _RESULT, (root, root / "images"))})
    return None


def coco_file(file: Path, images: Path | None, data: Path | None) -> CocoFiles:
    """An annotation file that was named by itself; its only split is all of it.

    Args:
        file: it.
        images: the folder that its names start from. If None, that of the data set or of the file, or `images` in it.
        data: the folder of the data set, if one was named.
    """
    near = data or file.parent
    return CocoFiles(file, images or near, {WHOLE: (file, (images,) if images else (near, near / "images"))})
