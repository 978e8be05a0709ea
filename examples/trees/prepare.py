"""Trees seen from an airplane, as a data set: `python examples/trees/prepare.py deepforest/data trees`.

The package deepforest ships four aerial photographs with a box around each tree crown, in Pascal VOC's format. Large
ones are cut into tiles, as they are too large for a detector and few. One of them is judged by: its left half is
`val`, its right half `test`; the others are `train`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

from PIL import Image

TRAIN = ("2019_YELL_2_528000_4978000_image_crop2", "OSBS_029", "SOAP_061")
JUDGED = "2019_YELL_2_541000_4977000_image_crop"
LEAST_VISIBLE = 0.5  # of a box's area; a smaller part of a crown is none

Box = tuple[float, float, float, float]


class Tile(NamedTuple):
    """A part of a photograph.

    Attributes:
        name: of its file.
        image: its pixels.
        boxes: of its trees: x1, y1, x2, y2 in its pixels.
    """

    name: str
    image: Image.Image
    boxes: list[Box]


def boxes_of(file: Path) -> list[Box]:
    """The boxes in a file of Pascal VOC's format, in pixels of the photograph."""
    rows = ElementTree.parse(file).iterfind("object/bndbox")
    return [tuple(float(row.findtext(side, "")) for side in ("xmin", "ymin", "xmax", "ymax")) for row in rows]  # type: ignore[misc]


def starts(length: int, side: int, overlap: float) -> range:
    """Where tiles begin along a side of the photograph; the last one may be smaller."""
    return range(0, max(round(length - side * overlap), 1), round(side * (1 - overlap)))


def tiles_of(
    folder: Path, name: str, side: int, overlap: float, columns: tuple[float, float] = (0, 1)
) -> Iterator[Tile]:
    """Cut a photograph, or the columns of it from one share of its width to another."""
    with Image.open(folder / f"{name}.png") as opened:
        whole = opened.convert("RGB")
    left, right = (round(share * whole.width) for share in columns)
    boxes = boxes_of(folder / f"{name}.xml")
    for y in starts(whole.height, side, overlap):
        for x in starts(right - left, side, overlap):
            x1, y1 = left + x, y
            x2, y2 = min(x1 + side, right), min(y1 + side, whole.height)
            inside = []
            for box in boxes:
                seen = (max(box[0], x1), max(box[1], y1), min(box[2], x2), min(box[3], y2))
                if area(seen) >= LEAST_VISIBLE * area(box) > 0:
                    inside.append((seen[0] - x1, seen[1] - y1, seen[2] - x1, seen[3] - y1))
            yield Tile(f"{name}_{x1}_{y1}.png", whole.crop((x1, y1, x2, y2)), inside)


def area(box: Box) -> float:
    """In square pixels; 0 where sides are crossed."""
    return max(box[2] - box[0], 0) * max(box[3] - box[1], 0)


def write_split(out: Path, split: str, tiles: Iterator[Tile]) -> None:
    """Write the images and the annotation file of a split, as COCO has them."""
    (out / split).mkdir(parents=True)
    (out / "annotations").mkdir(exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for tile in tiles:
        tile.image.save(out / split / tile.name)
        size = {"width": tile.image.width, "height": tile.image.height}
        images.append({"id": len(images) + 1, "file_name": tile.name, **size})
        for box in tile.boxes:
            row = {"id": len(annotations) + 1, "image_id": len(images), "category_id": 1, "iscrowd": 0}
            sides = [box[0], box[1], box[2] - box[0], box[3] - box[1]]
            annotations.append({**row, "bbox": sides, "area": area(box)})
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "tree"}]}
    (out / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    print(f"{split}: {len(images)} images, {len(annotations)} trees")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of the package's photographs")
    parser.add_argument("out", type=Path, help="the folder to make")
    parser.add_argument("--side", type=int, default=400, metavar="N", help="of a tile, pixels (default: 400)")
    options = parser.parse_args()
    side = options.side
    # Tiles to train on overlap, so that a crown that one cuts is whole in another.
    write_split(options.out, "train", (tile for name in TRAIN for tile in tiles_of(options.folder, name, side, 0.25)))
    for split, columns in (("val", (0, 0.5)), ("test", (0.5, 1))):
        write_split(options.out, split, tiles_of(options.folder, JUDGED, side, 0, columns))


if __name__ == "__main__":
    main()
