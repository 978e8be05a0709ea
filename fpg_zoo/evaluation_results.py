"""Anybody's detections: a COCO results file and the annotation file it belongs to, every entry checked before use."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from reprlib import repr as shown  # the beginning of what may be long
from typing import Any, NamedTuple

from tqdm import tqdm

from fpg_zoo.data.masks import Mask, compressed, read_mask
from fpg_zoo.errors import ConfigError
from fpg_zoo.evaluation import Kind
from fpg_zoo.files import on_terminal

_KEYS: dict[Kind, str] = {"bbox": "bbox", "segm": "segmentation"}
_FAR = 1e9  # pixels; no coordinate is as large
_LARGEST = sys.float_info.max
_MOST_SHOWN = 5  # entries that are wrong


class Results(NamedTuple):
    """Detections that `fpg_zoo.evaluation.coco_scores` takes.

    Attributes:
        annotations: the content of the annotation file.
        rows: those of the results file, masks as compressed RLE.
        kinds: what they can be judged by, one at least: boxes, masks.
    """

    annotations: dict[str, Any]
    rows: list[dict[str, Any]]
    kinds: tuple[Kind, ...]


def read_results(results_file: Path, annotation_file: Path) -> Results:
    """Read detections and the ground truth they are compared with.

    Args:
        results_file: JSON, a list of rows with `image_id`, `category_id`, `score`, and `bbox` [x, y, width, height] in
            pixels, `segmentation` as RLE or polygons in pixels, or both. Every row must have what any has. May be
            empty.
        annotation_file: JSON in COCO's format. Its pictures are those that count.

    Raises:
        ConfigError: one of the files cannot be read, or an entry cannot be used. The message names the first ones by
            their place, counted from 0, and how many there are.
    """
    rows = _json(results_file)
    if not isinstance(rows, list):
        raise ConfigError(
            f"{results_file}: holds {_kind_of(rows)}, not a list; name a COCO results file, a list of detections"
        )
    content = _json(annotation_file)
    for part in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(part), list):
            raise ConfigError(f"{annotation_file}: no list {part!r} in it; name an annotation file in COCO's format")
    kinds = _kinds(rows, content["annotations"])
    truth = _Truth(annotation_file, content, kinds)
    return Results(truth.content(), _checked_rows(results_file, rows, truth, kinds), kinds)


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_bytes())
    except FileNotFoundError:
        raise ConfigError(f"{file}: no such file") from None
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read ({error.strerror or error}); name a JSON file") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{file}: not JSON ({error}); name a JSON file in COCO's format") from None


def _kind_of(value: object) -> str:
    names: Mapping[type, str] = {dict: "an object", str: "a text", type(None): "null"}
    return names.get(type(value), "a number")


def _kinds(rows: list[Any], annotations: list[Any]) -> tuple[Kind, ...]:
    """What any row has; where there are no rows, what any ground truth has. Boxes if nobody has anything."""
    told = rows or annotations
    return tuple(kind for kind, key in _KEYS.items() if any(isinstance(row, dict) and key in row for row in told)) or (
        "bbox",
    )


def _refuse(file: Path, what: str, faults: Iterable[tuple[int, str]], total: int) -> None:
    """Raise if there are any."""
    iterator = iter(faults)
    first = list(itertools.islice(iterator, _MOST_SHOWN))
    if not first:
        return
    rest = sum(1 for _ in iterator)
    told = "; ".join(f"{what}[{place}] {fault}" for place, fault in first)
    raise ConfigError(
        f"{file}: {len(first) + rest} of {total} {what} cannot be used: {told}{'; ...' if rest else ''}; "
        "correct them or leave them out"
    )


class _Truth:
    """An annotation file's content, checked for what these kinds need of it."""

    def __init__(self, file: Path, content: dict[str, Any], kinds: tuple[Kind, ...]) -> None:
        self.file = file
        self._content = content
        self._kinds = kinds
        self.sizes: dict[int | str, tuple[int, int]] = {}  # (height, width) in pixels by picture; 0, 0 without masks
        self.category_ids: set[int] = set()
        self._names: set[str] = set()
        for part, fault_of in (
            ("categories", self._category_fault),
            ("images", self._image_fault),
            ("annotations", self._object_fault),
        ):
            entries = content[part]
            if part != "annotations" and not entries:
                raise ConfigError(f"{file}: no {part} in it; name the annotation file that the detections belong to")
            _refuse(file, part, _faults(entries, fault_of), len(entries))

    def content(self) -> dict[str, Any]:
        """With what many tools leave out put in: `iscrowd`, and the box's area for `area`."""
        rows = [
            {"iscrowd": 0, **({} if "area" in row else {"area": _box_area(row)}), **row}
            for row in self._content["annotations"]
            if row["image_id"] in self.sizes
        ]
        return {**self._content, "annotations": rows}

    def _category_fault(self, entry: Any) -> str | None:
        if not isinstance(entry, dict) or type(entry.get("id")) is not int or not isinstance(entry.get("name"), str):
            return "is without a whole number as id or without a name"
        if entry["id"] in self.category_ids or entry["name"] in self._names:
            return f"has an id or name that is there before: {shown(entry['id'])}, {shown(entry['name'])}"
        self.category_ids.add(entry["id"])
        self._names.add(entry["name"])
        return None

    def _image_fault(self, entry: Any) -> str | None:
        if not isinstance(entry, dict) or type(entry.get("id")) not in (int, str):
            return "is without an id"
        if entry["id"] in self.sizes:
            return f"has an id that is there before: {shown(entry['id'])}"
        sides: list[Any] = [entry.get(side) if "segm" in self._kinds else 0 for side in ("height", "width")]
        if not all(type(side) is int and 0 <= side < _FAR for side in sides):
            return "is without height and width in pixels, which masks need"
        height, width = sides
        self.sizes[entry["id"]] = (height, width)
        return None

    def _object_fault(self, entry: Any) -> str | None:
        if not isinstance(entry, dict) or type(entry.get("image_id")) not in (int, str):
            return "is without an image_id"
        if entry["image_id"] not in self.sizes:
            return None  # of a picture that does not count
        category = entry.get("category_id")
        if type(category) is not int or category not in self.category_ids:
            return f"has category_id {shown(category)}, which is not in categories"
        if "bbox" in self._kinds or "area" not in entry:
            fault = _box_fault(entry.get("bbox"))
            if fault:
                return fault
        if "area" in entry and not _is_number(entry["area"]):
            return f"has area {shown(entry['area'])}, which is no number"
        if type(entry.get("iscrowd", 0)) not in (int, bool):
            return f"has iscrowd {shown(entry['iscrowd'])}, which is neither 0 nor 1"
        if "segm" in self._kinds:
            return _mask(entry.get("segmentation"), self.sizes[entry["image_id"]])[1]
        return None


