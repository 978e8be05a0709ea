"""Data sets of objects as the `datasets` library has them: from the Hugging Face hub, or saved to a folder."""

from __future__ import annotations

import io
from collections.abc import Collection, Iterator, Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any

from torch import Tensor

from fpg_zoo.data.coco_images import image_sizes
from fpg_zoo.data.content import Content, digest_of
from fpg_zoo.data.dataset import ImageInfo
from fpg_zoo.data.split_names import HUB_PREFIX, WHOLE
from fpg_zoo.errors import ConfigError, ImageError
from fpg_zoo.files import on_terminal, read_regular
from fpg_zoo.progress import tqdm
from fpg_zoo.structures.images import MAX_FILE_BYTES, open_image, read_image, to_pixels
from fpg_zoo.text import printable, quoted

LOOKED_FOR = "dataset_dict.json or dataset_info.json (Hugging Face datasets, saved)"
_CATEGORY = ("category", "label")  # a column of `objects`, by either name
_OPTIONAL = ("id", "area", "iscrowd")  # columns of `objects` that mean what they mean in COCO
_COLUMNS = "image, and objects with bbox and category"


def is_hub_name(data: Path) -> bool:
    """Whether it stands for a data set on the hub."""
    return data.as_posix().startswith(HUB_PREFIX)


class HubDatasets:
    """A data set of the `datasets` library; a `Layout`.

    Attributes:
        label, place, splits, folder: as of `Layout`.
    """

    label = "Hugging Face datasets"
    folder = None

    def __init__(self, place: Path, rows_by_split: Mapping[str, Any]) -> None:
        """Nothing of the rows is looked at.

        Args:
            place: for messages.
            rows_by_split: a `datasets.Dataset` for each.
        """
        self.place = place
        self._rows = rows_by_split
        self.splits: Collection[str] = tuple(rows_by_split)

    def read(self, split: str) -> Content:
        """As of `Layout`. Boxes are [x, y, width, height] in pixels. Ids of images are their row, from 1 on."""
        names = self._class_names(split)
        ids = {name: identity for identity, name in enumerate(names)}
        files = self._rows[split].cast_column("image", _datasets(self.place).Image(decode=False))
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        bar = tqdm(self._rows_of(files), total=len(files), unit="image", disable=not on_terminal(), leave=False)
        for number, row in enumerate(bar, start=1):
            stored = row["image"] or {}
            images.append({"id": number, "file_name": Path(stored.get("path") or "").name or f"row {number}"})
            content = _content_of(stored)
            sizes = image_sizes(io.BytesIO(content)) if content is not None else []
            if sizes:  # upright, as the library gives images
                images[-1] |= {"height": sizes[0][0], "width": sizes[0][1]}
            for place, thing in enumerate(_things(row["objects"])):
                category = next((thing[name] for name in _CATEGORY if name in thing), None)
                annotations.append(
                    {
                        "id": f"row {number}, object {place}",
                        "image_id": number,
                        "category_id": ids.get(category) if isinstance(category, str) else category,
                        "bbox": thing.get("bbox"),
                        **{name: thing[name] for name in _OPTIONAL if thing.get(name) is not None},
                    }
                )
        categories = [{"id": identity, "name": name} for name, identity in ids.items()]
        return Content(
            source=self.place,
            images=images,
            annotations=annotations,
            categories=categories,
            folders=(Path(),),
            digest=digest_of(images, annotations, categories),
            pixels=_Pixels(files),
        )

    def _class_names(self, split: str) -> list[str]:
        """Those of a `ClassLabel`; of texts, all that any split has."""
        features = self._rows[split].features
        inner = _inner(features.get("objects"))
        objects = inner if isinstance(inner, dict) else {}
        category = next((_inner(objects[name]) for name in _CATEGORY if name in objects), None)
        if "image" not in features or "bbox" not in objects or category is None:
            columns = ", ".join(printable(name, 40) for name in (*features, *(f"objects.{name}" for name in objects)))
            raise ConfigError(f"{self.place}: {split}: its columns are {columns}; it takes {_COLUMNS}")
        names = getattr(category, "names", None)
        if names:
            return [str(name) for name in names]
        if getattr(category, "dtype", None) != "string":
            raise ConfigError(
                f"{self.place}: {split}: objects.category has no names of classes ({quoted(category)}); make it a "
                "ClassLabel, or texts"
            )
        found = {
            thing.get(name)
            for rows in self._rows.values()
            for row in self._rows_of(rows.select_columns("objects"))
            for thing in _things(row["objects"])
            for name in _CATEGORY
        }
        return sorted(name for name in found if isinstance(name, str))

    def _rows_of(self, rows: Any) -> Iterator[dict[str, Any]]:
        """One by one; a file that is damaged makes pyarrow raise what it likes."""
        try:
            yield from rows
        except Exception as error:
            raise ConfigError(f"{self.place}: its rows cannot be read ({printable(error)}); save it again") from None


