"""Put trained weights into the package: `python tools/package_weights.py RUN [--command "fpg-zoo train ..."]`.

Takes the best model of a run on `--data shapes`, halves its precision, measures the halved one on the held-out
images, and writes the file into the package, its row into the manifest, and the run's log, thinned, to `docs/logs/`.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

import fpg_zoo
from fpg_zoo.checkpoints.safetensors_files import save
from fpg_zoo.data.open_split import held_out_scenes
from fpg_zoo.evaluation.detect import evaluate
from fpg_zoo.files import sha256_of
from fpg_zoo.modeling.detectors import Detector
from fpg_zoo.weights.manifest import PACKAGED, manifest_path

TAG = "shapes"
ROOT = Path(__file__).resolve().parents[1]
_MOST_BYTES = 6_000_000
_LOGGED = 400  # rows of a log that are kept, at most, beside those with metrics


def halved(run: Path, target: Path) -> Detector:
    """Write the run's best model in half precision; returns it as it is read back, in float32."""
    model = fpg_zoo.create_model(f"local-dir:{run / 'best'}")
    tensors = {
        name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in model.state_dict().items()
    }
    target.unlink(missing_ok=True)
    save(tensors, model.config, model.name, target, {})
    if target.stat().st_size >= _MOST_BYTES:
        raise SystemExit(f"{target}: {target.stat().st_size} bytes; what comes with the package is below {_MOST_BYTES}")
    return fpg_zoo.create_model(checkpoint=target)


def thinned(log: Path, target: Path) -> None:
    """Copy a run's log, of its steps every so many alone."""
    rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    every = max(1, len(rows) // _LOGGED)
    kept = [row for row in rows if row["step"] % every == 0 or row is rows[-1] or "box_AP" in row]
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")


def in_percent(figure: float | None) -> float | None:
    """With two digits; None where there is no metric."""
    return None if figure is None else round(100 * figure, 2)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path, help="the folder of a finished run")
    parser.add_argument("--command", required=True, help="by which it was trained")
    parser.add_argument("--note", help="what a reader of the figures should know")
    options = parser.parse_args()
    name = json.loads((options.run / "best" / "config.json").read_text(encoding="utf-8"))["architecture"]
    file = ROOT / "fpg_zoo" / "weights" / "packaged" / f"{name}.{TAG}.safetensors"
    model = halved(options.run, file)
    masks = "mask" in name
    held_out = held_out_scenes(limit=None, masks=masks)
    torch.set_num_threads(1)  # maps this small are slower on more
    metrics = evaluate(model, held_out.dataset, held_out.category_ids, batch_size=8)
    log = ROOT / "docs" / "logs" / f"{name}.{TAG}.jsonl"
    thinned(options.run / "log.jsonl", log)
    row = {
        "architecture": name,
        "tag": TAG,
        "url": f"{PACKAGED}{file.name}",
        "sha256": sha256_of(file),
        "box_ap": in_percent(metrics["box_AP"]),
        "mask_ap": in_percent(metrics.get("mask_AP")),
        "memory_gb": None,
        "fps": None,
        "recipe": "scratch",
        "licence": "Apache-2.0",
        "class_names": TAG,
        "config_url": None,
        "log_url": log.relative_to(ROOT).as_posix(),
        "note": options.note,
        "data": "fpg_zoo.data.shapes val",
        "command": options.command,
    }
    path = manifest_path()
    manifest = json.loads(path.read_text(encoding="utf-8"))
    manifest["class_names"][TAG] = list(held_out.dataset.class_names)
    rows = manifest["checkpoints"]
    there = [index for index, one in enumerate(rows) if (one["architecture"], one["tag"]) == (name, TAG)]
    if there:
        rows[there[0]] = row
    else:
        rows.append(row)
    text = json.dumps(manifest, indent=1, ensure_ascii=False)
    for names in manifest["class_names"].values():  # in a line, as they were
        text = text.replace(json.dumps(names, indent=1).replace("\n", "\n  "), json.dumps(names))
    path.write_text(text + "\n", encoding="utf-8")
    print(json.dumps({key: row[key] for key in ("sha256", "box_ap", "mask_ap")}), file=sys.stderr)


if __name__ == "__main__":
    main()
