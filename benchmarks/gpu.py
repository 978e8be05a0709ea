"""Everything that needs a GPU, in at most ten minutes: `python benchmarks/gpu.py`.

In order of worth: whether the device computes what the CPU does; images a second by batch, precision and form, with the
share of the matrix rate that was measured in the same run; images a second from decoded pixels to rows of results; peak
memory of training beside what was predicted; the time of a training step. What does not fit into the time is left out,
and named. Records are written part by part. Weights are random, as `harness.models.at_random` makes them. `--dry-run`
goes through every line on the CPU with small models.

Exit codes: 0; 1 a check failed or a line raised an error; 2 there is no GPU.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import functools
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from harness.gpu_checks import (
    PRECISIONS,
    detect,
    formed,
    inference_rows,
    precision_of,
    resume_row,
    training_row,
)
from harness.measure import RESULTS, command_line, commit, write
from harness.models import at_random, batch_of, config_of, scenes_of, side_of
from memory import measured
from training_step import stepper

import fpg_zoo
from fpg_zoo.evaluation.timing import device_name, measure
from fpg_zoo.modeling.detectors import Detector

Row = dict[str, Any]
FORMS = ("plain", "optimized", "compiled")
SHOWN = ("mask_rcnn_r50_fpg_chn128", "retinanet_r50_fpg_chn128", "faster_rcnn_r50_fpn")  # by every precision and batch
TRAINED = ("retinanet_r50_fpg_chn128", "mask_rcnn_r50_fpg_chn128", "mask_rcnn_r50_fpn")
NANO = ("retinanet_nano_fpg", "mask_rcnn_nano_fpg")
UNITS = {
    "maps": "greatest difference, share of a map's greatest value",
    "matched": "detections",
    "expected": "detections",
    "losses": "greatest relative difference",
    "gradients": "norm of the difference, share of the norm",
    "again": "greatest difference of a weight",
    "resumed": "greatest difference of a weight",
    "batch": "images",
    "seconds": "s a batch, from normalized pixels on the device to detections",
    "fps": "images/s",
    "detections": "per image",
    "share": "of the matrix rate of this precision",
    "images": "images",
    "predicted_gb": "GB",
    "measured_gb": "GB",
    "published_gb": "GB",
    "step_seconds": "s a step",
    "images_per_second": "images/s, trained",
    "pass_seconds": "s for all images, from decoded pixels on the CPU to rows of COCO results",
}


@dataclasses.dataclass
class Line:
    """What is measured at a time.

    Attributes:
        what: for people.
        seconds: that it may take.
        rows: measures it.
        arguments: of `rows`.
    """

    what: str
    seconds: float
    rows: Callable[..., list[Row]]
    arguments: Row


@dataclasses.dataclass
class Part:
    """One record: its lines in order of worth, and the fields that tell rows apart.

    Attributes:
        share: of the time; what it does not take goes to the parts after it.
    """

    name: str
    share: float
    lines: list[Line]
    identified_by: tuple[str, ...]


class Sizes:
    """What is measured, and how long; small for a dry run."""

    def __init__(self, device: torch.device, *, dry: bool) -> None:
        self.device, self.dry = device, dry
        self.names = list(NANO) if dry else [*SHOWN, *(n for n in fpg_zoo.list_models("*_r50_*") if n not in SHOWN)]
        self.shown = NANO[:1] if dry else SHOWN
        self.trained = NANO[:1] if dry else TRAINED
        self.batches = (1, 2) if dry else (1, 8, 32)
        self.images = 2 if dry else 8
        self.matrix = 64 if dry else 8192

    @functools.cached_property
    def matrix_rates(self) -> dict[str, float]:
        """Operations a second of a product of square matrices, by precision."""
        rates: dict[str, float] = {}
        for name, dtype in PRECISIONS.items():
            left = torch.randn(self.matrix, self.matrix, device=self.device).to(dtype)
            right = torch.randn(self.matrix, self.matrix, device=self.device).to(dtype)
            with precision_of(name):
                seconds = measure(lambda left=left, right=right: left @ right, runs=5)  # type: ignore[misc]
            rates[name] = 2 * self.matrix**3 / seconds.median
        return rates

    @functools.lru_cache(maxsize=1)  # noqa: B019 - one model at a time stays on the device
    def on_device(self, name: str) -> Detector:
        return copy.deepcopy(plain_of(name)).to(self.device)


@functools.cache
def plain_of(name: str) -> Detector:
    """A model on the CPU; the small ones are trained."""
    return fpg_zoo.create_model(name, pretrained=True) if name in NANO else at_random(name)


drawn = functools.cache(batch_of)


def parity(sizes: Sizes) -> Part:
    """Inference in all forms and precisions, a training step, and a run that is taken up again."""

    def inference(name: str) -> list[Row]:
        cases = [(form, precision) for form in FORMS[:2] for precision in PRECISIONS]
        return inference_rows(plain_of(name), sizes.device, cases)

    def compiled(name: str) -> list[Row]:
        return inference_rows(plain_of(name), sizes.device, [("compiled", "fp32")])

    def step(name: str) -> list[Row]:
        weights = "trained" if name in NANO else "random"
        return [training_row(plain_of(name), sizes.device, weights)]

    def resume(name: str) -> list[Row]:
        return [resume_row(name, sizes.device, bf16=bf16) for bf16 in (False, True)]

    names = list(dict.fromkeys((*sizes.shown, *NANO, *sizes.names)))
    lines = [Line(f"training step of {name}", 8.0, step, {"name": name}) for name in names]
    resumed = [Line(f"resume of {name}", 25.0, resume, {"name": name}) for name in NANO]
    inferred = [Line(f"inference of {name}", 8.0, inference, {"name": name}) for name in reversed(names)]
    graphs = [Line(f"compiled inference of {name}", 60.0, compiled, {"name": name}) for name in NANO]
    first = len(sizes.shown) + len(NANO)
    lines = [*lines[:first], *resumed, *graphs[:1], *inferred, *lines[first:], *graphs[1:]]
    return Part("gpu_parity", 0.3, lines, ("check", "model", "form", "precision"))


def throughput(sizes: Sizes) -> Part:
    """Images a second: of all models at batch 1 in full float32; of some in everything."""
    cases = [(name, form, "fp32", 1) for name in sizes.names for form in FORMS[:2]]
    cases += [(name, "optimized", precision, 8) for name in sizes.names for precision in ("tf32", "bf16")]
    shown = [
        (name, form, precision, batch)
        for form in FORMS
        for batch in sizes.batches
        for name in sizes.shown
        for precision in PRECISIONS
    ]
    eager = [case for case in shown if case[1] != "compiled"]
    compiled = [case for case in shown if case[1] == "compiled" and case[2] in ("tf32", "bf16") and case[3] != 32]
    compiled.sort(key=lambda case: (case[2] != "bf16", case[3]))
    cases = list(dict.fromkeys([*cases[: 2 * len(sizes.names)], *eager, *compiled[:1], *cases, *compiled]))
    lines = [
        Line(
            f"{form} {name} in {precision}, batch {batch}",
            60.0 if form == "compiled" else 4.0,
            functools.partial(_throughput, sizes),
            {"name": name, "form": form, "precision": precision, "batch": batch},
        )
        for name, form, precision, batch in cases
    ]
    return Part("gpu_throughput", 0.4, lines, ("model", "form", "precision", "batch", "device"))


def _throughput(sizes: Sizes, name: str, form: str, precision: str, batch: int) -> list[Row]:
    model = formed(sizes.on_device(name), form, precision)
    images, frames = drawn(name, batch)
    images = images.to(sizes.device)
    found = detect(model, images, frames, precision)  # compiles, too
    once = measure(lambda: detect(model, images, frames, precision), runs=2, warmup=1).median
    runs = 2 if sizes.dry else min(max(int(0.5 / once), 5), 30)
    seconds = measure(lambda: detect(model, images, frames, precision), runs=runs, warmup=0)
    flops = fpg_zoo.model_info(name).flops
    return [
        {
            "model": name,
            "form": form,
            "precision": precision,
            "batch": batch,
            "device": device_name(str(sizes.device)),
            "weights": "shapes" if name in NANO else "random",
            "seconds": dataclasses.asdict(seconds),
            "fps": round(batch / seconds.median, 2),
            "detections": round(sum(map(len, found)) / batch, 1),
            "share": round(flops * batch / seconds.median / sizes.matrix_rates[precision], 4),
        }
    ]


# How masks leave the device: as they are, or as run lengths that are counted there.
WAYS = ("bitmaps", "run lengths")


def pipeline(sizes: Sizes) -> Part:
    """Images a second of a predictor, with what comes before and after the network."""

    def rows(name: str, way: str, batch: int, compile: bool) -> list[Row]:
        model = fpg_zoo.optimize(sizes.on_device(name), dtype=torch.bfloat16, compile=compile)
        predictor = fpg_zoo.Predictor(model, masks_to_cpu=way == "bitmaps")
        images = [scene.permute(1, 2, 0).numpy() for scene in scenes_of(side_of(name), 2 * batch)]

        def whole() -> list[Row]:
            return [row for found in predictor(images, batch) for row in found.to_coco(0)]

        seconds = measure(whole, runs=2 if sizes.dry else 7, warmup=1 if sizes.dry else 2)
        return [
            {
                "model": name,
                "form": "compiled" if compile else "optimized",
                "masks": way,
                "precision": "bf16",
                "batch": batch,
                "pass_seconds": dataclasses.asdict(seconds),
                "fps": round(len(images) / seconds.median, 2),
                "detections": round(len(whole()) / len(images), 1),
            }
        ]

    names = [NANO[1]] if sizes.dry else SHOWN
    lines = [
        Line(
            f"predictor of {name}, masks as {way}, batch {batch}{', compiled' if compile else ''}",
            60.0 if compile else 6.0,
            rows,
            {"name": name, "way": way, "batch": batch, "compile": compile},
        )
        for compile in (False, True)
        for batch in sizes.batches[:2]
        for name in names
        for way in (WAYS if config_of(name).has_masks else WAYS[:1])
    ]
    return Part("gpu_pipeline", 0.15, lines, ("model", "form", "masks", "precision", "batch", "device"))


def training_memory(sizes: Sizes) -> Part:
    """Peak memory of a training step beside what `memory.py` predicts."""
    predicted = {row["model"]: row for row in json.loads((RESULTS / "memory.json").read_text())["rows"]}

    def rows(name: str, saving: bool) -> list[Row]:
        kind = "checkpointed_bf16" if saving else "fp32"
        config = config_of(name)
        known: Row = next((row for label, row in predicted.items() if label.partition(",")[0] == name), {})
        # Trying algorithms takes memory that training does not need.
        with torch.backends.cudnn.flags(enabled=True, benchmark=False):
            gb = None if sizes.dry else round(measured(config, saving=saving), 2)
        row = {"model": name, "settings": kind, "images": 8, "measured_gb": gb}
        row["predicted_gb"] = known.get(f"predicted_{kind}_gb")
        row["published_gb"] = known.get("published_gb")
        return [row]

    lines = [
        Line(f"memory of {name}", 6.0, rows, {"name": name, "saving": saving})
        for saving in (False, True)
        for name in sizes.names
    ]
    return Part("gpu_memory", 0.15, lines, ("model", "settings", "device"))


def training_steps(sizes: Sizes) -> Part:
    """The time of a training step."""

    def rows(name: str, precision: str, twice: bool) -> list[Row]:
        with precision_of("tf32" if precision == "tf32" else "fp32"):
            step = stepper(name, bf16=precision == "bf16", twice=twice, number=sizes.images)
            seconds = measure(step, runs=2 if sizes.dry else 7, warmup=2)
        return [
            {
                "model": name,
                "precision": precision,
                "checkpointed": twice,
                "images": sizes.images,
                "device": device_name(str(sizes.device)),
                "step_seconds": dataclasses.asdict(seconds),
                "images_per_second": round(sizes.images / seconds.median, 2),
            }
        ]

    lines = [
        Line(
            f"training step of {name} in {precision}", 8.0, rows, {"name": name, "precision": precision, "twice": twice}
        )
        for name in sizes.trained
        for precision, twice in (("fp32", False), ("tf32", False), ("bf16", False), ("bf16", True))
    ]
    return Part("gpu_training_step", 0.15, lines, ("model", "precision", "checkpointed", "device"))


PARTS: dict[str, Callable[[Sizes], Part]] = {
    "parity": parity,
    "throughput": throughput,
    "pipeline": pipeline,
    "memory": training_memory,
    "training_step": training_steps,
}


def run(part: Part, sizes: Sizes, end: float, folder: Path) -> bool:
    """Go through a part until the time is over, and write what came; whether all that was done is as it should be."""
    rows: list[Row] = []
    left_out: list[str] = []
    for line in part.lines:
        if time.monotonic() + line.seconds > end:
            left_out.append(line.what)
            continue
        start = time.monotonic()
        try:
            new = line.rows(**line.arguments)
        except Exception as error:  # whatever a device does not take: the other lines do not depend on it
            text = str(error).splitlines()[0] if str(error) else ""
            new = [
                {
                    **line.arguments,
                    "model": line.arguments["name"],
                    "error": f"{type(error).__name__}: {text}"[:300],
                    "within_limit": False,
                }
            ]
        rows += new
        for row in new:
            row.setdefault("device", device_name(str(sizes.device)))
            print(f"{time.monotonic() - start:5.1f} s {line.what}: {_in_short(row)}", flush=True)
    if rows:
        inputs: Row = {"what": "drawn scenes of 640x640 pixels, random weights; cudnn.benchmark"}
        if part.name == "gpu_throughput":
            inputs["matrix_rate"] = {name: round(rate / 1e9) for name, rate in sizes.matrix_rates.items()}
        written = write(
            part.name,
            command_line(),
            rows,
            device=str(sizes.device),
            inputs=inputs,
            units=UNITS,
            identified_by=part.identified_by,
            folder=folder,
        )
        print(written)
    if left_out:
        print(f"{part.name}: no time for {len(left_out)} lines: {'; '.join(left_out)}")
    return all(row.get("within_limit", True) for row in rows)


def _in_short(row: Row) -> str:
    values = {key: value["median"] if isinstance(value, dict) else value for key, value in row.items()}
    texts = {key: f"{value:.3g}" if isinstance(value, float) else value for key, value in values.items()}
    return " ".join(f"{key}={value}" for key, value in texts.items() if key not in ("model", "device", "weights"))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=list(PARTS), metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--minutes", type=float, default=10.0, metavar="M", help="at most (default: 10)")
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, with small models; nothing is kept")
    options = parser.parse_args(arguments)
    end = math.inf if options.dry_run else time.monotonic() + 60 * options.minutes  # a dry run leaves nothing out
    if unknown := [name for name in options.parts if name not in PARTS]:
        parser.error(f"{unknown[0]}: the parts are {', '.join(PARTS)}")
    if not options.dry_run and not torch.cuda.is_available():
        print("gpu.py: torch sees no CUDA device here; --dry-run goes through it on the CPU", file=sys.stderr)
        return 2
    commit()
    torch.backends.cudnn.benchmark = True
    sizes = Sizes(torch.device("cpu" if options.dry_run else "cuda"), dry=options.dry_run)
    if options.dry_run:
        torch.compiler.set_stance("force_eager")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) if options.dry_run else RESULTS
        parts = [PARTS[name](sizes) for name in options.parts]
        good = []
        for place_in_order, part in enumerate(parts):
            now = time.monotonic()
            left = sum(other.share for other in parts[place_in_order:])
            good.append(run(part, sizes, now + (end - now) * part.share / left, folder))
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
