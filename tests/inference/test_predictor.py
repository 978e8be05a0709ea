"""From images of any kind to detections in their own pixels, on tiny detectors."""

from __future__ import annotations

import copy
import io
import itertools
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from serving import serve
from tiny_models import tiny_model

import fpg_zoo
from fpg_zoo import Detections, Predictor
from fpg_zoo.errors import ImageError
from fpg_zoo.structures.images import read_image

HEIGHT, WIDTH = 40, 60
SAME_SCORE = 1e-3  # summing in another order, as other batch sizes do, moves the last digits of a score alone
SAME_PLACE = 1e-2  # pixels


def _noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


PIXELS = _noise(HEIGHT, WIDTH)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor(tiny_model())


@pytest.fixture(scope="module")
def found(predictor: Predictor) -> Detections:
    """What is found in PIXELS."""
    (found,) = predictor(PIXELS)
    assert len(found) >= 10  # or the comparisons with it would compare nothing
    return found


def _same(one: Detections, other: Detections) -> bool:
    assert one.masks is not None
    assert other.masks is not None
    return (
        torch.equal(one.boxes, other.boxes)
        and torch.equal(one.scores, other.scores)
        and torch.equal(one.labels, other.labels)
        and torch.equal(one.masks, other.masks)
        and (one.size, one.class_names) == (other.size, other.class_names)
    )


def _assert_close(one: Detections, other: Detections) -> None:
    assert len(one) == len(other) > 0
    assert float((one.scores - other.scores).abs().max()) < SAME_SCORE
    assert float((one.boxes - other.boxes).abs().max()) < SAME_PLACE
    assert torch.equal(one.labels, other.labels)


def _assert_equal_but_for_rounding(one: Detections, other: Detections) -> None:
    _assert_close(one, other)
    assert one.masks is not None
    assert other.masks is not None
    assert int((one.masks != other.masks).sum()) <= one.masks.sum() * 1e-3


def _png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


IOU_TYPES = {
    "array": lambda path: PIXELS,
    "str": str,
    "Path": lambda path: path,
    "PIL image": lambda path: Image.fromarray(PIXELS),
    "PIL image of a file": Image.open,
    "tensor of uint8": lambda path: torch.from_numpy(PIXELS).permute(2, 0, 1),
    "tensor of float": lambda path: torch.from_numpy(PIXELS).permute(2, 0, 1) / 255,
    "RGBA array": lambda path: np.concatenate([PIXELS, np.full_like(PIXELS[:, :, :1], 7)], 2),
    "uint16 array": lambda path: PIXELS.astype(np.uint16) * 257,
}


