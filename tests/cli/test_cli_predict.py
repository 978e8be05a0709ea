"""`fpg-zoo predict`: which images are read, and what is written of them and where."""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command import environment, python, run
from PIL import Image
from predicting import (
    HEIGHT,
    NO_COCO_IDS,
    SCORE,
    WIDTH,
    add,
    checkpoint,
    predict,
    rows_of,
    working_folder,
    written,
)
from pycocotools import mask as mask_api
from pycocotools.coco import COCO
from serving import serve
from tiny_models import tiny_model

from fpg_zoo import Predictor
from fpg_zoo.cli import main
from fpg_zoo.modeling.postprocess import paste_mask

pytestmark = pytest.mark.usefixtures("one_thread")

# What is read


def test_a_picture_is_annotated_in_the_default_folder(checkpoint: Path) -> None:
    add("street.png")
    code, out, err = predict(checkpoint, "street.png")
    assert (code, err) == (0, "")
    found = Predictor(tiny_model())("street.png")[0].above(float(SCORE))
    assert len(found) > 0
    line, last_line, total = out.splitlines()
    assert line.startswith("street.png: ")
    # "2 cat, 1 dog": the counts add up to what is found.
    parts = [part.split(" ", 1) for part in line.removeprefix("street.png: ").split(", ")]
    assert {name: int(count) for count, name in parts} == {name: found.names.count(name) for name in found.names}
    assert (last_line, total) == ("written: predictions", f"1 of 1 images, {len(found)} objects")
    assert written() == ["street_detections.jpg"]
    with Image.open("street.png") as source, Image.open("predictions/street_detections.jpg") as annotated:
        assert annotated.size == source.size
        difference = np.abs(np.array(annotated, int) - np.array(found.draw(source), int))
    assert float(difference.mean()) < 40  # JPEG loses that much of noise; another image of noise would differ by 85


@pytest.mark.parametrize("what", ["photos", "photos/", "photos/*", "photos/[ab].*"])
@pytest.mark.slow
def test_folders_and_patterns_are_read(what: str, checkpoint: Path) -> None:
    add("photos/a.png", "photos/b.jpg", "elsewhere/c.png")
    code, out, err = predict(checkpoint, what, "--output", "out")
    assert (code, err) == (0, "")
    assert [line.split(":")[0] for line in out.splitlines()[:2]] == ["photos/a.png", "photos/b.jpg"]
    assert "2 of 2 images" in out
    assert written("out") == ["a_detections.jpg", "b_detections.jpg"]


def test_a_url_is_read(checkpoint: Path) -> None:
    add("17.png")
    with serve() as server:
        server.files = {"/17.png": Path("17.png").read_bytes()}
        code, _, err = predict(checkpoint, f"{server.url}/17.png", "--json", "out.json", "--output", "out")
    assert (code, err) == (0, "")
    assert written("out") == ["17_detections.jpg"]
    assert {row["image_id"] for row in rows_of("out.json")} == {17}


@pytest.mark.parametrize("query", ["key=photos/" + "signature" * 40, "expires=2.5&path=a/99"], ids=["long", "short"])
def test_the_query_of_a_url_is_no_part_of_the_pictures_name(query: str, checkpoint: Path) -> None:
    # As of signed URLs; 255 bytes are the most that a file name may have.
    add("17.png")
    with serve() as server:
        server.files = {f"/17.png?{query}": Path("17.png").read_bytes()}
        code, _, err = predict(checkpoint, f"{server.url}/17.png?{query}", "--json", "r.json", "--output", "out")
    assert (code, err) == (0, "")
    assert written("out") == ["17_detections.jpg"]
    assert {row["image_id"] for row in rows_of("r.json")} == {17}


@pytest.mark.parametrize("what", ["empty", "empty/*.jpg"])
def test_nothing_to_read_is_refused(what: str, checkpoint: Path) -> None:
    Path("empty").mkdir()
    code, out, err = predict(checkpoint, what)
    assert (code, out) == (2, "")
    assert err.startswith(f"fpg-zoo: {what}: no ")
    assert not Path("predictions").exists()


def test_unreadable_pictures_are_skipped_and_reported(checkpoint: Path) -> None:
    add("1.png", "2.png", "4.png")
    Path("3.png").write_bytes(Path("1.png").read_bytes()[:2000])
    Path("notes.jpg").write_text("no image")
    code, out, err = predict(
        checkpoint, "1.png", "notes.jpg", "2.png", "3.png", "gone.png", "4.png", "--json", "r.json"
    )
    assert code == 1
    assert [line.split(": ")[:2] for line in err.splitlines()] == [
        ["skipped", "notes.jpg"],
        ["skipped", "3.png"],
        ["skipped", "gone.png"],
    ]
    assert "no such file" in err.splitlines()[2]
    assert "3 of 6 images" in out
    assert {row["image_id"] for row in rows_of("r.json")} == {1, 2, 4}


