"""One way to open the data that is trained or evaluated on, in whatever layout it is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fpg_zoo.data.coco import CocoDataset
from fpg_zoo.data.content import Content
from fpg_zoo.data.dataset import Dataset, ImageInfo, Sample
from fpg_zoo.data.ground_truth import ground_truth
from fpg_zoo.data.hold_out import share
from fpg_zoo.data.layouts.coco_files import coco_file
from fpg_zoo.data.layouts.layout import Layout
from fpg_zoo.data.layouts.recognize import recognize
from fpg_zoo.data.shapes import NUM_IMAGES, ShapesDataset
from fpg_zoo.data.split_names import SHAPES_NAME, TRAIN, VAL, first_of, split_named, whole_of
from fpg_zoo.errors import ConfigError
from fpg_zoo.text import printable

_TO_EVALUATE = ("val2017", *VAL)  # looked for in this order if none is named
_SHOWN = 20  # splits that a message names

SHAPES = Path(SHAPES_NAME)


class HeldOut(NamedTuple):
    """Images to evaluate on.

    Attributes:
        dataset: the images.
        annotations: what detections are compared with, as of `fpg_zoo.data.ground_truth.ground_truth`.
        category_ids: the file's id of each of the data set's classes.
        digest: the file's SHA-256, or what else tells the data from any other.
        summary: what there is and what was left out, for people; None where there is nothing to say.
        split: of the data.
        folder: that the images are in, as the user named it; None where they are no files.
    """

    dataset: Dataset
    annotations: dict[str, Any]
    category_ids: tuple[int, ...]
    digest: str
    summary: str | None
    split: str
    folder: Path | None


def open_train(
    data: Path | None,
    *,
    split: str | None = None,
    annotations: Path | None = None,
    images: Path | None = None,
    masks: bool,
    keep_background: bool = False,
    allow_losses: bool = False,
    val_fraction: float | None = None,
    seed: int = 0,
) -> CocoDataset | ShapesDataset:
    """The images to train on.

    Args:
        data: a folder in a layout that `recognize` knows, YOLO's YAML file, `hf:OWNER/NAME`, or `SHAPES` for the
            procedural scenes unless there is a folder of this name. None where `annotations` are given.
        split: of the data; None for `train`, or for all images where there are no splits. `train2017` and the like are
            taken for `train`.
        annotations: a file in COCO's format, in place of what the folder has.
        images: the folder that the file's names start from; None for `data`, the file's own, or `images` in either.
        masks, keep_background, allow_losses: as of `CocoDataset`.
        val_fraction: leave out this share of the images, which `open_val` then evaluates on; None for none.
        seed: of the images that are held out.

    Raises:
        ConfigError: no such data or split, too much of it cannot be used, or there is nothing in it to train on. A
            share is to be held out of data with a split to evaluate on, without `split`.
    """
    if _is_shapes(data, annotations):
        if split not in (None, "train") or val_fraction is not None:
            raise ConfigError(f"--data {SHAPES}: the procedural scenes have train and val; leave split and share out")
        return ShapesDataset("train", masks=masks)
    layout = _layout(data, annotations, images)
    content = _trained_on(layout, split, val_fraction, seed, held_out=False)
    return CocoDataset.from_content(content, masks=masks, keep_background=keep_background, allow_losses=allow_losses)


def open_val(
    data: Path | None,
    train: Dataset,
    *,
    split: str | None = None,
    train_split: str | None = None,
    annotations: Path | None = None,
    images: Path | None = None,
    masks: bool,
    allow_losses: bool = False,
    val_fraction: float | None = None,
    seed: int = 0,
) -> HeldOut | None:
    """The images to evaluate on while training.

    Args:
        data: as of `open_train`.
        train: what is trained on, whose classes these images must have.
        split: of the data; None for `val`, if it is there.
        train_split, val_fraction, seed: as `open_train` had `split`, `val_fraction`, `seed`; with a fraction, these
            images are the share that it left out.
        annotations, images: with `val_fraction`, as `open_train` had them; else a file of images to evaluate on.
        masks, allow_losses: as of `CocoDataset`.

    Returns:
        None where neither a split, a file nor a share is named, and the data has no split `val`.

    Raises:
        ConfigError: as of `open_held_out`; or the classes are others.
    """
    if _is_shapes(data, annotations):
        return open_held_out(SHAPES, split, limit=None, masks=masks)
    if val_fraction is not None and split is not None:
        raise ConfigError(f"split {printable(split)} and val_fraction={val_fraction}: leave one of them out")
    if data is None and annotations is None:  # what is trained on was a file by itself
        return None
    layout = _layout(data, annotations, images)
    if val_fraction is not None:
        split = train_split
    elif split is None and annotations is None and (split := first_of(VAL, layout.splits)) is None:
        return None
    held_out = _held_out(layout, split, val_fraction, seed, None, masks, allow_losses)
    if held_out.dataset.class_names != train.class_names:
        raise ConfigError(
            f"split {held_out.split} of {data or annotations}: its classes, in the order of their ids, are not those "
            "that are trained on; give both the same categories"
        )
    return held_out


def open_held_out(
    data: Path | None,
    split: str | None,
    *,
    limit: int | None,
    masks: bool,
    allow_losses: bool = False,
    annotations: Path | None = None,
    images: Path | None = None,
    val_fraction: float | None = None,
    seed: int = 0,
) -> HeldOut:
    """The images to evaluate on.

    Args:
        data, annotations, images: as of `open_train`.
        split: of the data; None for `val2017` or else `val`, or for all images where there are no splits. With
            `val_fraction`, the split that is trained on, as of `open_train`.
        limit: the first so many images, at least 1; None for all.
        masks: read masks, too.
        allow_losses: as of `CocoDataset`.
        val_fraction, seed: take the share that `open_train` leaves out with the same values.

    Raises:
        ConfigError: no such data, too much of it cannot be used, or there is nothing in it to evaluate.
    """
    if _is_shapes(data, annotations):
        if split is not None or val_fraction is not None:
            asked = f"split {printable(split)!r}" if split is not None else f"val_fraction={val_fraction}"
            raise ConfigError(f"{asked}: the procedural scenes have none to choose from; leave it out")
        return held_out_scenes(limit=limit, masks=masks)
    layout = _layout(data, annotations, images)
    return _held_out(layout, split, val_fraction, seed, limit, masks, allow_losses)


def held_out_scenes(*, limit: int | None, masks: bool) -> HeldOut:
    """The procedural scenes to evaluate on.

    Args:
        limit: the first so many; None for all.
        masks: with masks.
    """
    most = NUM_IMAGES["val"]
    shapes = ShapesDataset("val", most if limit is None else min(limit, most), masks=masks)
    coco = ground_truth(shapes, shapes.category_ids)
    return HeldOut(shapes, coco, shapes.category_ids, shapes.digest, None, shapes.split, None)


def _held_out(
    layout: Layout,
    split: str | None,
    fraction: float | None,
    seed: int,
    limit: int | None,
    masks: bool,
    allow_losses: bool,
) -> HeldOut:
    if fraction is None:
        split = _named(layout, split, _TO_EVALUATE)
        content = layout.read(split)
    else:
        content = _trained_on(layout, split, fraction, seed, held_out=True)
        split = "held out"
    whole = CocoDataset.from_content(content, masks=masks, training=False, allow_losses=allow_losses)
    return held_out_of(whole, split, layout.folder, limit=limit)


def held_out_of(whole: CocoDataset, split: str, folder: Path | None = None, *, limit: int | None = None) -> HeldOut:
    """A data set to evaluate on.

    Args:
        whole: read with `training=False`.
        split: its name.
        folder: of its images.
        limit: the first so many images; None for all.

    Raises:
        ConfigError: there is nothing in it to evaluate.
    """
    dataset, source = (whole, "") if limit is None else (_First(whole, limit), f", its first {limit} images")
    coco = ground_truth(dataset, whole.category_ids, source=f"{whole.annotation_file}{source}", report=whole.report)
    return HeldOut(dataset, coco, whole.category_ids, whole.digest, whole.summary(), split, folder)


def _is_shapes(data: Path | None, annotations: Path | None) -> bool:
    return data == SHAPES and annotations is None and not SHAPES.exists()


def _layout(data: Path | None, annotations: Path | None, images: Path | None) -> Layout:
    if annotations is None:
        if images is not None:
            raise ConfigError(f"{images}: a folder of images without its annotation file; name that, too")
        if data is None:
            raise ConfigError("no data: name the folder of a data set, or an annotation file in COCO's format")
        return recognize(data)
    for folder in (data, images):
        if folder is not None and not folder.is_dir():
            raise ConfigError(f"{folder}: no such folder; name the one that the annotation file's names start from")
    return coco_file(annotations, images, data)


def _trained_on(layout: Layout, split: str | None, fraction: float | None, seed: int, *, held_out: bool) -> Content:
    """The split that is trained on, or one side of it where a share is held out."""
    if fraction is None:
        return layout.read(_named(layout, split, TRAIN))
    if split is None and (there := first_of(_TO_EVALUATE, layout.splits)) is not None:
        raise ConfigError(
            f"val_fraction={fraction}: {layout.place} has a split {printable(there)} to evaluate on; leave the share "
            "out, or name the split that it is taken from"
        )
    return share(layout.read(_named(layout, split, TRAIN)), fraction, seed, held_out=held_out)


def _named(layout: Layout, split: str | None, usual: Sequence[str]) -> str:
    """The split that is meant: by its name, or as the first usual one, or as all images."""
    if split is None:
        found = first_of(usual, layout.splits) or whole_of(layout.splits)
    else:
        found = split_named(split, layout.splits)
    if found is None:
        names = [printable(name, 60) for name in layout.splits]
        more = ", ..." if len(names) > _SHOWN else ""
        asked = printable(split or ("train" if usual is TRAIN else "val"), 60)
        raise ConfigError(
            f"no split {asked!r} in {layout.place} ({layout.label}): it has {', '.join(names[:_SHOWN])}{more}"
        )
    return found


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
