"""This zoo beside torchvision's detectors of the same methods: `python benchmarks/compare.py [METHOD ...]`.

On the same drawn scene of 640 x 640 pixels, in the same process, with the same threads: rounds in which each contender
has its turn, and of each round the ratio to torchvision's model. All weights are random, and made so that detectors
have something to detect (`harness.models.at_random`); from pixels to detections, normalising included. Different
models: see their AP before their time.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
from collections.abc import Callable
from typing import Any

import torch
from harness.measure import command_line, commit, measure_in_rounds, write
from harness.models import FORMS, at_random, batch_of, described, scenes_of
from torch import nn
from torchvision.models import detection

from fpg_zoo.distributed import device_of_process
from fpg_zoo.errors import FPGZooError
from fpg_zoo.evaluation.random_weights import norms_following, spread_dense, spread_rois
from fpg_zoo.evaluation.timing import Spread, device_name, summary
from fpg_zoo.modeling.detectors import Detector
from fpg_zoo.modeling.preprocess import preprocess

SIDE = 640
METHODS = {  # of each, torchvision's model
    "faster_rcnn": "fasterrcnn_resnet50_fpn_v2",
    "mask_rcnn": "maskrcnn_resnet50_fpn_v2",
    "retinanet": "retinanet_resnet50_fpn_v2",
}
NECKS = ("fpn", "fpg_chn128", "fpg")
BASELINE = "torchvision"
UNITS = {
    "threads": "threads",
    "seconds": "s",
    "times_as_fast": "torchvision's seconds over these, of each round",
    "detections": "per image",
}


def of_torchvision(name: str) -> nn.Module:
    """torchvision's model of random weights that takes images of `SIDE` as they are and finds as much as ours do."""
    torch.manual_seed(0)
    most = "detections_per_img" if name.startswith("retinanet") else "box_detections_per_img"
    model: Any = getattr(detection, name)(
        weights=None, weights_backbone=None, min_size=SIDE, max_size=SIDE, **{most: 100}
    ).eval()
    scene = [scenes_of(SIDE, 1)[0] / 255]
    with torch.no_grad(), norms_following(model):
        if isinstance(model, detection.RetinaNet):
            layer = model.head.classification_head.cls_logits
            spread_dense(layer, lambda: model(scene), threshold=model.score_thresh)
        else:
            heads = model.roi_heads
            layer = heads.box_predictor.cls_score
            spread_rois(layer, lambda: model(scene), background=0, threshold=heads.score_thresh)
    network: nn.Module = model
    return network


def contenders(method: str, device: torch.device) -> dict[tuple[str, str], Callable[[], list[Any]]]:
    """What is timed, by model and form; the baseline first."""
    theirs = of_torchvision(METHODS[method]).to(device)
    scene = [(image / 255).to(device) for image in scenes_of(SIDE, 1)]
    contenders_by_name: dict[tuple[str, str], Callable[[], list[Any]]] = {
        (METHODS[method], BASELINE): lambda: theirs(scene)
    }
    for neck in NECKS:
        plain = at_random(f"{method}_r50_{neck}").to(device)
        for form, make in FORMS.items():
            contenders_by_name[plain.name, form] = _of_ours(make(plain), device)
    return contenders_by_name


def _of_ours(model: Detector, device: torch.device) -> Callable[[], list[Any]]:
    scene = [image.to(device) for image in scenes_of(SIDE, 1)]

    def run() -> list[Any]:
        images, sizes = preprocess(scene, model.config.preprocess)
        return list(model.detect(images.to(model.dtype), sizes))

    return run


@torch.no_grad()
def rows_of(method: str, rounds: int, device: torch.device) -> list[dict[str, Any]]:
    """A row for each contender of a method."""
    runs = contenders(method, device)
    counts = {key: _count(run()) for key, run in runs.items()}
    seconds = measure_in_rounds(runs, rounds)
    baseline = next(iter(seconds.values()))
    rows = []
    for (model, form), values in seconds.items():
        ratio: Spread = summary([theirs / ours for theirs, ours in zip(baseline, values, strict=True)])
        rows.append(
            {
                "method": method,
                "model": model,
                "form": form,
                "device": device_name(str(device)),
                "threads": torch.get_num_threads(),
                "weights": "random",
                "detections": counts[model, form],
                "seconds": dataclasses.asdict(summary(values)),
                "times_as_fast": dataclasses.asdict(ratio),
            }
        )
        print(f"{model:28} {form:15} {statistics.median(values):.3f} s, {ratio.median:.2f} times as fast", flush=True)
    return rows


def _count(output: list[Any]) -> int:
    """Detections in the only image, of this zoo or of torchvision."""
    return len(output[0]["boxes"]) if isinstance(output[0], dict) else len(output[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*", default=list(METHODS), metavar="METHOD", help=", ".join(METHODS))
    parser.add_argument("--device", metavar="D", help="cpu, cuda, mps (default: cuda if there is one, else cpu)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="that count (default: 5)")
    options = parser.parse_args()
    unknown = [method for method in options.methods if method not in METHODS]
    if unknown or options.rounds < 2:
        parser.error(f"{unknown or options.rounds}: methods are {', '.join(METHODS)}; rounds at least 2")
    try:
        device = device_of_process(options.device)
    except FPGZooError as error:
        parser.error(str(error))
    commit()
    rows: list[dict[str, Any]] = []
    for method in options.methods:
        rows += rows_of(method, options.rounds, device)
        target = write(
            "compare",
            command_line(),
            rows,
            device=str(device),
            inputs={
                **described(batch_of("faster_rcnn_r50_fpg", 1)[0]),
                "what": "scene 0 of fpg_zoo.data.shapes val, drawn at this size; for torchvision as float32 in 0..1",
                "dtype": "uint8",
            },
            units=UNITS,
            identified_by=("model", "form", "device", "threads"),
        )
    print(target)


if __name__ == "__main__":
    main()
