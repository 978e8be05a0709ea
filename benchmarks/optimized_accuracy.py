"""AP of the inference forms of the models that come with the package: `python benchmarks/optimized_accuracy.py`.

On the 1,000 held-out scenes, beside the plain form's in float32, a model and form in a process of its own with one
thread. Ends with exit code 1 where AP is further off than `TOLERANCE`.
"""

from __future__ import annotations

import sys

from accuracy import of_scenes
from harness.measure import Row, write
from harness.models import FORMS, PLAIN

from fpg_zoo.weights.manifest import load_manifest

TOLERANCE = 0.2  # points of AP in percent


def main() -> int:
    names = [entry.name for entry in load_manifest().checkpoints if entry.packaged]
    pairs = [(name, form) for name in names for form in FORMS]
    ap_of_each = dict(zip(pairs, of_scenes(pairs), strict=True))
    rows: list[Row] = []
    for (name, form), ap_by_type in ap_of_each.items():
        for label, value in ap_by_type.items():
            apart = value - ap_of_each[name, PLAIN][label]
            rows.append(
                {
                    "model": name,
                    "form": form,
                    "figure": f"{label} AP",
                    "measured": round(value, 3),
                    "apart": round(apart, 3),
                    "tolerance": TOLERANCE,
                    "within_limit": abs(apart) <= TOLERANCE,
                }
            )
            print(f"{name:28} {form:15} {label} AP {value:.2f}, {apart:+.2f} of the plain form's", flush=True)
    inputs = {"what": "the 1,000 held-out scenes, fpg_zoo.data.shapes val, of 240x320 pixels"}
    units = dict.fromkeys(("measured", "apart", "tolerance"), "percent")
    print(
        write(
            "optimized_accuracy",
            "python benchmarks/optimized_accuracy.py",
            rows,
            device="cpu",
            inputs=inputs,
            units=units,
        )
    )
    return 0 if all(row["within_limit"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
