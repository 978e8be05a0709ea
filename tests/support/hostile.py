"""All hostile checkpoint files; as a program, reads them in a process of its own and prints what came of each."""

from __future__ import annotations

import ctypes
import gc
import json
import sys
import time
from pathlib import Path

from hostile_archives import ARCHIVES
from hostile_code import CODE
from hostile_making import Hostile, checkpoint, legacy_checkpoint, write_legacy, write_zip
from hostile_sizes import SIZES

MEASURED = Path("/proc/self/clear_refs").exists()  # on Linux
HOSTILE: dict[str, Hostile] = {**CODE, **SIZES, **ARCHIVES}


def write_all(folder: Path, trap: Path) -> None:
    """Write `NAME.pth` for each; would their code be run, it would make the trap."""
    for name, (write, _, _) in HOSTILE.items():
        write(folder / f"{name}.pth", trap)


def resident(kind: str) -> int:
    """The process's memory in bytes, now (VmRSS) or at its peak (VmHWM)."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(kind))


def forget_peak() -> None:
    """Let the peak begin anew, and give freed memory back, which would hide what is taken next."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/clear_refs", "w") as peaks:
        peaks.write("5")


def main(folder: Path) -> None:
    """Print a line of JSON for each file: name, error, message, growth of the memory at its peak, seconds."""
    from fpg_zoo.checkpoints.mmdet_files import read_checkpoint

    write_zip(folder / "good.pth", checkpoint())
    read_checkpoint(folder / "good.pth")  # what torch loads at its first call is nobody's fault
    write_legacy(folder / "good.pth", legacy_checkpoint())
    read_checkpoint(folder / "good.pth")
    gc.freeze()
    for name in HOSTILE:
        error, told = "none", ""
        if MEASURED:
            forget_peak()
        before, began = resident("VmRSS") if MEASURED else 0, time.perf_counter()
        try:
            read_checkpoint(folder / f"{name}.pth")
        except Exception as caught:
            error, told = type(caught).__name__, str(caught)
        seconds = time.perf_counter() - began
        print(json.dumps([name, error, told, resident("VmHWM") - before if MEASURED else 0, seconds]), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