def test_a_picture_with_damaged_metadata_does_not_stop_the_others(checkpoint: Path) -> None:
    add("a.png", "c.png")
    # A GIF's and a PNG's headers, then nonsense; and a TIFF with a directory outside the file.
    Path("b1.gif").write_bytes(b"GIF89a\x05\x00\x05\x00\xf7\x00\x00" + bytes(40))
    Path("b2.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"\xff" * 40)
    Path("b3.tif").write_bytes(b"II*\0\xff\xff\xff\x7f")
    code, out, err = predict(checkpoint, "a.png", "b1.gif", "b2.png", "b3.tif", "c.png")
    assert code == 1
    assert err.count("skipped: ") == 3
    assert "2 of 5 images" in out


def _exhausted(kind: str) -> None:
    if kind == "Python":
        raise MemoryError
    if kind == "accelerator":
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
    torch.empty(1 << 55, dtype=torch.uint8)  # 32 PiB, which the CPU's allocator refuses in its own way


@pytest.mark.parametrize("kind", ["Python", "accelerator", "CPU"])
@pytest.mark.parametrize(
    "where", ["fpg_zoo.modeling.detectors.to_detections", "fpg_zoo.structures.drawing.draw_detections"]
)
@pytest.mark.slow
def test_pictures_that_memory_does_not_suffice_for_are_skipped(
    where: str, kind: str, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add("1.png", "3.png")
    add("2.png", size=(96, 72))
    module, _, name = where.rpartition(".")
    original = getattr(sys.modules[module], name)

    def exhausted_for_one(*arguments: Any) -> Any:
        # The frame's (height, width) is among what detections are made of, and on the detections that are drawn.
        if (72, 96) in (getattr(arguments[0], "size", None), arguments[2:3] and arguments[2]):
            _exhausted(kind)
        return original(*arguments)

    monkeypatch.setattr(where, exhausted_for_one)
    code, out, err = predict(checkpoint, "1.png", "2.png", "3.png", "--json", "r.json", "--output", "out")
    assert code == 1
    assert err == (
        "skipped: 2.png: not enough memory to detect in it or draw on it; make it smaller, or raise the score\n"
    )
    assert "2 of 3 images" in out
    assert written("out") == ["1_detections.jpg", "3_detections.jpg"]
    assert {row["image_id"] for row in rows_of("r.json")} == {1, 3}


def test_other_errors_of_torch_are_not_taken_for_a_lack_of_memory(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add("1.png")

    def broken(*_: Any) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("fpg_zoo.modeling.detectors.to_detections", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        predict(checkpoint, "1.png")


def test_masks_below_the_score_are_not_made(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add("1.png")
    pasted = []

    def counting(*arguments: Any) -> torch.Tensor:
        pasted.append(arguments)
        return paste_mask(*arguments)

    monkeypatch.setattr("fpg_zoo.modeling.postprocess.paste_mask", counting)
    (everything,) = Predictor(tiny_model())("1.png")
    assert len(pasted) == len(everything) > len(everything.above(float(SCORE)))
    pasted.clear()
    assert predict(checkpoint, "1.png", "--json", "r.json").code == 0
    assert len(pasted) == len(rows_of("r.json")) == len(everything.above(float(SCORE)))


# What is written


@pytest.mark.parametrize(("height", "suffix"), [(65500, ".jpg"), (65501, ".png")])
def test_a_picture_too_high_for_jpeg_is_written_as_png(height: int, suffix: str, checkpoint: Path) -> None:
    Image.new("RGB", (2, height), (90, 120, 150)).save("high.v1.png")
    add("b.png")
    code, _, err = predict(checkpoint, "high.v1.png", "b.png", "--output", "out")
    assert (code, err) == (0, "")
    assert sorted(path.name for path in Path("out").iterdir()) == ["b_detections.jpg", f"high.v1_detections{suffix}"]
    with Image.open(f"out/high.v1_detections{suffix}") as image:
        image.load()
        assert (image.size, image.format) == ((2, height), {".jpg": "JPEG", ".png": "PNG"}[suffix])


def test_a_png_overwrites_no_picture_either(checkpoint: Path) -> None:
    Image.new("RGB", (2, 65501), (90, 120, 150)).save("x.png")
    add("x_detections.png")
    before = Path("x_detections.png").read_bytes()
    assert predict(checkpoint, "x.png", "x_detections.png", "--output", ".").code == 0
    assert Path("x_detections.png").read_bytes() == before
    assert Path("x_2_detections.png").is_file()


def test_what_the_encoder_refuses_is_not_told_as_a_lack_of_room(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add("a.png")

    def refused(*_: Any, **__: Any) -> None:
        raise OSError("broken data stream when writing image file")

    monkeypatch.setattr(Image.Image, "save", refused)
    code, _, err = predict(checkpoint, "a.png", "--output", "out")
    assert code == 2
    assert "broken data stream" in err
    assert "make room" not in err


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_there_is_one_bar_of_progress(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add("1.png", "2.png", "3.png")
    terminal = _Terminal()
    arguments = ["predict", "--checkpoint", str(checkpoint), "1.png", "2.png", "3.png", "--json", "r.json"]
    with contextlib.redirect_stderr(terminal), contextlib.redirect_stdout(io.StringIO()):
        assert main(arguments) == 0
    # Every state of every bar reads "NUMBER/TOTAL [".
    assert set(re.findall(r"\d+/\d+ \[", terminal.getvalue())) >= {"0/3 [", "3/3 ["}
    assert set(re.findall(r"\d+/(\d+) \[", terminal.getvalue())) == {"3"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools
def test_coco_results_are_read_by_pycocotools(checkpoint: Path) -> None:
    add("000000000139.png", "000000000285.png")
    code, out, err = predict(checkpoint, "000000000139.png", "000000000285.png", "--json", "made/results.json")
    assert (code, err) == (0, "")
    assert not Path("predictions").exists()
    rows = rows_of("made/results.json")
    assert out.splitlines()[-2:] == ["written: made/results.json", f"2 of 2 images, {len(rows)} objects"]
    truth = COCO()
    truth.dataset = {
        "images": [{"id": number, "width": WIDTH, "height": HEIGHT} for number in (139, 285)],
        "categories": [{"id": number, "name": str(number)} for number in range(1, 91) if number not in NO_COCO_IDS],
        "annotations": [],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        results = truth.loadRes("made/results.json")
    assert set(results.getCatIds()) >= {row["category_id"] for row in rows}
    for number in (139, 285):
        found = Predictor(tiny_model())(f"{number:012}.png")[0].above(float(SCORE))
        annotations = results.loadAnns(results.getAnnIds(imgIds=number))
        assert len(annotations) == len(found) > 0
        assert found.masks is not None
        for annotation, score, box, mask in zip(annotations, found.scores, found.boxes, found.masks, strict=True):
            assert annotation["score"] == pytest.approx(float(score), abs=1e-5)
            x, y, width, height = annotation["bbox"]
            assert [x, y, x + width, y + height] == pytest.approx(box.tolist(), abs=1e-2)
            assert np.array_equal(mask_api.decode(annotation["segmentation"]), mask.numpy())


@pytest.mark.slow
def test_picture_ids_are_numbers_only_where_they_are_the_files_own(checkpoint: Path) -> None:
    names = ["a/7.png", "b/07.png", "c/8.png", "name.png"]
    add(*names)
    assert predict(checkpoint, *names, "--json", "r.json").code == 0
    # 7 and 07 would be the same number, and so they keep their paths.
    assert {row["image_id"] for row in rows_of("r.json")} == {"a/7.png", "b/07.png", 8, "name.png"}


@pytest.mark.slow
def test_scores_below_the_threshold_are_left_out(checkpoint: Path) -> None:
    add("a.png")
    counts = []
    for score in ("0", "0.2", "1"):
        code, out, _ = run("predict", "a.png", "--checkpoint", checkpoint, "--score", score, "--json", "r.json")
        assert code == 0
        assert all(row["score"] >= float(score) for row in rows_of("r.json"))
        counts.append(len(rows_of("r.json")))
    assert counts[0] > counts[1] > counts[2] == 0
    assert "a.png: nothing found" in out


def test_pictures_of_one_name_are_all_written(checkpoint: Path) -> None:
    add("a/x.png", size=(40, 30))
    add("b/x.png", size=(30, 40))
    add("a/x.jpg", size=(50, 30))
    assert predict(checkpoint, "a/x.png", "b/x.png", "a/x.jpg", "--json", "r.json", "--output", "out").code == 0
    names = written("out")
    assert len(names) == 3
    assert {Image.open(Path("out") / name).size for name in names} == {(40, 30), (30, 40), (50, 30)}
    assert {row["image_id"] for row in rows_of("r.json")} == {"a/x.png", "b/x.png", "a/x.jpg"}


def test_a_name_that_looks_numbered_does_not_collide(checkpoint: Path) -> None:
    add("a/x.png", size=(40, 30))
    add("b/x.png", size=(30, 40))
    add("a/x_2.png", size=(50, 30))
    assert predict(checkpoint, "a/x.png", "b/x.png", "a/x_2.png", "--output", "out").code == 0
    sizes = [Image.open(Path("out") / name).size for name in written("out")]
    assert sorted(sizes) == [(30, 40), (40, 30), (50, 30)]


@pytest.mark.parametrize(
    "sources", [["photos"], ["photos/x.jpg", "./photos/x_detections.jpg"]], ids=["folder", "files"]
)
def test_source_pictures_stay_as_they_are(sources: list[str], checkpoint: Path) -> None:
    # One of them has the name that the other's annotated copy would have.
    add("photos/x.jpg", "photos/x_detections.jpg", "photos/y.png")
    before = {path: path.read_bytes() for path in Path("photos").iterdir()}
    predict(checkpoint, *sources, "--output", "photos")
    assert {path.name for path in before if path.read_bytes() != before[path]} == set()


@pytest.mark.slow
def test_file_names_that_are_no_utf8_are_read(checkpoint: Path) -> None:
    add("a.png")
    try:
        os.rename(b"a.png", b"\xff.png")
    except OSError:
        pytest.skip("this file system has no such names")
    arguments = ("predict", ".", "--checkpoint", str(checkpoint), "--json", "r.json", "--score", SCORE)
    # As in most locales; in Python's C locale such names would be let through.
    found = python("-m", "fpg_zoo.cli", *arguments, env=environment(PYTHONIOENCODING="utf-8"))
    assert (found.returncode, found.stderr) == (0, "")
    assert len(rows_of("r.json")) > 0


# Runs after the first


@pytest.mark.parametrize(
    ("what", "output"),
    [
        ("photos", "photos"),
        ("photos/*", "photos"),
        ("photos/**", "photos/out"),
        ("photos/**/*.*g", "./photos/../photos"),
    ],
)
@pytest.mark.slow
def test_annotated_images_of_an_earlier_run_are_not_read(what: str, output: str, checkpoint: Path) -> None:
    add("photos/a.png", "photos/b.jpg")
    first = predict(checkpoint, what, "--output", output)
    listing = sorted(map(str, Path("photos").rglob("*")))
    again = predict(checkpoint, what, "--output", output)
    assert (again.code, again.out) == (first.code, first.out) == (0, first.out)
    assert "2 of 2 images" in again.out
    assert first.err == ""
    # Those in a folder below one that is named are not looked for, and so not passed over.
    assert again.err == f"{what}: passed over 2 written by predict\n"
    assert sorted(map(str, Path("photos").rglob("*"))) == listing


def test_annotated_images_that_are_high_or_named_one_by_one(checkpoint: Path) -> None:
    Image.new("RGB", (2, 65501), (90, 120, 150)).save("high.png")
    add("a.png")
    assert predict(checkpoint, "high.png", "a.png", "--output", "out").code == 0
    code, out, err = predict(checkpoint, "out")
    assert (code, out) == (2, "")
    assert err.endswith("; it holds 2 written by predict\n")
    code, _, err = predict(checkpoint, "out/*.jpg")
    assert (code, err) == (2, "fpg-zoo: out/*.jpg: no file matches this pattern, but for 1 written by predict\n")
    code, out, err = predict(checkpoint, "out/a_detections.jpg", "--output", "again")
    assert (code, err) == (0, "")
    assert written("again") == ["a_detections_detections.jpg"]


def test_images_that_only_have_such_a_name_are_read(checkpoint: Path) -> None:
    add("photos/x_detections.jpg", "photos/y_detections.png")
    Path("photos/z_detections.jpg").write_bytes(b"damaged")
    code, out, err = predict(checkpoint, "photos", "--json", "r.json")
    assert code == 1
    assert "2 of 3 images" in out
    assert err.startswith("skipped: photos/z_detections.jpg: ")


# What is passed over, and what cannot be read


def test_files_that_are_passed_over_are_counted(checkpoint: Path) -> None:
    add("photos/a.png", "more/b.png")
    for name in ("notes.txt", "._a.png", "c.heic", "d.txt"):
        Path("photos", name).touch()
    code, out, err = predict(checkpoint, "photos", "more", "--json", "r.json")
    assert (code, err) == (0, "photos: passed over 2 .txt, 1 hidden, 1 .heic\n")
    assert "2 of 2 images" in out


def test_what_pillow_warns_of_is_not_printed(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add("a.png")  # of more pixels than Pillow is told to expect, and of damaged metadata
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", WIDTH * HEIGHT - 1)
    exif = b"Exif\0\0II*\0\x08\0\0\0\xff\xff"
    Image.new("RGB", (20, 20)).save("b.jpg", exif=exif)
    code, _, err = predict(checkpoint, "a.png", "b.jpg", "--json", "r.json")
    assert (code, err) == (0, "")


def test_no_url_ends_the_run(checkpoint: Path) -> None:
    add("a.png", "z.png")
    bad = [
        "http://ÿ../a.jpg",
        "http://[x/a.jpg",
        "http://127.0.0.1:99999/a.jpg",
        "http://user:secret@127.0.0.1/1.jpg",
        "https://u:se/cret@127.0.0.1/b.jpg?x=1#y",
        "http://",
        "http://" + "a" * 300 + "/" + "b" * 5000,
        "ftp://127.0.0.1/a.jpg",
    ]
    code, out, err = predict(checkpoint, "a.png", *bad, "z.png", "--json", "r.json", "--output", "out")
    assert code == 1
    assert f"2 of {len(bad) + 2} images" in out
    assert [line.startswith("skipped: ") for line in err.splitlines()] == [True] * len(bad)
    assert written("out") == ["a_detections.jpg", "z_detections.jpg"]
    assert "cret" not in out + err


def test_a_password_is_in_no_file_that_is_passed_on(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # URLs with one are refused; were one not, as behind a library of one's own, results would name it so.
    add("a.png")
    content = Path("a.png").read_bytes()
    monkeypatch.setattr("fpg_zoo.structures.images._fetch", lambda _: content)
    url = "https://user:sec/ret@127.0.0.1/path@x/photo.png?size=1"
    code, out, err = predict(checkpoint, url, "--json", "r.json", "--output", "out")
    assert (code, err) == (0, "")
    assert out.startswith("https://***@")
    assert {row["image_id"] for row in rows_of("r.json")} == {"https://***@x/photo.png?size=1"}
    assert written("out") == ["photo_detections.jpg"]


@pytest.mark.skipif(os.name == "nt", reason="no pipes with a name")
@pytest.mark.parametrize("results", [[], ["--json", "r.json"]])
def test_links_in_a_circle_and_pipes_do_not_end_the_run(results: list[str], checkpoint: Path) -> None:
    add("z.png")
    Path("a.jpg").symlink_to("a.jpg")
    os.mkfifo("b.jpg")
    code, out, err = predict(checkpoint, "a.jpg", "b.jpg", "z.png", *results)
    assert code == 1
    assert "1 of 3 images" in out
    assert [line.split(": ")[:2] for line in err.splitlines()] == [["skipped", "a.jpg"], ["skipped", "b.jpg"]]


@pytest.mark.slow
def test_damage_of_every_kind_leaves_the_other_images(checkpoint: Path) -> None:
    add("photos/0.png", "photos/zz.png", "photos/cut.jpg")
    whole = Path("photos/cut.jpg").read_bytes()
    Path("photos/cut.jpg").write_bytes(whole[: len(whole) // 2])
    Path("photos/empty.png").touch()
    Image.new("RGB", (64, 48)).save("photos/eps.jpg", "EPS")
    Path("photos/text.webp").write_text("no image")
    frames = [Image.new("P", (20, 10), number) for number in range(3)]
    frames[0].save("photos/moving.gif", save_all=True, append_images=frames[1:])
    Image.new("RGB", (1, 1)).save("photos/one.bmp")
    Image.new("L", (60000, 1)).save("photos/wide.png")
    Image.new("CMYK", (9, 9)).save("photos/cmyk.jpg")
    Image.new("LA", (9, 9)).save("photos/la.png")
    code, out, err = predict(checkpoint, "photos", "--json", "r.json")
    assert code == 1
    skipped = [line.split(": ")[1] for line in err.splitlines()]
    assert skipped == [f"photos/{name}" for name in ("cut.jpg", "empty.png", "eps.jpg", "text.webp")]
    assert "7 of 11 images" in out
