"""Names of data sets, and those that they give to their splits."""

from __future__ import annotations

from collections.abc import Collection, Sequence

SHAPES_NAME = "shapes"  # stands for the procedural data set
HUB_PREFIX = "hf:"  # before the name of a data set on the Hugging Face hub
# One split by several names, in the order in which they are looked for.
TRAIN = ("train", "train2017", "training")
VAL = ("val", "val2017", "valid", "validation")
_TEST = ("test", "test2017", "testing")
WHOLE = "all"  # images, where there are no splits; CVAT says default


def split_named(name: str, splits: Collection[str]) -> str | None:
    """The split of this name, or else of another name for the same; None if there is none."""
    same = next((names for names in (TRAIN, VAL, _TEST) if name.lower() in names), ())
    return first_of((name, *same), splits)


def whole_of(splits: Collection[str]) -> str | None:
    """The split that holds all images, where it is the only one; None otherwise."""
    return first_of((WHOLE, "default"), splits) if len(splits) == 1 else None


def first_of(names: Sequence[str], splits: Collection[str]) -> str | None:
    """The split that has the first of some names; CVAT and others begin them with a capital."""
    lowered = {split.lower(): split for split in splits}
    return next(
        (name if name in splits else lowered[name] for name in names if name in splits or name in lowered), None
    )
