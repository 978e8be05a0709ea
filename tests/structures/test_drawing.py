"""Detections drawn on images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from fpg_zoo.errors import ImageError
from fpg_zoo.structures import Detections
from fpg_zoo.structures.drawing import class_color, text_color

GREY = (128, 128, 128)


def _found(boxes, size, *, labels=None, scores=None, masks=None, class_names=("person", "tennis racket")):
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return Detections(
        boxes=boxes,
        scores=torch.full((len(boxes),), 0.87) if scores is None else torch.tensor(scores),
        labels=torch.zeros(len(boxes), dtype=torch.long) if labels is None else torch.tensor(labels),
        masks=masks,
        class_names=class_names,
        size=size,
    )


def _grey(size, mode="RGB"):
    return Image.new("RGB", (size[1], size[0]), GREY).convert(mode)


def _drawn(found):
    """(height, width, 3) of the detections on gray."""
    return np.array(found.draw(_grey(found.size)))


def _changed(pixels):
    return (pixels != GREY).any(axis=-1)


@pytest.mark.parametrize("with_masks", [True, False])
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "CMYK", "1"])
def test_draw_gives_an_rgb_copy_and_leaves_the_picture_alone(mode, with_masks):
    picture = _grey((60, 80), mode)
    before = picture.copy()
    masks = torch.ones(1, 60, 80, dtype=torch.bool) if with_masks else None
    drawn = _found([[10, 20, 60, 50]], (60, 80), masks=masks).draw(picture)
    assert drawn is not picture
    assert (drawn.mode, drawn.size) == ("RGB", (80, 60))
    assert picture.mode == mode
    assert picture.tobytes() == before.tobytes()
    assert drawn.tobytes() != before.convert("RGB").tobytes()


def test_draw_leaves_the_detections_alone():
    found = _found([[10, 20, 60, 50], [0, 0, 5, 5]], (60, 80), scores=[0.2, 0.9])
    boxes = found.boxes.clone()
    found.draw(_grey((60, 80)))
    assert torch.equal(found.boxes, boxes)
    assert found.scores.tolist() == pytest.approx([0.2, 0.9])


@pytest.mark.parametrize("size", [(80, 60), (60, 81), (61, 80), (1, 1)])
def test_a_picture_of_another_size_is_refused(size):
    with pytest.raises(
        ValueError, match=rf"the image is {size[0]}x{size[1]} and the detections are of an image of 60x80"
    ):
        _found([[10, 20, 60, 50]], (60, 80)).draw(_grey(size))


def test_no_detections_change_nothing():
    for masks in (None, torch.zeros(0, 60, 80, dtype=torch.bool)):
        assert not _changed(_drawn(_found([], (60, 80), masks=masks))).any()


def test_a_box_is_a_frame_in_its_classes_colour_and_does_not_fill():
    pixels = _drawn(_found([[50, 80, 150, 180]], (200, 200)))
    changed = _changed(pixels)
    # The frame lies within 4 pixels of the box's edges; the label stands above the box, so inside nothing changes.
    assert not changed[85:175, 55:145].any()
    for edge in (changed[84:176, 50:54], changed[84:176, 147:151]):
        assert edge.any(axis=1).all()
    for edge in (changed[80:84, 54:146], changed[177:181, 54:146]):
        assert edge.any(axis=0).all()
    # Far from the box and from the line above it, nothing changes either.
    assert not changed[185:].any()
    assert not changed[:50].any()
    assert not changed[:, :45].any()
    assert not changed[:, 155:].any()
    assert (pixels[100:160, 50:54] == class_color(0)).all(axis=-1).any(axis=1).all()


@pytest.mark.parametrize("background", [(0, 0, 0), (255, 255, 255), class_color(0)])
def test_a_box_stands_out_from_any_background(background):
    # On black its color does, on its own color the dark line around it, on white both.
    picture = Image.new("RGB", (200, 200), background)
    pixels = np.array(_found([[50, 80, 150, 180]], (200, 200)).draw(picture)).astype(int)
    contrast = np.abs(pixels[100:160, 48:56] - background).max(axis=(1, 2))
    assert (contrast > 100).all()


def test_a_mask_tints_its_own_pixels_only():
    masks = torch.zeros(1, 60, 80, dtype=torch.bool)
    masks[0, 30:40, 50:60] = True
    # The box and its label are in the upper left corner, far from the mask.
    pixels = _drawn(_found([[2, 2, 8, 8]], (60, 80), masks=masks))
    changed = _changed(pixels)
    assert changed[30:40, 50:60].all()
    assert not changed[45:].any()
    assert not changed[28:45, :50].any()
    tints = np.unique(pixels[30:40, 50:60].reshape(-1, 3), axis=0)
    assert len(tints) == 1
    # Between gray and the class's color, on every channel.
    for tint, grey, color in zip(tints[0], GREY, class_color(0), strict=True):
        assert min(grey, color) < tint < max(grey, color)


def _blended_whole(picture, found, order):
    """The tint by its definition, on the whole image: 0.45 of the class's color, to the nearest level."""
    pixels = np.array(picture)
    for index in order:
        mask = found.masks[index].numpy()
        color = np.array(class_color(int(found.labels[index])))
        pixels[mask] = (pixels[mask] * (1 - 0.45) + color * 0.45).round().astype(np.uint8)
    return pixels