def _faults(entries: Iterable[Any], fault_of: Callable[[Any], str | None]) -> Iterable[tuple[int, str]]:
    for place, entry in enumerate(entries):
        fault = fault_of(entry)
        if fault:
            yield place, fault


def _checked_rows(file: Path, rows: list[Any], truth: _Truth, kinds: tuple[Kind, ...]) -> list[dict[str, Any]]:
    wanted = ("image_id", "category_id", "score", *(_KEYS[kind] for kind in kinds))
    checked: list[dict[str, Any]] = []

    def fault_of(row: Any) -> str | None:
        if not isinstance(row, dict):
            return f"is {_kind_of(row)}, no detection"
        missing = [key for key in wanted if key not in row]
        if missing:
            return f"is without {', '.join(missing)}"
        image_id, category = row["image_id"], row["category_id"]
        if type(image_id) not in (int, str) or image_id not in truth.sizes:
            return f"has image_id {shown(image_id)}, which is not in {truth.file.name}"
        if type(category) is not int or category not in truth.category_ids:
            return f"has category_id {shown(category)}, which is not in {truth.file.name}"
        if not _is_number(row["score"]):
            return f"has score {shown(row['score'])}, which is no number"
        kept = {key: row[key] for key in wanted}
        if "bbox" in kinds and (fault := _box_fault(row["bbox"])):
            return fault
        if "segm" in kinds:
            mask, fault = _mask(row["segmentation"], truth.sizes[image_id])
            if mask is None:
                return fault
            kept["segmentation"] = compressed(mask, truth.sizes[image_id])
        checked.append(kept)
        return None

    with tqdm(rows, desc="checking", unit="row", disable=not on_terminal(), leave=False) as bar:
        _refuse(file, "rows", _faults(bar, fault_of), len(rows))
    return checked


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and -_LARGEST <= value <= _LARGEST  # type: ignore[operator]


def _box_fault(box: object) -> str | None:
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
        return f"has bbox {shown(box)}, which is not four numbers"
    if min(box[2:]) < 0:
        return f"has bbox {shown(box)}, whose width or height is negative"
    if max(map(abs, box)) >= _FAR:
        return f"has bbox {shown(box)}, which lies in no picture"
    return None


def _box_area(row: Mapping[str, Any]) -> float:
    return float(row["bbox"][2] * row["bbox"][3])


def _mask(segmentation: object, size: tuple[int, int]) -> tuple[Mask | None, str | None]:
    """A mask, or None and what is wrong with it."""
    mask = read_mask(segmentation, size, lambda _: None)
    return mask, None if mask else f"has a segmentation that is no RLE or polygons of its {size[1]}x{size[0]} pixels"
