"""How long the package takes to be there: `python benchmarks/startup.py`.

Whole processes, in turn: `import fpg_zoo` and `fpg-zoo list`, each against the interpreter alone, the baseline.
"""

from __future__ import annotations

import dataclasses
import subprocess
import sys

from harness.measure import measure_in_turn, write

LIMIT_SECONDS = 0.3
RUNS = 11


def main() -> None:
    baseline = [sys.executable, "-c", "pass"]
    rows = []
    for name, command in (
        ("import fpg_zoo", [sys.executable, "-c", "import fpg_zoo"]),
        ("fpg-zoo list", [sys.executable, "-m", "fpg_zoo.cli", "list"]),
    ):
        ours, alone, ratio = measure_in_turn(
            lambda command=command: subprocess.run(command, check=True, stdout=subprocess.DEVNULL),  # type: ignore[misc]
            lambda: subprocess.run(baseline, check=True),
            runs=RUNS,
        )
        rows.append(
            {
                "what": name,
                "seconds": dataclasses.asdict(ours),
                "interpreter_alone_s": dataclasses.asdict(alone),
                "ratio": dataclasses.asdict(ratio),
                "within_limit": ours.median <= LIMIT_SECONDS,
            }
        )
        print(f"{name:16} {ours.median * 1e3:5.0f} ms, the interpreter alone {alone.median * 1e3:5.0f} ms")
    inputs = {"what": "no image: whole processes, files in the page cache"}
    units = {"seconds": "s", "interpreter_alone_s": "s", "ratio": "seconds / interpreter_alone_s"}
    print(write("startup", "python benchmarks/startup.py", rows, device="cpu", inputs=inputs, units=units))


if __name__ == "__main__":
    main()
