"""`fpg-zoo predict` over many files and a video, beside the network alone: `python benchmarks/predict_files.py`.

The command runs in a process of its own and writes JSON lines. Its rate is counted from the first image's line to the
last one's, so that starting does not count. Then it is killed half-way and goes on with `--resume`: the file that it
leaves is compared with that of the run that was not killed. The network alone has the same images in memory, already
resized and normalized. It is measured in a process of its own before and after, as processors are not always as fast.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import torch
from harness.measure import Row, command_line, commit, write
from harness.models import draw_files, side_of

import fpg_zoo
from fpg_zoo.data.shapes import ShapesDataset
from fpg_zoo.evaluation.timing import in_a_process, resident_of
from fpg_zoo.modeling.preprocess import preprocess
from fpg_zoo.structures.images import read_image, to_pixels

NETWORK_IMAGES = 64  # of those, which are enough to know its rate
RATE = 10  # frames a second
UNITS = {
    "images": "images or frames",
    "batch": "images a pass",
    "threads": "threads of the network",
    "images_per_s": "images/s, from the first line to the last",
    "network_before": "images/s, detect alone, before",
    "network_after": "images/s, detect alone, after",
    "of_network": "images_per_s by the mean of the network's before and after",
    "second_quarter_mb": "MB resident at most while the second quarter is worked on",
    "last_quarter_mb": "MB resident at most while the last quarter is worked on",
    "killed_after": "images, of which the results were written",
}


class Ran(NamedTuple):
    """What a run printed: seconds at which each line came, and MB resident with when they were looked at."""

    lines: list[float]
    memory: list[tuple[float, float]]


def predict(arguments: list[str], threads: int, *, kill_after: int | None = None) -> Ran:
    """Run the command, and kill it after so many lines where that is given."""
    environment = {"OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "fpg_zoo.cli", "predict", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | environment) as process:
        memory: list[tuple[float, float]] = []
        watching = threading.Thread(target=watch, args=(process, memory))
        watching.start()
        lines: list[float] = []
        assert process.stdout is not None
        for _ in process.stdout:
            lines.append(time.perf_counter())
            if len(lines) == kill_after:
                process.kill()
                break
        process.wait()
        watching.join()
    if kill_after is None and process.returncode:
        raise SystemExit(f"fpg-zoo predict ended with code {process.returncode}")
    return Ran(lines, memory)


def watch(process: subprocess.Popen[str], memory: list[tuple[float, float]]) -> None:
    """Look at the memory of a process ten times a second while it runs."""
    while process.poll() is None:
        try:
            memory.append((time.perf_counter(), resident_of(process.pid)))
        except (OSError, KeyError):  # it has just ended
            return
        time.sleep(0.1)


def quarter_mb(ran: Ran, quarter: int) -> float:
    """MB resident at most in a quarter of the lines, counted from 0."""
    count = len(ran.lines) - 1
    first, last = ran.lines[quarter * count // 4], ran.lines[(quarter + 1) * count // 4]
    return max((size for at, size in ran.memory if first <= at <= last), default=ran.memory[-1][1])


def network_rate(name: str, files: list[Path], batch: int, threads: int) -> float:
    """Images a second of `detect` alone, in this process: the median of five rounds, after one."""
    torch.set_num_threads(threads)
    model = fpg_zoo.create_model(name, pretrained=True)
    images = [to_pixels(read_image(file)) for file in files]
    frames = [(image.shape[-2], image.shape[-1]) for image in images]
    batches = [
        (*preprocess(images[first : first + batch], model.config.preprocess), frames[first : first + batch])
        for first in range(0, len(images), batch)
    ]
    seconds = []
    for _ in range(6):
        start = time.perf_counter()
        for pixels, sizes, originals in batches:
            model.detect(pixels, sizes, originals, score=0.3)
        seconds.append(time.perf_counter() - start)
    return len(images) / statistics.median(seconds[1:])


def write_video(path: Path, side: int, count: int) -> None:
    """A video of drawn scenes, each for a second."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = side, side * 3 // 4, "yuv420p"
        scenes = ShapesDataset("val", (count - 1) // RATE + 1, size=(side * 3 // 4, side))
        for number in range(count):
            pixels = scenes[number // RATE].image.permute(1, 2, 0).numpy()
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def files_row(name: str, folder: Path, count: int, batch: int, threads: int) -> Row:
    """Of a folder of JPEG files."""
    given = [str(folder / "images"), "--model", name, "--batch-size", str(batch), "--device", "cpu"]
    ran = predict([*given, "--jsonl", str(folder / "whole.jsonl")], threads)
    killed = ["--jsonl", str(folder / "killed.jsonl"), "--resume"]
    predict([*given, *killed], threads, kill_after=count // 2)
    predict([*given, *killed], threads)
    whole, resumed = (sorted((folder / f"{one}.jsonl").read_text().splitlines()) for one in ("whole", "killed"))
    row = row_of(name, "files", ran, count, batch, threads)
    return {**row, "killed_after": count // 2, "equal_after_resume": whole == resumed and len(whole) == count}


def video_row(name: str, folder: Path, side: int, count: int, batch: int, threads: int) -> Row:
    """Of a video, with an annotated one written."""
    write_video(folder / "clip.mp4", side, count)
    given = [str(folder / "clip.mp4"), "--model", name, "--batch-size", str(batch), "--device", "cpu"]
    start = time.perf_counter()
    ran = predict([*given, "--jsonl", str(folder / "clip.jsonl"), "--output", str(folder / "annotated")], threads)
    frames = len((folder / "clip.jsonl").read_text().splitlines())
    assert frames == count
    # A video has one line, at its end: starting counts.
    whole = Ran([start + share * (ran.lines[-1] - start) / 4 for share in range(5)], ran.memory)
    return row_of(name, "video, annotated; starting counts", whole, count, batch, threads)


def row_of(name: str, kind: str, ran: Ran, count: int, batch: int, threads: int) -> Row:
    """What a run shows."""
    rate = (count - batch if kind == "files" else count) / (ran.lines[-1] - ran.lines[0])
    return {
        "model": name,
        "kind": kind,
        "images": count,
        "batch": batch,
        "threads": threads,
        "images_per_s": round(rate, 2),
        "second_quarter_mb": round(quarter_mb(ran, 1)),
        "last_quarter_mb": round(quarter_mb(ran, 3)),
    }


def with_network(row: Row, rates: list[float]) -> Row:
    """A row beside the rates of the network before and after it."""
    before, after = (round(rate, 2) for rate in rates)
    share = row["images_per_s"] / statistics.mean(rates)
    return {**row, "network_before": before, "network_after": after, "of_network": round(share, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=["retinanet_nano_fpg"], metavar="NAME", help="models with weights")
    parser.add_argument("--images", type=int, default=1000, metavar="N", help="JPEG files (default: 1000)")
    parser.add_argument(
        "--seconds", type=int, default=60, metavar="N", help="of the video, at 10 frames each (default: 60)"
    )
    parser.add_argument("--batch", type=int, default=8, metavar="N", help="images a pass (default: 8)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), metavar="N", help="of the network")
    options = parser.parse_args()
    commit()
    torch.set_num_threads(options.threads)
    for name in options.names:
        side = side_of(name)
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            (folder / "images").mkdir()
            files = draw_files(folder / "images", side, options.images)
            alone = (name, files[:NETWORK_IMAGES], options.batch, options.threads)
            counts = (options.batch, options.threads)
            rates = [in_a_process(network_rate, *alone)]
            rows = [files_row(name, folder, options.images, *counts)]
            rates.append(in_a_process(network_rate, *alone))
            if options.seconds:
                rows.append(video_row(name, folder, side, options.seconds * RATE, *counts))
                rates.append(in_a_process(network_rate, *alone))
            rows = [with_network(row, rates[place : place + 2]) for place, row in enumerate(rows)]
        for row in rows:
            print(json.dumps(row), flush=True)
        inputs = {"what": f"scenes of fpg_zoo.data.shapes val, drawn {side} pixels wide, as JPEG files and as a video"}
        write(
            "predict_files",
            command_line(),
            rows,
            device="cpu",
            inputs=inputs,
            units=UNITS,
            identified_by=("model", "kind"),
        )


if __name__ == "__main__":
    main()
