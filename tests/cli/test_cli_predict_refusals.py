"""`fpg-zoo predict`: what is refused, and what an interruption leaves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from command import environment, run
from predicting import SCORE, add, checkpoint, predict, working_folder, written

pytestmark = pytest.mark.usefixtures("one_thread")

# What is refused


@pytest.mark.parametrize("score", ["-0.1", "1.1", "nan", "inf", "high", ""])
def test_scores_out_of_range_are_refused(score: str, checkpoint: Path) -> None:
    code, out, err = run("predict", "a.png", "--checkpoint", checkpoint, f"--score={score}")
    assert (code, out) == (2, "")
    assert score in err
    assert "score" in err


NANO = "mask_rcnn_nano_fpg"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "no model: give --model NAME"),
        (["--model", "mask_rcnn_r50_fgp"], "did you mean"),
        (["--model", "mask_rcnn_r50_fpg.coco_1999"], "no tag 'coco_1999'"),
        (["--model", f"{NANO}.coco"], "has no tag 'coco'"),
        (["--checkpoint", "gone.safetensors"], "gone.safetensors: no such file"),
        (["--checkpoint", "gone.pth"], "gone.pth: no such file"),
        (["--checkpoint", "notes.pth"], "notes.pth: "),
        (["--checkpoint", "~no-such-user-here/a.pth"], "~no-such-user-here/a.pth"),
        (["--checkpoint", "NANO", "--model", "retinanet_nano_fpg"], f"holds a {NANO}, not a retinanet_nano_fpg"),
        (["--checkpoint", "NANO", "--device", "nonsense"], "device 'nonsense' cannot be used here"),
        (["--checkpoint", "NANO", "--device", "cuda:99"], "device 'cuda:99' cannot be used here"),
        (["--checkpoint", "NANO", "--device", "meta"], "device 'meta'"),
        (["--checkpoint", "NANO", "--device", "hpu"], "device 'hpu' cannot be used here"),
    ],
    ids=lambda value: " ".join(value) or "neither" if isinstance(value, list) else "",
)
@pytest.mark.parametrize("leaving", ["message", "nothing behind"])
def test_a_model_that_cannot_be_had_is_refused(
    leaving: str, arguments: list[str], said: str, checkpoint: Path, tmp_path: Path
) -> None:
    add("a.png")
    Path("notes.pth").write_text("no checkpoint")
    before = sorted(tmp_path.iterdir())
    code, out, err = run("predict", "a.png", *(checkpoint if each == "NANO" else each for each in arguments))
    if leaving == "message":
        assert (code, out) == (2, "")
        assert err.startswith("fpg-zoo: ")
        assert said in err
        assert err.count("\n") == 1
    else:
        assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    "arguments",
    [["--output", "file/out"], ["--output", "file"], ["--json", "file/out.json"], ["--json", "folder"]],
    ids=" ".join,
)
def test_a_place_that_cannot_be_written_is_told_before_the_work(arguments: list[str], checkpoint: Path) -> None:
    add("a.png")
    Path("file").touch()
    Path("folder").mkdir()
    code, out, err = predict(checkpoint, "a.png", *arguments)
    assert (code, out) == (2, "")
    assert arguments[1].split("/")[0] in err
    assert err.count("\n") == 1
    assert sorted(path.name for path in Path().iterdir()) == ["a.png", "file", "folder"]
    assert Path("file").read_bytes() == b""


@pytest.mark.slow
def test_a_picture_half_written_when_interrupted_is_not_left(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add("a.png", "b.png")
    assert predict(checkpoint, "a.png", "--output", "out").code == 0
    before = Path("out/a_detections.jpg").read_bytes()

    def interrupted(self: Path, *_: Any) -> None:
        with self.open("wb") as stream:
            stream.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", interrupted)
    for picture in ("a.png", "b.png"):
        code, _, err = predict(checkpoint, picture, "--output", "out")
        assert (code, err) == (130, "fpg-zoo: interrupted\n")
    assert written("out") == ["a_detections.jpg"]
    assert Path("out/a_detections.jpg").read_bytes() == before


@pytest.mark.skipif(os.name == "nt", reason="no such signal")
@pytest.mark.slow
def test_an_interrupted_run_ends_quietly_and_leaves_whole_pictures(checkpoint: Path, tmp_path: Path) -> None:
    add("photos/0000.png")
    for number in range(1, 400):
        os.link("photos/0000.png", f"photos/{number:04}.png")
    # A shell's background jobs start with the signal ignored: take the usual handler, as in a foreground job.
    command = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    command += "from fpg_zoo.cli import main; sys.exit(main())"
    arguments = ["predict", "photos", "--checkpoint", str(checkpoint), "--output", "out", "--score", SCORE]
    process = subprocess.Popen(
        [sys.executable, "-c", command, *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    try:
        until = time.monotonic() + 50
        while len(list(Path().glob("out/[0-9]*.jpg"))) < 3:
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert (process.returncode, err) == (130, "fpg-zoo: interrupted\n")
    assert 3 <= len(written("out")) < 400
    assert not [name for name in written("out") if name.startswith(".")]


def test_results_do_not_replace_a_picture(checkpoint: Path) -> None:
    add("a.png")
    before = Path("a.png").read_bytes()
    code, _, err = predict(checkpoint, "a.png", "--json", "./a.png")
    assert (code, err) == (2, "fpg-zoo: a.png: one of the images; name another file to write\n")
    assert Path("a.png").read_bytes() == before


def test_names_as_long_as_a_file_system_takes_are_cut(checkpoint: Path) -> None:
    add(f"{'x' * 250}.png")
    assert predict(checkpoint, f"{'x' * 250}.png", "--output", "out").code == 0
    assert written("out") == [f"{'x' * 200}_detections.jpg"]
