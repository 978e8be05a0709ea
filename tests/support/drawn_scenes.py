"""Drawn scenes as image files."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from fpg_zoo.data.shapes import ShapesDataset


def write_scene(file: Path, index: int = 2) -> Path:
    """Write a held-out scene in the format of the file's ending; returns the file."""
    Image.fromarray(ShapesDataset("val", index + 1)[index].image.permute(1, 2, 0).numpy()).save(file)
    return file
