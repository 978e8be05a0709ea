"""A data set that needs no download: scenes of shapes, drawn when they are asked for, the same ones everywhere.

Ten classes that differ in outline, of any color, texture, size and angle, overlap each other on cluttered
backgrounds. Everything is computed in whole numbers from random numbers that depend on the split and the index only.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from fpg_zoo.config.validation import check_one_of, check_positive, check_tuple
from fpg_zoo.data.dataset import ImageInfo, Objects, Sample, no_objects
from fpg_zoo.data.masks import RunLengths
from fpg_zoo.data.shapes.outlines import CLASSES
from fpg_zoo.data.shapes.painting import paint
from fpg_zoo.data.shapes.scenes import MOST_OBJECTS, Scene, scene
from fpg_zoo.errors import ConfigError
from fpg_zoo.files import atomic_write
from fpg_zoo.structures.run_lengths import encode

Split = Literal["train", "val"]

NUM_IMAGES = {"train": 16000, "val": 1000}  # of each split, if no number is asked for
SIZE = (240, 320)  # height, width in pixels
_KEYS = {"train": 0, "val": 1}  # begin the keys of scenes, so that no two splits share one
_LEAST_SIDE = 32  # pixels; with less, `CocoDataset` leaves an image out
_GREATEST_SIDE = 1024  # pixels; beyond, the numbers that textures are computed with overflow


class ShapesDataset:
    """Scenes of a split with their objects; a `fpg_zoo.data.dataset.Dataset`.

    Attributes:
        split: `train` or `val`, which share no scene.
        class_names: in the order of labels.
        category_ids: of each class, as `Detections.to_coco` takes them; from 1 on.
        digest: what tells the data from any other.
    """

    class_names: tuple[str, ...] = tuple(CLASSES)
    category_ids: tuple[int, ...] = tuple(range(1, len(CLASSES) + 1))
    digest: str = "shapes"

    def __init__(
        self, split: Split, num_images: int | None = None, *, masks: bool = False, size: tuple[int, int] = SIZE
    ) -> None:
        """Nothing is drawn yet.

        Args:
            split: `train` or `val`.
            num_images: the first so many scenes of it; as many as `NUM_IMAGES` says if None.
            masks: give masks, too.
            size: (height, width) in pixels, each from 32 to 1024. Other sizes are other scenes, not resized ones.

        Raises:
            ConfigError: another split, or a number out of range.
        """
        check_one_of(tuple(_KEYS), split=split)
        self.split: Split = split
        self._num_images = NUM_IMAGES[split] if num_images is None else num_images
        check_positive(num_images=self._num_images)
        check_tuple(2, size=size)
        check_positive(_GREATEST_SIDE, **{f"size[{place}]": side for place, side in enumerate(size)})
        if min(size) < _LEAST_SIDE:
            raise ConfigError(f"size={size}: its sides take at least {_LEAST_SIDE} pixels")
        self._masks = masks
        self._size = size

    def __len__(self) -> int:
        return self._num_images

    def __getitem__(self, index: int) -> Sample:
        """A scene with its pixels.

        Raises:
            IndexError: `index` is out of range.
        """
        drawn = paint(self._scene(index))
        return Sample(torch.from_numpy(drawn).permute(2, 0, 1).contiguous(), self.image_info(index))

    def image_info(self, index: int) -> ImageInfo:
        """The annotations of a scene; its pixels are not drawn.

        The file is where `write_coco` puts it, in the folder it is given.

        Raises:
            IndexError: `index` is out of range.
        """
        placed, image_id = self._scene(index), index + 1
        boxes, places = placed.boxes(), np.arange(len(placed.objects), dtype=np.int64)
        objects = Objects(
            boxes=boxes,
            labels=np.array([thing.label for thing in placed.objects], dtype=np.int64),
            masks=tuple(_run_lengths(placed, place) for place in places.tolist()) if self._masks else None,
            ids=tuple(range(index * MOST_OBJECTS + 1, index * MOST_OBJECTS + 1 + len(placed.objects))),
            bboxes=np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).astype(np.float64),
            areas=np.array([np.count_nonzero(placed.visible(place)) for place in places.tolist()], dtype=np.float64),
            places=places,
        )
        crowds = no_objects(masks=self._masks)
        return ImageInfo(image_id, Path(self.split, f"{image_id:06d}.png"), self._size, objects, crowds)

    def annotations(self) -> dict[str, list[dict[str, Any]]]:
        """The content of an annotation file in COCO's format for all scenes, with masks."""
        images, rows = [], []
        for index in range(len(self)):
            info, placed = self.image_info(index), self._scene(index)
            height, width = info.size
            images.append({"id": info.image_id, "file_name": info.file.name, "height": height, "width": width})
            for place, identity in enumerate(info.objects.ids):
                x1, y1, x2, y2 = (int(side) for side in info.objects.boxes[place])
                mask = _run_lengths(placed, place)
                rows.append(
                    {
                        "id": identity,
                        "image_id": info.image_id,
                        "category_id": self.category_ids[info.objects.labels[place]],
                        "bbox": [x1, y1, x2 - x1, y2 - y1],
                        "area": int(info.objects.areas[place]),
                        "iscrowd": 0,
                        "segmentation": {"size": list(mask.size), "counts": mask.counts.decode("ascii")},
                    }
                )
        categories = [
            {"id": identity, "name": name} for identity, name in zip(self.category_ids, self.class_names, strict=True)
        ]
        return {"images": images, "annotations": rows, "categories": categories}

    def _scene(self, index: int) -> Scene:
        if not 0 <= index < len(self):
            raise IndexError(f"image {index}: there are {len(self)}, from 0 on")
        return scene((_KEYS[self.split], index), self._size)


def _run_lengths(placed: Scene, place: int) -> RunLengths:
    (rle,) = encode(torch.from_numpy(placed.visible(place))[None])
    height, width = rle["size"]
    return RunLengths((height, width), rle["counts"].encode("ascii"))


def write_coco(
    folder: str | Path, split: Split, num_images: int | None = None, *, size: tuple[int, int] = SIZE
) -> ShapesDataset:
    """Write scenes as `CocoDataset.from_folder` reads them: `annotations/instances_SPLIT.json` and `SPLIT/*.png`.

    What is there under these names is replaced; the annotation file comes last.

    Args:
        folder: made if need be. Both splits fit into one.
        split, num_images, size: as of `ShapesDataset`.

    Returns:
        What was written, as it is drawn.

    Raises:
        ConfigError: as of `ShapesDataset`.
        StorageError: the folder cannot be written.
    """
    dataset = ShapesDataset(split, num_images, masks=True, size=size)
    for index in range(len(dataset)):
        sample = dataset[index]
        target = Path(folder, sample.info.file)
        with atomic_write(target) as temporary:
            Image.fromarray(sample.image.permute(1, 2, 0).numpy()).save(temporary)
    target = Path(folder, "annotations", f"instances_{split}.json")
    with atomic_write(target) as temporary:
        temporary.write_text(json.dumps(dataset.annotations()) + "\n", encoding="utf-8")
    return dataset
