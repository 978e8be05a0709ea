"""A share of the images held out to evaluate on, where a data set has no split for that."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from fpg_zoo.data.annotation_problems import ABSENT_HELD_OUT, ABSENT_IN_TRAINING
from fpg_zoo.data.coco_annotations import plain_ids
from fpg_zoo.data.coco_images import name_of
from fpg_zoo.data.content import Content, Problem
from fpg_zoo.errors import ConfigError

_MOST_LETTERS = 255  # of a file name
# What stands between the name of an image and what tools add to it for its copies.
_ROBOFLOW = re.compile(r"(?:[_-](?:jpe?g|png|bmp|webp|tiff?|gif|avif))?\.rf\.[0-9a-z]+$")
_AUGMENTED = re.compile(
    r"[ _.-]+(?:aug(?:ment(?:ed|ation)?)?|[hv]?flip(?:ped|lr|ud)?|mirror(?:ed)?|rot(?:ate[d]?|ation)?|crop(?:ped)?|"
    r"blur(?:red)?|nois[ey]|bright(?:ness)?|dark(?:er)?|contrast|hue|gr[ae]y(?:scale)?|scaled?|resized?|shear(?:ed)?|"
    r"shift(?:ed)?|jitter|cutout|mosaic|copy|orig(?:inal)?)[_-]?\d*$|\s*\(\d+\)$"
)


def share(content: Content, fraction: float, seed: int, *, held_out: bool) -> Content:
    """One of the two sides of a data set: a share of its images is held out, the others are trained on.

    The same content, fraction and seed give the same sides, on any machine. Images whose names say that they are copies
    of one (`original_of`) are on one side. Every class is on both sides where the images allow it: a class of a single
    image, or group of copies, is trained on. What is absent from this side is added to the problems.

    Args:
        content: all of the images.
        fraction: of the images to hold out, in (0, 1). Groups and rare classes may make it less.
        seed: another one holds out others.
        held_out: which side.

    Raises:
        ConfigError: the fraction is out of range, or all images are copies of one.
    """
    if not 0 < fraction < 1:  # NaN fails it
        raise ConfigError(f"val_fraction={fraction}: it takes a share of the images, above 0 and below 1")
    images = plain_ids(content.images)
    names = [(name_of(image) if isinstance(image, dict) else None) or "" for image in images]
    ids = [str(image.get("id")) if isinstance(image, dict) else "" for image in images]
    group_of_id: dict[str, str] = {}
    # Entries of one id stay together, so that the reader sees that it is there twice.
    originals = [group_of_id.setdefault(identity, original_of(name)) for identity, name in zip(ids, names, strict=True)]
    classes: dict[str, set[str]] = {original: set() for original in originals}
    for row in content.annotations:
        group = group_of_id.get(_text(row.get("image_id"))) if isinstance(row, dict) else None
        if group is not None and not row.get("iscrowd"):
            classes[group].add(_text(row.get("category_id")))
    sizes = Counter(originals)
    if len(sizes) < 2:
        raise ConfigError(
            f"{content.source}: no images to hold out, as all {len(images)} are one or copies of one by their names; "
            "name a split to evaluate on"
        )
    chosen = _held_out(sizes, classes, max(round(fraction * len(images)), 1), seed)

    def on_side(original: str) -> bool:
        # What has no image that is listed falls on a side by its name, too.
        is_out = original in chosen if original in sizes else _order(seed, original) < f"{int(fraction * 256):02x}"
        return is_out == held_out

    kept_ids = {identity for identity, original in group_of_id.items() if on_side(original)}
    shown = {category for original, kinds in classes.items() if on_side(original) for category in kinds}
    absent = [
        Problem(ABSENT_HELD_OUT if held_out else ABSENT_IN_TRAINING, str(category.get("name")))
        for category in content.categories
        if isinstance(category, dict)
        and (identity := _text(category.get("id"))) not in shown
        and any(identity in kinds for kinds in classes.values())
    ]
    side = f"{content.whole_digest()} {'held out' if held_out else 'trained on'} {fraction!r} {seed}"
    return replace(
        content,
        images=[image for image, original in zip(images, originals, strict=True) if on_side(original)],
        annotations=[
            row
            for row in content.annotations
            if not isinstance(row, dict)
            or (identity := _text(row.get("image_id"))) in kept_ids
            or (identity not in group_of_id and not held_out)
        ],
        digest=hashlib.sha256(side.encode()).hexdigest(),
        problems=(*(problem for problem in content.problems if on_side(original_of(problem.name))), *absent),
    )


def original_of(name: str) -> str:
    """What copies of one image have in common in their file names, in lower case.

    Folders and endings count for nothing, nor does what Roboflow (`cat_jpg.rf.0a1b2c`) and other tools (`cat_flip`,
    `cat-rot90`, `cat_aug_3`, `cat (1)`) add. Plain numbers do: `cat_1` and `cat_2` are two images.
    """
    base = unicodedata.normalize("NFC", name.replace("\\", "/").rpartition("/")[2]).lower()
    stem = (base.rpartition(".")[0] or base)[-_MOST_LETTERS:]
    while (shorter := _AUGMENTED.sub("", _ROBOFLOW.sub("", stem))) not in ("", stem):
        stem = shorter
    return stem


def _text(identity: object) -> str:
    """An id as a text: 3, 3.0 and "3" are one."""
    return str(int(identity)) if isinstance(identity, float) and identity.is_integer() else str(identity)


def _order(seed: int, group: str) -> str:
    return hashlib.sha256(f"{seed} {group}".encode("utf-8", "surrogatepass")).hexdigest()


def _held_out(sizes: Mapping[str, int], classes: Mapping[str, set[str]], number: int, seed: int) -> set[str]:
    """Groups of about so many images: first those that show classes, rare ones before, then any."""
    groups = sorted(sizes, key=lambda group: _order(seed, group))
    left = Counter(category for kinds in classes.values() for category in kinds)  # groups that are trained on
    of_class: dict[str, list[str]] = {}
    for group in groups:
        for category in sorted(classes[group]):
            of_class.setdefault(category, []).append(group)
    chosen: set[str] = set()
    shown: set[str] = set()
    count = 0

    def take(candidates: Iterable[str]) -> None:
        nonlocal count
        for group in candidates:
            fits = count + sizes[group] <= number
            if group not in chosen and fits and all(left[category] > 1 for category in classes[group]):
                chosen.add(group)
                shown.update(classes[group])
                left.subtract(classes[group])
                count += sizes[group]
                return

    for category in sorted(of_class, key=lambda category: (len(of_class[category]), category)):
        if category not in shown:
            # The one that shows most of what is missing; equal ones in their order.
            take(sorted(of_class[category], key=lambda group: -len(classes[group] - shown)))
    for group in groups:
        take((group,))
    return chosen or {_least(groups, sizes, classes)}


def _least(groups: Sequence[str], sizes: Mapping[str, int], classes: Mapping[str, set[str]]) -> str:
    """The group to hold out where none can be spared: with objects to find, and few images."""
    return min(groups, key=lambda group: (not classes[group], sizes[group]))
