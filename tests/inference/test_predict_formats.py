"""Label formats of other programs, on detections made by hand."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from fpg_zoo import Detections
from fpg_zoo.inference.result_files import Outputs, stems_of
from fpg_zoo.inference.result_formats import labelme_content, yolo_labels


def _two(masks: torch.Tensor | None = None) -> Detections:
    return Detections(
        boxes=torch.tensor([[10.0, 20.0, 30.0, 60.0], [0.0, 0.0, 200.0, 100.0]]),
        scores=torch.tensor([0.9, 0.5]),
        labels=torch.tensor([1, 0]),
        masks=masks,
        class_names=("cat", "dog"),
        size=(100, 200),
    )


def test_yolo_labels_are_shares_of_the_sides() -> None:
    assert yolo_labels(_two()) == (
        "1 0.100000 0.400000 0.100000 0.400000\n"  # centers 20 of 200 and 40 of 100, sides 20 and 40
        "0 0.500000 0.500000 1.000000 1.000000\n"
    )


def test_labelme_has_rectangles_without_masks() -> None:
    content = labelme_content(_two(), "photos/a.png", Path("labels"))
    assert content["imagePath"] == str(Path("../photos/a.png"))
    assert (content["imageHeight"], content["imageWidth"]) == (100, 200)
    assert [(shape["label"], shape["shape_type"]) for shape in content["shapes"]] == [
        ("dog", "rectangle"),
        ("cat", "rectangle"),
    ]
    assert content["shapes"][0]["points"] == [[10.0, 20.0], [30.0, 60.0]]


def test_labelme_has_masks_within_their_corner_pixels() -> None:
    masks = torch.zeros(2, 100, 200, dtype=torch.bool)
    masks[0, 30:33, 12:17] = True
    masks[0, 30, 12] = False
    first, second = labelme_content(_two(masks), "a.png", Path())["shapes"]
    assert (first["shape_type"], first["points"]) == ("mask", [[12.0, 30.0], [16.0, 32.0]])
    with Image.open(io.BytesIO(base64.b64decode(first["mask"]))) as image:
        inside = np.asarray(image)
    expected = np.ones((3, 5), dtype=bool)
    expected[0, 0] = False
    assert np.array_equal(inside, expected)
    assert (second["shape_type"], second["mask"]) == ("rectangle", None)  # its mask is empty


def test_detections_are_told_on_one_line_and_in_a_table() -> None:
    found = _two()
    assert repr(found) == "Detections(2 in 100x200: 1 dog, 1 cat; scores 0.50..0.90)"
    assert repr(found[:0]) == "Detections(0 in 100x200)"
    table = Detections(**{**found.__dict__, "class_names": ("cat", "<b>")})._repr_html_()
    assert "<td>&lt;b&gt;</td><td>0.900</td><td>10.0</td><td>20.0</td><td>30.0</td><td>60.0</td>" in table
    assert table.count("<tr>") == 3


def test_names_of_files_are_no_others() -> None:
    outputs = Outputs(crops=Path(), yolo=Path())
    # The video's first frame would be labeled in clip_000000.txt, as the image; a crop of a.png be a_1_cat_crop.jpg.
    stems = stems_of(["clip.mp4", "clip_000000.png", "a.png", "a_1_cat_crop.jpg", "classes.png"], outputs)
    assert list(stems.values()) == ["clip_2", "clip_000000", "a_2", "a_1_cat_crop", "classes_2"]