def test_masks_are_blended_one_over_the_other_pixel_for_pixel_wherever_they_lie():
    random = np.random.default_rng(3)
    picture = Image.fromarray(random.integers(0, 256, (90, 120, 3), dtype=np.uint8))
    masks = torch.zeros(6, 90, 120, dtype=torch.bool)
    masks[0, 20:70, 30:100] = torch.from_numpy(random.random((50, 70)) < 0.5)
    masks[1, 40:90, 60:120] = True  # up to the last row and column
    masks[2, 45, 7] = masks[2, 80, 110] = True  # two pixels far apart
    masks[3, :, 50] = True  # one column
    masks[4, 60, :] = True  # one row; and the last mask is empty
    scores = [0.3, 0.9, 0.5, 0.7, 0.5, 0.6]
    # The boxes, with their labels, stay in the upper left corner: the masks all reach beyond them.
    found = _found([[1, 1, 4, 4]] * 6, (90, 120), labels=[0, 1, 0, 1, 1, 0], scores=scores, masks=masks)
    # Worst first; numbers 2 and 4 have the same score and keep their order.
    expected = _blended_whole(picture, found, [0, 2, 4, 5, 3, 1])
    drawn = np.array(found.draw(picture))
    assert np.array_equal(drawn[30:], expected[30:])
    assert (drawn[30:] != np.array(picture)[30:]).any(axis=-1).mean() > 0.4


@pytest.mark.parametrize("orientation", [3, 6])
@pytest.mark.parametrize("kind", ["PIL image", "path", "str"])
def test_a_rotated_picture_is_drawn_on_upright(kind, orientation, tmp_path):
    stored = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "x.png", exif=exif)
    # 3: seen upside down. 6: the stored top is seen at the right, a quarter turn clockwise.
    upright = stored.transpose({3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_270}[orientation])
    found = _found([[5, 30, 40, 55]], (upright.height, upright.width))
    expected = found.draw(upright)
    with Image.open(tmp_path / "x.png") as opened:
        source = {"PIL image": opened, "path": tmp_path / "x.png", "str": str(tmp_path / "x.png")}[kind]
        assert np.array_equal(np.array(found.draw(source)), np.array(expected))
        assert opened.size == (80, 60)


def test_a_picture_of_sixteen_bits_is_scaled_not_clipped(tmp_path):
    # 128 * 257 is gray 128 on the scale 0..65535; Pillow's own conversion would leave it white.
    sixteen = np.full((60, 80), 128 * 257, np.uint16)
    found = _found([[5, 30, 40, 55]], (60, 80))
    Image.fromarray(sixteen).save(tmp_path / "x.png")
    for source in (Image.fromarray(sixteen), sixteen, tmp_path / "x.png"):
        assert np.array_equal(np.array(found.draw(source)), _drawn(found))


def test_arrays_and_tensors_are_drawn_on_and_left_alone():
    found = _found([[5, 30, 40, 55]], (60, 80), masks=torch.ones(1, 60, 80, dtype=torch.bool))
    array = np.full((60, 80, 3), 128, np.uint8)
    tensor = torch.full((3, 60, 80), 128, dtype=torch.uint8)
    for source in (array, tensor):
        assert np.array_equal(np.array(found.draw(source)), _drawn(found))
    assert (array == 128).all()
    assert (tensor == 128).all()


def test_what_is_no_picture_cannot_be_drawn_on(tmp_path):
    with pytest.raises(ImageError, match=r"gone\.png: no such file"):
        _found([[5, 30, 40, 55]], (60, 80)).draw(tmp_path / "gone.png")


def test_the_better_of_two_detections_is_drawn_over_the_other():
    for scores, top in (([0.9, 0.4], 0), ([0.4, 0.9], 1)):
        pixels = _drawn(_found([[50, 80, 150, 180]] * 2, (200, 200), labels=[0, 1], scores=scores))
        inner_line = pixels[100:160, 50:54].reshape(-1, 3)
        assert (inner_line == class_color(top)).all(axis=-1).any()
        assert not (inner_line == class_color(1 - top)).all(axis=-1).any()


