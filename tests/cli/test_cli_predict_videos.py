"""`fpg-zoo predict` on videos."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from PIL import Image
from predicting import add, checkpoint, predict, rows_of, working_folder

pytest.importorskip("av")

from videos import HEIGHT, RATE, WIDTH, write_video

from fpg_zoo.inference.video import VideoWriter, frames

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_video_gives_a_video_and_rows_with_frame_and_time(checkpoint: Path) -> None:
    write_video("clip.mp4", 5, rotation=-90)
    add("z.png")
    outputs = ["--output", "out", "--json", "r.json", "--jsonl", "r.jsonl", "--csv", "r.csv", "--yolo", "labels"]
    code, out, err = predict(checkpoint, "clip.mp4", "z.png", *outputs, "--batch-size", "2")
    assert (code, err) == (0, "")
    assert out.startswith("clip.mp4: 5 frames, ")
    assert sorted(path.name for path in Path("out").iterdir()) == ["clip_detections.mp4", "z_detections.jpg"]
    drawn = list(frames("out/clip_detections.mp4"))
    assert [image.size for image in drawn] == [(HEIGHT, WIDTH)] * 5
    times = [number / RATE for number in range(5)]
    assert [image.info["time"] for image in drawn] == pytest.approx(times, abs=1e-3)
    lines = [json.loads(line) for line in Path("r.jsonl").read_text().splitlines()]
    assert [(line["image_id"], line.get("frame")) for line in lines] == [
        *((f"clip.mp4#{number}", number) for number in range(5)),
        ("z.png", None),
    ]
    assert [line["time"] for line in lines[:5]] == pytest.approx(times)
    assert {(line["height"], line["width"]) for line in lines[:5]} == {(WIDTH, HEIGHT)}
    each = [len(line["detections"]) for line in lines]
    assert min(each) > 0
    assert [row.get("frame") for row in rows_of("r.json")] == [
        number for number, count in zip([0, 1, 2, 3, 4, None], each, strict=True) for _ in range(count)
    ]
    with open("r.csv", newline="", encoding="utf-8") as stream:
        table = [(row["frame"], row["time"]) for row in csv.DictReader(stream)]
    expected = [*((str(number), f"{number / RATE:.4f}") for number in range(5)), ("", "")]
    assert table == [row for row, count in zip(expected, each, strict=True) for _ in range(count)]
    assert sorted(path.name for path in Path("labels").iterdir()) == [
        "classes.txt",
        *(f"clip_{number:06}.txt" for number in range(5)),
        "z.txt",
    ]


def test_a_damaged_video_leaves_nothing_of_it(checkpoint: Path) -> None:
    write_video("bad.mp4", 40, options={"movflags": "faststart"})
    whole = Path("bad.mp4").read_bytes()
    Path("bad.mp4").write_bytes(whole[: len(whole) * 2 // 3])
    add("a.png", "z.png")
    outputs = ["--output", "out", "--csv", "r.csv", "--yolo", "labels", "--max-detections", "1"]
    code, out, err = predict(checkpoint, "a.png", "bad.mp4", "z.png", *outputs)
    assert code == 1
    assert err.startswith(("skipped: bad.mp4: ends after ", "skipped: bad.mp4: cannot be read whole"))
    assert err.count("\n") == 1
    assert out.splitlines()[-1] == "2 of 3 images, 2 objects"
    assert sorted(path.name for path in Path("out").iterdir()) == ["a_detections.jpg", "z_detections.jpg"]
    assert sorted(path.name for path in Path("labels").iterdir()) == ["a.txt", "classes.txt", "z.txt"]
    with open("r.csv", newline="", encoding="utf-8") as stream:
        assert [row["file"] for row in csv.DictReader(stream)] == ["a.png", "z.png"]


def test_ctrl_c_ends_a_stream_and_keeps_what_was_found(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_video("camera.mp4", 6)
    add("z.png")
    monkeypatch.setattr("fpg_zoo.inference.predict_files.is_stream", lambda _: True)
    write = VideoWriter.write

    def interrupted(self: VideoWriter, image: Image.Image, time: float) -> None:
        if time > 0.25:  # at the fourth frame
            raise KeyboardInterrupt
        write(self, image, time)

    monkeypatch.setattr(VideoWriter, "write", interrupted)
    outputs = ["--csv", "r.csv", "--output", "out", "--max-detections", "1"]
    code, out, err = predict(checkpoint, "camera.mp4", "z.png", *outputs)
    assert (code, err) == (0, "")
    assert out.startswith("camera.mp4: 3 frames, ")
    assert len(list(frames("out/camera_detections.mp4"))) == 3
    with open("r.csv", newline="", encoding="utf-8") as stream:
        assert [row["frame"] for row in csv.DictReader(stream)] == ["0", "1", "2", ""]


def test_frames_have_no_labelme_files(checkpoint: Path) -> None:
    write_video("a.mp4", 1)
    code, out, err = predict(checkpoint, "a.mp4", "--labelme", "lm")
    assert (code, out) == (2, "")
    assert err.startswith("fpg-zoo: labelme: its files belong to image files")
    assert not Path("lm").exists()
