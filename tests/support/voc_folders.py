"""Small datasets in Pascal VOC's format, written for a test."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from coco_folders import draw_picture

WIDTH, HEIGHT = 40, 48


def voc_object(name: str, *corners: Any, rest: str = "") -> str:
    sides = "".join(
        f"<{side}>{at}</{side}>" for side, at in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=False)
    )
    return f"<object><name>{name}</name>{rest}<bndbox>{sides}</bndbox></object>"


GOOD = voc_object("cell", 5, 6, 14, 25)


def voc_xml(*objects: str, width: int = WIDTH, height: int = HEIGHT) -> str:
    size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
    return f"<annotation><filename>x</filename>{size}{''.join(objects)}</annotation>"


def write_voc(folder: Path, annotations: dict[str, str], lists: dict[str, Iterable[str]] | None = None) -> Path:
    """A folder with an image for each annotation file."""
    for stem, text in annotations.items():
        draw_picture(folder / "JPEGImages" / f"{stem}.jpg", WIDTH, HEIGHT)
        (folder / "Annotations").mkdir(parents=True, exist_ok=True)
        (folder / "Annotations" / f"{stem}.xml").write_text(text, encoding="utf-8")
    for split, stems in (lists or {}).items():
        (folder / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
        (folder / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(stems) + "\n", encoding="utf-8")
    return folder
