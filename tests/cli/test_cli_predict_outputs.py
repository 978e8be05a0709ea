"""`fpg-zoo predict`: the formats that detections are written in, and runs that go on after a kill."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path
from typing import Any

import pytest
from command import environment, run
from PIL import Image
from predicting import HEIGHT, SCORE, WIDTH, add, checkpoint, predict, rows_of, working_folder, written
from tiny_models import tiny_model

from fpg_zoo import Detections, Predictor
from fpg_zoo.errors import ConfigError
from fpg_zoo.inference.exported.detector import ExportedDetector
from fpg_zoo.inference.prepare import prepare
from fpg_zoo.inference.result_files import ResultFiles
from fpg_zoo.inference.result_formats import Source

pytestmark = pytest.mark.usefixtures("one_thread")


def _lines(path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def test_every_format_has_the_same_detections(checkpoint: Path) -> None:
    add("photos/frame_10.png", "photos/frame_9.png", "photos/Frame.txt.png")
    everything = ["--json", "r.json", "--jsonl", "r.jsonl", "--csv", "r.csv", "--yolo", "labels", "--labelme", "lm"]
    code, out, err = predict(checkpoint, "photos", *everything, "--crops", "crops", "--batch-size", "2")
    assert (code, err) == (0, "")
    names = ["photos/Frame.txt.png", "photos/frame_9.png", "photos/frame_10.png"]
    assert [line.split(":")[0] for line in out.splitlines()[:3]] == names
    found = {name: Predictor(tiny_model())(name, score=float(SCORE))[0] for name in names}
    lines = _lines("r.jsonl")
    assert [(line["file"], line["height"], line["width"]) for line in lines] == [
        (name, HEIGHT, WIDTH) for name in names
    ]
    assert [[one["class"] for one in line["detections"]] for line in lines] == [found[name].names for name in names]
    rows = rows_of("r.json")
    assert [row["image_id"] for row in rows] == [name for name in names for _ in found[name].names]
    with open("r.csv", newline="", encoding="utf-8") as stream:
        table = list(csv.DictReader(stream))
    assert [(row["file"], row["class"]) for row in table] == [
        (name, one) for name in names for one in found[name].names
    ]
    for row, one in zip(table, [one for line in lines for one in line["detections"]], strict=True):
        box = [float(row[side]) for side in ("x1", "y1", "x2", "y2")]
        assert box == pytest.approx(one["box"], abs=0.006)
        assert float(row["score"]) == pytest.approx(one["score"], abs=1e-5)
    for stem, name in (("frame_9", names[1]), ("frame_10", names[2]), ("Frame.txt", names[0])):
        labels = Path("labels", f"{stem}.txt").read_text().splitlines()
        assert [int(label.split()[0]) for label in labels] == found[name].labels.tolist()
        content = json.loads(Path("lm", f"{stem}.json").read_text())
        assert Path("lm", content["imagePath"]).resolve() == Path(name).resolve()
        assert (content["imageHeight"], content["imageWidth"], content["imageData"]) == (HEIGHT, WIDTH, None)
        assert [shape["label"] for shape in content["shapes"]] == found[name].names
        assert len(list(Path("crops").glob(f"{stem}_*_crop.jpg"))) == len(found[name])
    assert len(Path("labels/classes.txt").read_text().splitlines()) == 80
    assert sorted(path.name for path in Path().iterdir()) == [
        "crops",
        "labels",
        "lm",
        "photos",
        *sorted(everything[1:6:2]),
    ]


def test_what_was_written_is_no_input(checkpoint: Path) -> None:
    add("a.png")
    arguments = ["--output", ".", "--crops", ".", "--json", "r.json"]
    assert predict(checkpoint, ".", *arguments).code == 0
    rows = rows_of("r.json")
    again = predict(checkpoint, ".", *arguments)
    assert again.code == 0
    assert again.err == f".: passed over {len(rows) + 1} written by predict, 1 .json\n"
    assert rows_of("r.json") == rows


def test_the_best_are_kept(checkpoint: Path) -> None:
    add("a.png")
    assert predict(checkpoint, "a.png", "--json", "all.json").code == 0
    assert predict(checkpoint, "a.png", "--json", "two.json", "--max-detections", "2").code == 0
    rows = rows_of("all.json")
    assert len(rows) > 2
    assert rows_of("two.json") == rows[:2]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--batch-size", "0"], "--batch-size 0: it takes at least 1"),
        (["--max-detections", "0"], "--max-detections 0: it takes at least 1"),
        (["--slice", "31"], "--slice 31: it takes at least 32"),
        (["--slice", "64", "--overlap", "1"], "--overlap 1.0: the share of a tile lies in 0..0.9"),
        (["--no-whole-image"], "--no-whole-image: there are no tiles without --slice PX; leave it out"),
        (["--json", "r", "--csv", "./r"], "r: two files to write have this name; name another for one of them"),
    ],
)
def test_options_that_make_no_sense_are_refused(arguments: list[str], said: str, checkpoint: Path) -> None:
    add("a.png")
    code, out, err = predict(checkpoint, "a.png", *arguments)
    assert (code, out, err) == (2, "", f"fpg-zoo: {said}\n")
    assert sorted(path.name for path in Path().iterdir()) == ["a.png"]


@pytest.mark.parametrize("asked", [{"dtype": "bf16"}, {"optimize": True}, {"compile": True}])
def test_an_exported_file_is_as_it_was_written(asked: dict[str, Any]) -> None:
    model = ExportedDetector.__new__(ExportedDetector)
    model.path = Path("model.onnx")
    with pytest.raises(ConfigError, match=rf"model\.onnx: {next(iter(asked))}.* does not apply to an exported file"):
        prepare(model, **asked)
    assert prepare(model) is model


@pytest.mark.slow
def test_precision_and_the_inference_form_find_the_same(checkpoint: Path) -> None:
    add("a.png")
    assert predict(checkpoint, "a.png", "--json", "plain.json", "--dtype", "fp32").code == 0
    assert predict(checkpoint, "a.png", "--json", "fast.json", "--optimize").code == 0
    assert predict(checkpoint, "a.png", "--json", "half.json", "--dtype", "bf16").code == 0
    plain, fast, half = rows_of("plain.json"), rows_of("fast.json"), rows_of("half.json")
    assert [row["category_id"] for row in fast] == [row["category_id"] for row in plain]
    assert [row["score"] for row in fast] == pytest.approx([row["score"] for row in plain], abs=1e-3)
    assert half[0]["score"] == pytest.approx(plain[0]["score"], abs=0.05)
    assert half[0]["score"] != plain[0]["score"]


@pytest.mark.parametrize("batch_size", [1, 3])
def test_no_more_than_two_batches_are_in_memory(
    batch_size: int, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add("photos/0.png")
    for number in range(1, 12):
        os.link("photos/0.png", f"photos/{number}.png")
    alive: list[weakref.ref[Any]] = []
    most = []
    add_one = ResultFiles.add

    def adding(self: ResultFiles, source: Source, image: Image.Image, detections: Detections) -> None:
        alive[:] = [one for one in alive if one() is not None]
        alive.append(weakref.ref(detections))
        most.append(len(alive))
        add_one(self, source, image, detections)

    monkeypatch.setattr(ResultFiles, "add", adding)
    arguments = ["--json", "r.json", "--output", "out", "--batch-size", str(batch_size)]
    assert predict(checkpoint, "photos", *arguments).code == 0
    assert len(most) == 12
    assert max(most) <= batch_size


# Going on


def _killed(arguments: list[str], part: Path, lines: int) -> None:
    """Run the command in a process of its own and kill it when a part has so many lines."""
    process = subprocess.Popen(
        [sys.executable, "-m", "fpg_zoo.cli", *arguments], stdout=subprocess.DEVNULL, env=environment()
    )
    try:
        until = time.monotonic() + 300
        while not part.is_file() or part.read_bytes().count(b"\n") < lines:
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


@pytest.mark.skipif(os.name == "nt", reason="no such signal")
@pytest.mark.slow
def test_a_killed_run_goes_on_and_nothing_is_missing_or_there_twice(checkpoint: Path) -> None:
    add("photos/0.png")
    for number in range(1, 40):
        os.link("photos/0.png", f"photos/{number}.png")
    outputs = ["--json", "r.json", "--jsonl", "r.jsonl", "--csv", "r.csv", "--yolo", "labels"]
    arguments = ["predict", "photos", "--checkpoint", str(checkpoint), "--score", SCORE, *outputs]
    _killed(arguments, Path("r.jsonl.part"), 5)
    assert not Path("r.json").exists()
    assert 5 <= Path("r.jsonl.part").read_bytes().count(b"\n") < 40
    # As a kill in the middle of an image's rows would leave them.
    with Path("r.csv.part").open("ab") as stream:
        stream.write(b"photos/39.png,,,0,per")
    code, out, err = run(*arguments, "--resume")
    assert (code, err) == (0, "")
    assert [line["file"] for line in _lines("r.jsonl")] == [f"photos/{number}.png" for number in range(40)]
    each = len(_lines("r.jsonl")[0]["detections"])
    assert out.splitlines()[-1] == f"40 of 40 images, {40 * each} objects"
    assert "images are of an earlier run" in out.splitlines()[-2]
    assert [row["image_id"] for row in rows_of("r.json")] == [number for number in range(40) for _ in range(each)]
    with open("r.csv", newline="", encoding="utf-8") as stream:
        files = [row["file"] for row in csv.DictReader(stream)]
    assert files == [f"photos/{number}.png" for number in range(40) for _ in range(each)]
    assert len(list(Path("labels").glob("[0-9]*.txt"))) == 40
    assert sorted(path.name for path in Path().iterdir()) == ["labels", "photos", "r.csv", "r.json", "r.jsonl"]


def _interrupted(checkpoint: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    """A run that ends after the second image."""
    with monkeypatch.context() as patching:
        finish, count = "fpg_zoo.inference.result_files.ResultFiles.finish_source", iter(range(100))
        original = ResultFiles.finish_source

        def finishing(self: ResultFiles, *given: Any) -> None:
            original(self, *given)
            if next(count) == 1:
                raise KeyboardInterrupt

        patching.setattr(finish, finishing)
        assert predict(checkpoint, "photos", *arguments).code == 130


def test_another_run_does_not_go_on(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add("photos/1.png", "photos/2.png", "photos/3.png")
    _interrupted(checkpoint, monkeypatch, "--jsonl", "r.jsonl")
    assert [line["file"] for line in _lines("r.jsonl.part")] == ["photos/1.png", "photos/2.png"]
    code, out, err = predict(checkpoint, "photos", "--jsonl", "r.jsonl", "--slice", "40", "--resume")
    assert (code, out) == (2, "")
    assert err == (
        "fpg-zoo: .r.jsonl.progress.jsonl: begun with another slice None, now 40; remove .r.jsonl.progress.jsonl to "
        "begin again, or leave out --resume\n"
    )
    assert [line["file"] for line in _lines("r.jsonl.part")] == ["photos/1.png", "photos/2.png"]
    # Without --resume it begins again.
    assert predict(checkpoint, "photos", "--jsonl", "r.jsonl").code == 0
    assert [line["file"] for line in _lines("r.jsonl")] == ["photos/1.png", "photos/2.png", "photos/3.png"]


@pytest.mark.parametrize(
    "content", ["nonsense\n", "[1]\n", '{"fpg_zoo_predict": 3}\n', '{"fpg_zoo_predict": {}}\n{}\n']
)
def test_a_record_that_is_none_is_told(content: str, checkpoint: Path) -> None:
    add("a.png")
    Path(".r.csv.progress.jsonl").write_text(content)
    code, out, err = predict(checkpoint, "a.png", "--csv", "r.csv", "--resume")
    assert (code, out) == (2, "")
    assert err.startswith("fpg-zoo: .r.csv.progress.jsonl: ")
    assert err.count("\n") == 1


def test_annotated_images_alone_go_on(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add("photos/1.png", "photos/2.png", "photos/3.png")
    _interrupted(checkpoint, monkeypatch, "--output", "out")
    assert written("out") == ["1_detections.jpg", "2_detections.jpg"]
    first = Path("out/1_detections.jpg").stat().st_mtime_ns
    assert predict(checkpoint, "photos", "--output", "out", "--resume").code == 0
    assert sorted(path.name for path in Path("out").iterdir()) == [f"{number}_detections.jpg" for number in (1, 2, 3)]
    assert Path("out/1_detections.jpg").stat().st_mtime_ns == first


def test_an_error_at_the_first_image_leaves_nothing(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add("a.png")

    def broken(*_: Any) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("fpg_zoo.inference.result_files.labelme_content", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        predict(checkpoint, "a.png", "--csv", "r.csv", "--yolo", "labels", "--labelme", "lm")
    assert [path for path in Path().rglob("*") if path.is_file()] == [Path("a.png")]


def test_crops_hold_what_is_in_the_boxes(checkpoint: Path) -> None:
    add("a.png")
    assert predict(checkpoint, "a.png", "--crops", "crops", "--jsonl", "r.jsonl").code == 0
    ((x1, y1, x2, y2), *_) = (one["box"] for one in _lines("r.jsonl")[0]["detections"])
    (first,) = Path("crops").glob("a_1_*_crop.jpg")
    with Image.open(first) as crop:
        assert abs(crop.width - (x2 - x1)) < 2
        assert abs(crop.height - (y2 - y1)) < 2
