"""Which 3x3 convolutions gain by fewer multiplications: `python benchmarks/convolutions.py`.

Each kind that the detectors have at 640 x 640, on a map or on one enlarged by 2, as oneDNN computes it and in
Winograd's form, in turn in one run, and how far either is from the sum in double precision; float32 on the CPU.
`fpg_zoo/optimized/winograd.py` chooses by these metrics.
"""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

import torch
from harness.measure import command_line, commit, measure_in_turn, write
from torch import Tensor, nn

from fpg_zoo.inference.optimized.convolutions import Convolution, UpsampleConvolution
from fpg_zoo.inference.optimized.winograd import WinogradConvolution
from fpg_zoo.modeling.layers import upsample2

# Images, channels in and out, side of the map (before it is enlarged).
MAPS = [
    (1, 64, 64, 160),
    (1, 128, 128, 160),
    (1, 128, 256, 160),
    (1, 256, 256, 160),
    (1, 128, 128, 80),
    (1, 256, 256, 80),
    (1, 256, 720, 80),
    (1, 256, 256, 40),
    (1, 512, 512, 20),
    (1, 256, 256, 20),
    (1, 256, 256, 10),
    (32, 256, 256, 14),
]
ENLARGED = [(1, 256, 256, 80), (1, 256, 256, 40), (1, 256, 256, 20), (1, 128, 128, 80), (1, 128, 128, 40)]
UNITS = {
    "images": "images",
    "channels": "channels",
    "outputs": "channels",
    "side": "pixels of the map",
    "plain_seconds": "s",
    "seconds": "s, Winograd's form",
    "plain_over_this": "plain_seconds / seconds",
    "plain_error": "L2 distance from the sum in double precision, relative",
    "error": "L2 distance from the sum in double precision, relative, Winograd's form",
    "size": "bytes of Winograd's form over those of the 3x3 weights",
}


def apart(exact: Tensor, approximate: Tensor) -> float:
    return float(f"{(exact - approximate.double()).norm() / exact.norm():.2g}")


@torch.no_grad()
def row_of(images: int, channels: int, outputs: int, side: int, *, enlarged: bool, runs: int) -> dict[str, Any]:
    torch.manual_seed(0)
    conv = nn.Conv2d(channels, outputs, 3, padding=1)
    x = torch.randn(images, channels, side, side).relu().contiguous(memory_format=torch.channels_last)
    plain = UpsampleConvolution.of(conv) if enlarged else Convolution.of(conv)
    winograd = WinogradConvolution.of(conv, upsample=enlarged)
    exact = conv.double()(upsample2(x.double()) if enlarged else x.double())
    before, after, ratio = measure_in_turn(lambda: plain(x), lambda: winograd(x), runs=runs)
    return {
        "kind": "enlarged" if enlarged else "map",
        "images": images,
        "channels": channels,
        "outputs": outputs,
        "side": side,
        "plain_seconds": dataclasses.asdict(before),
        "seconds": dataclasses.asdict(after),
        "plain_over_this": dataclasses.asdict(ratio),
        "plain_error": apart(exact, plain(x)),
        "error": apart(exact, winograd(x)),
        "size": round(winograd.weight.numel() / conv.weight.numel(), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=9, metavar="N", help="pairs of timings (default: 9)")
    options = parser.parse_args()
    commit()
    rows = []
    for enlarged, shapes in ((False, MAPS), (True, ENLARGED)):
        for images, channels, outputs, side in shapes:
            row = row_of(images, channels, outputs, side, enlarged=enlarged, runs=options.runs)
            rows.append(row)
            times = row["plain_over_this"]["median"]
            print(
                f"{row['kind']:8} {images} x {channels} to {outputs} at {side}: {times:.2f} times as fast", flush=True
            )
    inputs = {
        "what": "maps of noise after ReLU, random weights",
        "dtype": "float32",
        "memory_format": "channels last",
        "seed": 0,
    }
    print(write("convolutions", command_line(), rows, device="cpu", inputs=inputs, units=UNITS))


if __name__ == "__main__":
    main()