class _Pixels:
    """Reads images out of rows."""

    def __init__(self, rows: Any) -> None:
        self._rows = rows

    def __call__(self, info: ImageInfo) -> Tensor:
        """(3, height, width) uint8 RGB, upright.

        Raises:
            ImageError: it cannot be read, or has another size than it had.
        """
        assert isinstance(info.image_id, int)  # a row, from 1 on
        try:
            content = _content_of(self._rows[info.image_id - 1]["image"])
            with open_image(io.BytesIO(content or b"")) as image:
                pixels = to_pixels(read_image(image))
        except Exception as error:  # of pyarrow's, of Pillow's
            raise ImageError(f"{info.file}, row {info.image_id}: cannot be read ({printable(error)})") from None
        if tuple(pixels.shape[1:]) != info.size:
            raise ImageError(f"{info.file}, row {info.image_id}: its pixels are not of the size that its header says")
        return pixels


def open_hub(name: Path) -> HubDatasets:
    """A data set on the hub; the library downloads it into its own cache.

    Args:
        name: `hf:OWNER/NAME`.

    Raises:
        ConfigError: the library is not there, or cannot load it.
    """
    library = _datasets(name)
    return _opened(name, lambda: library.load_dataset(name.as_posix().removeprefix(HUB_PREFIX)))


def find_saved(root: Path) -> HubDatasets | None:
    """What `save_to_disk` wrote."""
    saved = (root / "dataset_dict.json").is_file() or (
        (root / "dataset_info.json").is_file() and (root / "state.json").is_file()
    )
    if not saved:
        return None
    library = _datasets(root)
    return _opened(root, lambda: library.load_from_disk(str(root)))


def _datasets(place: Path) -> Any:
    try:
        import datasets
    except ImportError:
        raise ConfigError(
            f"{place}: needs the datasets library, which is not installed; pip install 'fpg-zoo[datasets]'"
        ) from None
    return datasets


def _opened(place: Path, load: Any) -> HubDatasets:
    try:
        loaded = load()
    except Exception as error:  # of the library's, of the network's
        raise ConfigError(f"{place}: cannot be loaded ({printable(error) or type(error).__name__})") from None
    return HubDatasets(place, loaded if isinstance(loaded, dict) else {WHOLE: loaded})


def _inner(feature: Any) -> Any:
    """What a feature is a list of; itself if it is none."""
    while hasattr(feature, "feature"):
        feature = feature.feature
    return feature


def _things(objects: Any) -> list[dict[str, Any]]:
    """The objects of a row, which the library gives as a table of lists or as a list of tables."""
    if isinstance(objects, dict):
        columns = {name: values for name, values in objects.items() if isinstance(values, list)}
        # Of a column that is too short, the last objects lack what it says, which the reader then tells.
        return [dict(zip(columns, values, strict=True)) for values in zip_longest(*columns.values())]
    return [thing for thing in objects or () if isinstance(thing, dict)]


def _content_of(stored: Mapping[str, Any]) -> bytes | None:
    """An image's file: in the row, or beside it under a path."""
    content, path = stored.get("bytes"), stored.get("path")
    if content is None and path:
        try:
            return read_regular(path, max_bytes=MAX_FILE_BYTES)
        except (OSError, ValueError):
            return None
    return content if isinstance(content, bytes) else None
