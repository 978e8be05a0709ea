"""What a backbone trained on ImageNet and the neck on it are worth on real photographs.

`python benchmarks/backbones.py --data bccd --runs runs`, with BCCD's published split in COCO's format (`fpg-zoo
convert-data` makes it). RetinaNet on `tf_efficientnet_lite0` has FPN, FPG-chn128 or a small FPG (`examples/bccd`), with
an equal budget and several seeds. The first is trained from a random backbone, too. A finished run is taken as it is,
an unfinished one goes on, so the command may be stopped and given again. It writes AP on the test list with mean and
spread, and the cost.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shlex
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from harness.measure import measure, write

import fpg_zoo

EXAMPLES = Path(__file__).resolve().parents[1] / "examples" / "bccd"
NECKS = ("fpn", "fpg_chn128", "fpg_small")
SETTINGS = (
    *("--recipe", "scratch", "--epochs", "12", "--batch-size", "8", "--amp", "bf16"),
    *("--workers", "1", "--device", "cpu", "--resume"),
)
UNITS = {
    "AP": "share, on BCCD's test list, mean over the seeds",
    "AP50": "share, on BCCD's test list, mean over the seeds",
    "AP_spread": "share, greatest less least over the seeds",
    "AP50_spread": "share, greatest less least over the seeds",
    "seeds": "runs",
    "parameters": "values",
    "flops": "operations for one image",
    "seconds": "s for one image, plain float32",
}


def start_of(start: str, weights: Path | None) -> list[str]:
    """The options that a run begins with."""
    if start == "random":
        return ["--no-pretrained-backbone"]
    return ["--backbone-checkpoint", str(weights)] if weights else ["--pretrained-backbone"]


def train(neck: str, start: str, seed: int, options: argparse.Namespace) -> Path:
    """Train, or go on; the run's folder."""
    run: Path = options.runs / f"{neck}.{start}.{seed}"
    if not (run / "done").is_file():
        command = [sys.executable, "-m", "fpg_zoo.cli", "train", "--config", str(EXAMPLES / f"lite0_{neck}.toml")]
        command += [*start_of(start, options.weights), "--data", str(options.data), "--output", str(run)]
        subprocess.run([*command, "--seed", str(seed), *SETTINGS], check=True)
        (run / "done").touch()
    return run


def test(run: Path, data: Path) -> dict[str, float]:
    """The metrics of a run's best model on the test list."""
    file = run / "test.json"
    if not file.is_file():
        command = [sys.executable, "-m", "fpg_zoo.cli", "eval", "--checkpoint", str(run / "best"), "--data", str(data)]
        subprocess.run([*command, "--split", "test", "--device", "cpu", "--json", str(file)], check=True)
    metrics: dict[str, float] = json.loads(file.read_text())["box"]["figures"]
    return metrics


def cost_of(neck: str) -> dict[str, Any]:
    """Parameters, FLOPs and seconds for an image."""
    file = EXAMPLES / f"lite0_{neck}.toml"
    info = fpg_zoo.model_info(config=file)
    model = fpg_zoo.create_model(config=file, num_classes=3)
    side = info.config.preprocess.longest_side
    images = torch.zeros(1, 3, side, side)
    with torch.inference_mode():
        seconds = measure(lambda: model(images, [(side, side)]), runs=11)
    return {"parameters": info.parameters, "flops": info.flops, "seconds": dataclasses.asdict(seconds)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="BCCD in COCO's format")
    parser.add_argument("--runs", type=Path, required=True, help="a folder for the runs")
    parser.add_argument("--weights", type=Path, help="timm's file of the backbone (default: from the hub)")
    parser.add_argument("--seeds", type=int, default=3, help="default: 3")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    rows = []
    for neck, start, seeds in (*((neck, "imagenet", options.seeds) for neck in NECKS), ("fpn", "random", 1)):
        found = [test(train(neck, start, seed, options), options.data) for seed in range(seeds)]
        row: dict[str, Any] = {"neck": neck, "start": start, "seeds": seeds}
        for name in ("AP", "AP50"):
            values = [metrics[name] for metrics in found]
            row |= {name: statistics.mean(values), f"{name}_spread": max(values) - min(values)}
        rows.append(row | cost_of(neck))
        print(
            f"{neck:12} {start:9} AP {row['AP']:.3f} (spread {row['AP_spread']:.3f}), AP50 {row['AP50']:.3f}",
            flush=True,
        )
    command = "python " + shlex.join(["benchmarks/backbones.py", *sys.argv[1:]])
    what = f"BCCD's published split, images of 384 pixels; fpg-zoo train {' '.join(SETTINGS)}"
    print(write("backbones", command, rows, device="cpu", inputs={"what": what}, units=UNITS))


if __name__ == "__main__":
    main()