def _text_pixels(pixels):
    """The text of class 0: white on red, so that red is full and green is not red's 38; nothing else is so."""
    assert (class_color(0), text_color(class_color(0))) == ((255, 38, 38), (255, 255, 255))
    return (pixels[..., 0] == 255) & (pixels[..., 1] > 60)


def _reference_text():
    """How many pixels the text has that stands in the middle of the image."""
    count = int(_text_pixels(_drawn(_found([[50, 100, 150, 150]], (200, 200)))).sum())
    assert count > 20
    return count


@pytest.mark.parametrize(
    "box",
    [
        [50, 0, 150, 150],  # at the top edge: no room above
        [50, 3, 150, 150],  # near it
        [199, 100, 200, 150],  # at the right edge
        [190, 0, 200, 200],  # in the upper right corner
        [0, 0, 200, 200],  # the whole image
        [0, 198, 200, 200],  # at the bottom
        [150, 199, 200, 200],  # in the lower right corner
        [10, 10, 12, 12],  # a box smaller than its label
    ],
)
def test_the_text_of_a_label_is_wholly_inside_the_picture(box):
    assert int(_text_pixels(_drawn(_found([box], (200, 200)))).sum()) == _reference_text()


def test_the_text_of_a_label_is_wholly_inside_a_picture_hardly_higher_than_it():
    # The label is about 16 pixels high: there is room for it neither above y = 10 nor from there to the bottom at 20.
    assert int(_text_pixels(_drawn(_found([[50, 10, 150, 20]], (20, 200)))).sum()) == _reference_text()


@pytest.mark.parametrize("box", [[190, 100, 200, 150], [190, 0, 200, 200]])
def test_the_frame_of_a_label_at_the_right_edge_is_wholly_inside_the_picture(box):
    # The label's frame is black, and its right side must not fall one pixel outside.
    pixels = _drawn(_found([box], (200, 200)))
    rows = np.flatnonzero(_text_pixels(pixels).any(axis=1))
    assert (pixels[rows.min() : rows.max() + 1, 199] == 0).all()


def test_a_label_stands_above_its_box_where_there_is_room_and_in_it_otherwise():
    above = _text_pixels(_drawn(_found([[50, 100, 150, 150]], (200, 200))))
    assert np.flatnonzero(above.any(axis=1)).max() < 100
    inside = _text_pixels(_drawn(_found([[50, 2, 150, 150]], (200, 200))))
    assert np.flatnonzero(inside.any(axis=1)).min() >= 2


def test_the_label_tells_name_and_score():
    base = _drawn(_found([[50, 100, 150, 150]], (200, 200)))
    other_score = _drawn(_found([[50, 100, 150, 150]], (200, 200), scores=[0.12]))
    other_name = _drawn(_found([[50, 100, 150, 150]], (200, 200), class_names=("giraffe", "kite")))
    same = _drawn(_found([[50, 100, 150, 150]], (200, 200), scores=[0.8701]))
    assert np.array_equal(base, same)
    assert not np.array_equal(base, other_score)
    assert not np.array_equal(base, other_name)


def test_text_is_black_on_bright_and_white_on_dark_colours():
    # Relative luminance 0.2126 R + 0.7152 G + 0.0722 B: yellow 0.93, blue 0.07, red 0.21, green 0.72 of 255.
    assert text_color((255, 255, 0)) == text_color((0, 255, 0)) == text_color((255, 255, 255)) == (0, 0, 0)
    assert text_color((0, 0, 255)) == text_color((255, 0, 0)) == text_color((0, 0, 0)) == (255, 255, 255)


def test_neighbouring_classes_have_colours_well_apart():
    colors = np.array([class_color(label) for label in range(80)])
    assert len(np.unique(colors, axis=0)) == 80
    assert (np.abs(np.diff(colors, axis=0)).sum(axis=1) > 200).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (2, 2)])
def test_a_tiny_picture_can_be_drawn_on(size):
    masks = torch.ones(1, *size, dtype=torch.bool)
    drawn = _found([[0, 0, size[1], size[0]]], size, masks=masks).draw(_grey(size))
    assert drawn.size == (size[1], size[0])
    assert _changed(np.array(drawn)).any()


@pytest.mark.parametrize("box", [[5, 5, 5, 5], [5, 5, 5.4, 40], [0.5, 0.5, 0.9, 0.9], [59.7, 59.7, 60, 60]])
def test_a_box_without_room_for_its_frame_can_be_drawn(box):
    assert _changed(_drawn(_found([box], (60, 60)))).any()
