"""What a backbone trained on ImageNet and the neck on it are worth on real photographs.

`python benchmarks/backbones.py --data bccd --runs runs`, with BCCD's published split in COCO's format (`fpg-zoo
convert-data` makes it). RetinaNet and Faster R-CNN on `tf_efficientnet_lite0` have FPN, FPG-chn128 or a small FPG
(`examples/bccd`), with an equal budget and several seeds. With FPN they are trained from a random backbone, too. A
finished run is taken as it is, an unfinished one goes on, so the command may be stopped and given again. AP on the test
list is written as each run ends, then the cost on the CPU; at the end mean and spread are printed.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import json
import os
import shlex
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from harness.measure import RESULTS, Row, command_line, commit, write

import fpg_zoo
from fpg_zoo.distributed import device_of_process
from fpg_zoo.evaluation.timing import device_name, measure

EXAMPLES = Path(__file__).resolve().parents[1] / "examples" / "bccd"
METHODS = ("retinanet", "faster_rcnn")
NECKS = ("fpn", "fpg_chn128", "fpg_small")
SETTINGS = ("--recipe", "scratch", "--epochs", "12", "--batch-size", "8", "--amp", "bf16", "--workers", "1", "--resume")
TOLD_APART_BY = ("model", "start", "seed", "trained_on")
UNITS = {
    "AP": "share, on BCCD's test list",
    "AP50": "share, on BCCD's test list",
    "seed": "of the run",
    "parameters": "values",
    "flops": "operations for one image",
    "seconds": "s for one image, plain float32, one thread of the CPU",
}


def start_of(start: str, weights: Path | None) -> list[str]:
    """The options that a run begins with."""
    if start == "random":
        return ["--no-pretrained-backbone"]
    return ["--backbone-checkpoint", str(weights)] if weights else ["--pretrained-backbone"]


def row_of(model: str, start: str, seed: int, options: argparse.Namespace) -> Row:
    """Train, or go on, and judge: the metrics of the run's best model on the test list, and where it was trained."""
    run: Path = options.runs / f"{model}.{start}.{seed}"
    data, device = str(options.data), str(options.device)
    file, trained_on = run / "test.json", run / "device.txt"
    if not file.is_file():
        command = ["train", "--config", str(config_of(model)), *start_of(start, options.weights), "--data", data]
        fpg_zoo_command(*command, "--output", str(run), "--seed", str(seed), *SETTINGS, "--device", device)
        command = ["eval", "--checkpoint", str(run / "best"), "--data", data, "--split", "test"]
        fpg_zoo_command(*command, "--device", device, "--json", str(file))
        trained_on.write_text(device_name(device))
    metrics: dict[str, float] = json.loads(file.read_text())["box"]["figures"]
    row = {"model": model, "start": start, "seed": seed, "trained_on": trained_on.read_text()}
    return {**row, "AP": metrics["AP"], "AP50": metrics["AP50"]}


def record(row: Row, told_apart_by: Sequence[str]) -> None:
    """Keep a row as soon as it is known."""
    inputs = {"what": f"BCCD's published split, images of 384 pixels; fpg-zoo train {shlex.join(SETTINGS)}"}
    write("backbones", command_line(), [row], device="cpu", inputs=inputs, units=UNITS, identified_by=told_apart_by)
    print(json.dumps(row), flush=True)


def summary() -> Iterator[str]:
    """A line for each model, start and device of the record: mean and spread over the seeds."""
    kinds: dict[tuple[str, str, str], list[Row]] = {}
    for row in json.loads((RESULTS / "backbones.json").read_text())["rows"]:
        if "seed" in row:
            kinds.setdefault((row["model"], row["start"], row["trained_on"]), []).append(row)
    for (model, start, device), rows in kinds.items():
        values = [row["AP"] for row in rows]
        ap = f"AP {statistics.mean(values):.3f} (spread {max(values) - min(values):.3f})"
        ap50 = f"AP50 {statistics.mean(row['AP50'] for row in rows):.3f}"
        yield f"{model:24} {start:9} {device}: {ap}, {ap50}, {len(rows)} seeds"


def fpg_zoo_command(*arguments: str) -> None:
    """Run it in a process of its own, whose last line is shown where it fails."""
    ended = subprocess.run([sys.executable, "-m", "fpg_zoo.cli", *arguments], capture_output=True, text=True)
    if ended.returncode:
        raise SystemExit(f"fpg-zoo {shlex.join(arguments)}: {ended.stderr.strip().splitlines()[-1]}")


def config_of(model: str) -> Path:
    """The config file of a method and a neck."""
    method, _, neck = model.partition(".")
    return EXAMPLES / f"{method}_lite0_{neck}.toml"


def cost_of(model_name: str) -> Row:
    """Parameters, FLOPs and seconds for an image."""
    file = config_of(model_name)
    info = fpg_zoo.model_info(config=file)
    model = fpg_zoo.create_model(config=file, num_classes=3)
    side = info.config.preprocess.longest_side
    images = torch.zeros(1, 3, side, side)
    with torch.inference_mode():
        seconds = measure(lambda: model(images, [(side, side)]), runs=11)
    return {
        "model": model_name,
        "parameters": info.parameters,
        "flops": info.flops,
        "seconds": dataclasses.asdict(seconds),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*", default=METHODS, metavar="METHOD", help=", ".join(METHODS))
    parser.add_argument("--data", type=Path, required=True, help="BCCD in COCO's format")
    parser.add_argument("--runs", type=Path, required=True, help="a folder for the runs")
    parser.add_argument("--weights", type=Path, help="timm's file of the backbone (default: from the hub)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="N", help="default: 0 1 2")
    parser.add_argument("--device", metavar="D", help="cpu, cuda, mps (default: cuda if there is one, else cpu)")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side (default: 1)")
    options = parser.parse_args()
    options.device = device_of_process(options.device)
    commit()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    runs = [(f"{method}.{neck}", "imagenet") for method in options.methods for neck in NECKS]
    runs += [(f"{method}.fpn", "random") for method in options.methods]
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        # All kinds with one seed, then with the next: what is broken off has compared something.
        futures = [pool.submit(row_of, *run, seed, options) for seed in options.seeds for run in runs]
        for future in concurrent.futures.as_completed(futures):
            record(future.result(), TOLD_APART_BY)
    for method in options.methods:
        for neck in NECKS:
            record(cost_of(f"{method}.{neck}"), ("model", "seed"))
    for line in summary():
        print(line)


if __name__ == "__main__":
    main()
