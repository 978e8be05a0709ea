"""How long a model with pretrained weights takes from the cache: `python benchmarks/loading.py`.

The baseline, measured turn by turn in the same run, is what cannot be avoided: reading the safetensors file, and
constructing the model on the meta device. The file is in the page cache, so the ratio is the most unfavourable one.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile

from harness.measure import measure_in_turn, write

import fpg_zoo
from fpg_zoo.checkpoints.safetensors_files import WeightsFile, metadata_of, write_safetensors
from fpg_zoo.modeling.build import build_on_meta
from fpg_zoo.models.factory import published
from fpg_zoo.weights.store import Store

LIMIT = 1.5  # of the baseline
RUNS = 15


def main() -> None:
    rows = []
    with tempfile.TemporaryDirectory() as cache:
        os.environ["FPG_ZOO_CACHE"] = cache
        for name in fpg_zoo.list_models(pretrained=True):
            model, entry, store = fpg_zoo.create_model(name), published(name), Store()
            # Random weights of the right names and shapes: reading does not depend on the values.
            path = store.path(entry)
            path.touch()
            write_safetensors(model.state_dict(), path, metadata_of(model.config, name))
            config = model.config
            del model
            ours, baseline, ratio = measure_in_turn(
                lambda name=name: fpg_zoo.create_model(name, pretrained=True),  # type: ignore[misc]
                lambda path=path, config=config, name=name: (WeightsFile(path).tensors(), build_on_meta(config, name)),  # type: ignore[misc]
                runs=RUNS,
            )
            rows.append(
                {
                    "model": name,
                    "file_mb": round(path.stat().st_size / 1e6, 1),
                    "create_model_s": dataclasses.asdict(ours),
                    "baseline_s": dataclasses.asdict(baseline),
                    "ratio": dataclasses.asdict(ratio),
                    "within_limit": ratio.median <= LIMIT,
                }
            )
            times = f"{ours.median * 1e3:6.1f} ms, baseline {baseline.median * 1e3:6.1f} ms"
            print(f"{name:28} {times}, ratio {ratio.median:.2f}", flush=True)
            path.unlink()
    inputs = {"what": "safetensors files of random weights, in the page cache"}
    units = {"file_mb": "MB", "create_model_s": "s", "baseline_s": "s", "ratio": "create_model_s / baseline_s"}
    print(write("loading", "python benchmarks/loading.py", rows, device="cpu", inputs=inputs, units=units))


if __name__ == "__main__":
    main()
