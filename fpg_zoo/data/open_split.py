"""One way to open the data that is trained or evaluated on."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from fpg_zoo.data.coco import CocoDataset
from fpg_zoo.data.dataset import Dataset, ImageInfo, Sample
from fpg_zoo.data.ground_truth import ground_truth
from fpg_zoo.data.shapes import NUM_IMAGES, ShapesDataset
from fpg_zoo.errors import ConfigError
from fpg_zoo.files import sha256_of

SHAPES = Path("shapes")  # stands for the procedural data set
_SPLITS = ("val2017", "val")  # looked for in this order if none is named


class HeldOut(NamedTuple):
    """Images to evaluate on.

    Attributes:
        dataset: the images.
        annotations: what detections are compared with, as of `fpg_zoo.data.ground_truth.ground_truth`.
        category_ids: the file's id of each of the data set's classes.
        digest: the file's SHA-256, or what else tells the data from any other.
        summary: what there is and what was left out, for people; None where there is nothing to say.
        split: of the data.
    """

    dataset: Dataset
    annotations: dict[str, Any]
    category_ids: tuple[int, ...]
    digest: str
    summary: str | None
    split: str


def open_held_out(
    data: Path, split: str | None, *, limit: int | None, masks: bool, allow_losses: bool = False
) -> HeldOut:
    """The images to evaluate on.

    Args:
        data: a folder laid out as COCO is, or `SHAPES` for the procedural scenes unless there is a folder of this name.
        split: of the folder; None for `val2017` or else `val`.
        limit: the first so many images, at least 1; None for all.
        masks: read masks, too.
        allow_losses: as of `CocoDataset`.

    Raises:
        ConfigError: no such data, too much of it cannot be used, or there is nothing in it to evaluate.
    """
    if data == SHAPES and not data.exists():
        if split is not None:
            raise ConfigError(f"split {split!r}: the procedural scenes have none to choose from; leave it out")
        return held_out_scenes(limit=limit, masks=masks)
    files = {name: data / "annotations" / f"instances_{name}.json" for name in _SPLITS}
    split = split or next((name for name, file in files.items() if file.is_file()), _SPLITS[0])
    whole = CocoDataset.from_folder(data, split, masks=masks, training=False, allow_losses=allow_losses)
    return held_out_of(whole, split, limit=limit)


def held_out_of(whole: CocoDataset, split: str, *, limit: int | None = None) -> HeldOut:
    """A data set to evaluate on.

    Args:
        whole: read with `training=False`.
        split: its name.
        limit: the first so many images; None for all.

    Raises:
        ConfigError: there is nothing in it to evaluate.
    """
    dataset, source = (whole, "") if limit is None else (_First(whole, limit), f", its first {limit} images")
    coco = ground_truth(dataset, whole.category_ids, source=f"{whole.annotation_file}{source}", report=whole.report)
    digest = sha256_of(whole.annotation_file)
    return HeldOut(dataset, coco, whole.category_ids, digest, whole.summary(), split)


def held_out_scenes(*, limit: int | None, masks: bool) -> HeldOut:
    """The procedural scenes to evaluate on.

    Args:
        limit: the first so many; None for all.
        masks: with masks.
    """
    most = NUM_IMAGES["val"]
    shapes = ShapesDataset("val", most if limit is None else min(limit, most), masks=masks)
    coco = ground_truth(shapes, shapes.category_ids)
    return HeldOut(shapes, coco, shapes.category_ids, str(SHAPES), None, shapes.split)


class _First:
    """The first images of a data set."""

    def __init__(self, dataset: Dataset, count: int) -> None:
        self.class_names = dataset.class_names
        self._dataset = dataset
        self._count = min(count, len(dataset))

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Sample:
        return self._dataset[index]

    def image_info(self, index: int) -> ImageInfo:
        return self._dataset.image_info(index)