@pytest.mark.parametrize("kind", IOU_TYPES)
@pytest.mark.slow
def test_every_kind_of_input_gives_the_same(kind: str, predictor: Predictor, found: Detections, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(_png(PIXELS))
    assert _same(predictor(IOU_TYPES[kind](path))[0], found)


def test_a_url_gives_the_same(predictor: Predictor, found: Detections) -> None:
    with serve() as server:
        server.files["/picture.png"] = _png(PIXELS)
        assert _same(predictor(f"{server.url}/picture.png")[0], found)
    assert [request.path for request in server.requests] == ["/picture.png"]


@pytest.mark.parametrize("container", [list, tuple])
def test_one_picture_or_a_sequence_of_one_gives_a_list_of_one(
    container: Any, predictor: Predictor, found: Detections
) -> None:
    results = predictor(container([PIXELS]))
    assert isinstance(results, list)
    assert [_same(result, found) for result in results] == [True]


def test_no_pictures_give_no_results(predictor: Predictor) -> None:
    assert predictor([]) == []


def test_predicting_twice_gives_the_same(predictor: Predictor, found: Detections) -> None:
    assert _same(predictor(PIXELS)[0], found)


def test_results_are_plain_values_on_the_cpu(found: Detections) -> None:
    for tensor in (found.boxes, found.scores, found.labels, found.masks):
        assert tensor is not None
        assert tensor.device.type == "cpu"
        assert not tensor.requires_grad
    assert (found.boxes.dtype, found.scores.dtype, found.labels.dtype) == (torch.float32, torch.float32, torch.int64)
    assert found.masks is not None
    assert found.masks.dtype == torch.bool
    assert found.size == (HEIGHT, WIDTH)
    assert torch.equal(found.scores, found.scores.sort(descending=True).values)


def test_a_detector_without_masks_gives_none() -> None:
    (result,) = Predictor(tiny_model("retinanet_nano_fpg"))(PIXELS)
    assert len(result) > 0
    assert result.masks is None


# Batches


@pytest.mark.slow
def test_batch_size_does_not_matter_for_pictures_of_one_size(predictor: Predictor) -> None:
    pictures = [_noise(64, 64, seed) for seed in range(3)]
    one_by_one = predictor(pictures)
    assert not _same(one_by_one[0], one_by_one[1])
    for batch_size in (2, 8):
        for one, other in zip(predictor(pictures, batch_size=batch_size), one_by_one, strict=True):
            _assert_equal_but_for_rounding(one, other)


@pytest.mark.parametrize(
    "sizes",
    [
        # Scaled to 43x128 and 60x128, and so both padded to 64x128 whether together or alone.
        [(20, 60), (30, 64)],
        # Landscape, portrait and square: alone they are padded to 64x128, 128x64 and 128x128.
        [(20, 60), (60, 20), (64, 64)],
    ],
    ids=["padded alike", "padded differently"],
)
def test_batch_size_does_not_matter_for_pictures_of_mixed_sizes(
    sizes: list[tuple[int, int]], predictor: Predictor
) -> None:
    pictures = [_noise(*size) for size in sizes]
    one_by_one = predictor(pictures)
    together = predictor(pictures, batch_size=8)
    assert [result.size for result in together] == sizes
    for one, other in zip(together, one_by_one, strict=True):
        _assert_equal_but_for_rounding(one, other)


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_of_nothing_is_refused(batch_size: int, predictor: Predictor) -> None:
    with pytest.raises(ValueError, match=rf"batch_size={batch_size}: it takes at least 1"):
        predictor(PIXELS, batch_size=batch_size)
    with pytest.raises(ValueError, match=rf"batch_size={batch_size}"):
        next(predictor.stream([PIXELS], batch_size=batch_size))


class _GoneError(Exception):
    pass


def _two_then_nothing() -> Iterator[np.ndarray]:
    yield PIXELS
    yield PIXELS
    raise _GoneError


def test_a_stream_gives_results_before_it_reads_on(predictor: Predictor, found: Detections) -> None:
    stream = predictor.stream(_two_then_nothing())
    assert _same(next(stream), found)
    assert _same(next(stream), found)
    with pytest.raises(_GoneError):
        next(stream)


def test_a_stream_reads_no_further_than_its_batch(predictor: Predictor) -> None:
    read = []

    def pictures() -> Iterator[np.ndarray]:
        for number in range(6):
            read.append(number)
            yield PIXELS

    stream = predictor.stream(pictures(), batch_size=2)
    assert read == []
    next(stream)
    assert read == [0, 1]
    next(stream)
    assert read == [0, 1]
    next(stream)
    assert read == [0, 1, 2, 3]


def test_a_stream_gives_what_the_call_gives(predictor: Predictor, found: Detections) -> None:
    # Five images in batches of two: the last batch is not full.
    results = list(predictor.stream((PIXELS for _ in range(5)), batch_size=2))
    assert len(results) == 5
    for result in results:
        _assert_equal_but_for_rounding(result, found)


def test_a_list_is_read_while_the_model_works(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = [threading.Event() for _ in range(3)]
    detect, batches = predictor.model.detect, itertools.count(1)

    def reading(number: int, **_: str) -> Image.Image:
        begun[number].set()
        return read_image(PIXELS)

    def detecting(*given: Any, **options: Any) -> list[Detections]:
        following = next(batches)
        if following < len(begun):
            assert begun[following].wait(timeout=30), "the next image is not read before these are done"
        return detect(*given, **options)

    monkeypatch.setattr("fpg_zoo.inference.predictor.read_image", reading)
    monkeypatch.setattr(predictor.model, "detect", detecting)
    assert len(predictor([0, 1, 2])) == 3


# Frames


# 123 is a width at which 128 / (128 / width) is more than the width in float32.
@pytest.mark.parametrize("size", [(40, 60), (123, 123), (205, 30), (300, 200), (1, 1), (20000, 1)])
def test_boxes_and_masks_are_in_the_frame_of_the_picture(size: tuple[int, int], predictor: Predictor) -> None:
    height, width = size
    (result,) = predictor(_noise(*size))
    assert result.size == size
    assert len(result) > 0
    x1, y1, x2, y2 = result.boxes.unbind(1)
    # Some reach the far edges; in the network's frame of 128 pixels they would lie elsewhere.
    assert float(x2.max()) > 0.95 * width
    assert float(y2.max()) > 0.95 * height
    assert bool((x1 >= 0).all() & (x1 <= x2).all() & (x2 <= width).all()), float(x2.max())
    assert bool((y1 >= 0).all() & (y1 <= y2).all() & (y2 <= height).all()), float(y2.max())
    assert result.masks is not None
    assert tuple(result.masks.shape) == (len(result), height, width)


def test_masks_lie_within_their_boxes(found: Detections) -> None:
    assert found.masks is not None
    assert int(found.masks.any(dim=(1, 2)).sum()) >= 10
    for mask, (x1, y1, x2, y2) in zip(found.masks, found.boxes.tolist(), strict=True):
        rows, columns = mask.nonzero().T
        if len(rows):
            # Pixel c covers c..c + 1 and belongs to the mask if its center c + 0.5 is in the box.
            assert x1 - 0.5 <= int(columns.min())
            assert int(columns.max()) + 0.5 <= x2
            assert y1 - 0.5 <= int(rows.min())
            assert int(rows.max()) + 0.5 <= y2


def test_a_picture_of_doubled_pixels_gives_doubled_boxes(predictor: Predictor) -> None:
    # 64x128 is the network's own size; each pixel doubled and halved again by the resizer is the same input, bit for
    # bit, and a factor of 2 is exact in floating point.
    pixels = _noise(64, 128)
    single, doubled = predictor([pixels, pixels.repeat(2, axis=0).repeat(2, axis=1)])
    assert len(single) > 0
    assert doubled.size == (128, 256)
    assert torch.equal(doubled.boxes, single.boxes * 2)
    assert torch.equal(doubled.scores, single.scores)
    assert torch.equal(doubled.labels, single.labels)


def test_a_picture_of_one_row_runs(predictor: Predictor) -> None:
    (result,) = predictor(_noise(1, 20000))
    assert result.size == (1, 20000)
    assert result.masks is not None
    assert tuple(result.masks.shape) == (len(result), 1, 20000)


# Refusals, and what is left alone


def test_a_model_in_train_mode_is_refused() -> None:
    # Also one that was in eval mode when the predictor was made.
    predictor = Predictor(fpg_zoo.create_model("faster_rcnn_nano_fpg"))
    predictor.model.train()
    for call in (lambda: predictor(PIXELS), lambda: next(predictor.stream([PIXELS]))):
        with pytest.raises(ValueError, match=r"the model is in train mode: call model\.eval\(\) first"):
            call()


@pytest.mark.parametrize("score", [-0.1, 30, float("nan")])
@pytest.mark.parametrize("images", [[], [PIXELS]], ids=["none", "one"])
def test_what_is_no_score_is_refused(images: list[np.ndarray], score: float, predictor: Predictor) -> None:
    with pytest.raises(ValueError, match=rf"score={score}: a score lies in 0\.\.1"):
        predictor(images, score=score)
    with pytest.raises(ValueError, match=rf"score={score}: a score lies in 0\.\.1"):
        predictor.stream(images, score=score)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_a_least_score_leaves_out_what_above_would(batch_size: int, predictor: Predictor, found: Detections) -> None:
    score = (float(found.scores[4]) + float(found.scores[5])) / 2
    assert 0 < len(found.above(score)) < len(found)
    for results in (
        predictor([PIXELS, PIXELS], batch_size, score=score),
        list(predictor.stream([PIXELS, PIXELS], batch_size, score=score)),
    ):
        for result in results:
            _assert_equal_but_for_rounding(result, found.above(score))


def test_a_model_of_another_floating_point_type_is_given_its_own() -> None:
    model = copy.deepcopy(tiny_model("retinanet_nano_fpg")).double()
    (result,) = Predictor(model)(PIXELS)
    (single,) = Predictor(tiny_model("retinanet_nano_fpg"))(PIXELS)
    _assert_close(result, single)


@pytest.mark.parametrize("batch_size", [1, 8])
def test_a_bad_picture_in_a_list_is_named(batch_size: int, predictor: Predictor, tmp_path: Path) -> None:
    bad = tmp_path / "notes.jpg"
    bad.write_text("no image")
    with pytest.raises(ImageError) as caught:
        predictor([PIXELS, bad, PIXELS], batch_size=batch_size)
    assert str(caught.value).startswith(f"{bad}: not an image in a format that is read")


@pytest.mark.parametrize(
    ("images", "said"),
    [
        ((PIXELS for _ in range(2)), "generator: not an image"),
        (torch.zeros(2, 3, 8, 8), r"tensor of shape \(2, 3, 8, 8\)"),
        ([None], "NoneType: not an image"),
        ([[PIXELS]], "list: not an image"),
    ],
)
def test_what_is_no_picture_is_refused(images: Any, said: str, predictor: Predictor) -> None:
    with pytest.raises(ImageError, match=said):
        predictor(images)


def test_predicting_changes_neither_the_model_nor_the_pictures(predictor: Predictor) -> None:
    before = {name: tensor.clone() for name, tensor in predictor.model.state_dict().items()}
    array, tensor, image = PIXELS.copy(), torch.from_numpy(PIXELS.copy()).permute(2, 0, 1), Image.fromarray(PIXELS)
    predictor([array, tensor, image], batch_size=3)
    after = predictor.model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert not predictor.model.training
    assert np.array_equal(array, PIXELS)
    assert np.array_equal(tensor.permute(1, 2, 0).numpy(), PIXELS)
    assert np.array_equal(np.array(image), PIXELS)


def test_no_progress_is_shown_where_there_is_no_terminal(
    predictor: Predictor, capsys: pytest.CaptureFixture[str]
) -> None:
    predictor([PIXELS, PIXELS])
    assert capsys.readouterr() == ("", "")


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("count", "shown"), [(1, False), (2, True)])
def test_progress_is_shown_on_a_terminal_for_more_than_one_picture(
    count: int, shown: bool, predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", _Terminal())
    predictor([PIXELS] * count)
    assert ("image" in sys.stderr.getvalue()) == shown


def test_a_stream_shows_no_progress(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", _Terminal())
    assert len(list(predictor.stream([PIXELS, PIXELS]))) == 2
    assert sys.stderr.getvalue() == ""
