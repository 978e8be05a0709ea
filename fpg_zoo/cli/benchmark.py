"""`fpg-zoo benchmark`: latency, throughput and memory of a model on this machine."""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import TYPE_CHECKING, get_args

from fpg_zoo.cli.exit_codes import DONE
from fpg_zoo.cli.model_options import (
    EXPORTED_HELP,
    MODEL_HELP,
    add_architecture,
    add_checkpoint,
    check_least,
    image_size,
)
from fpg_zoo.cli.printing import print_line, print_lines
from fpg_zoo.errors import ConfigError
from fpg_zoo.inference.precisions import Precision
from fpg_zoo.version import __version__

if TYPE_CHECKING:
    from fpg_zoo.evaluation.benchmark import Benchmark


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Enter it into the parser."""
    command = commands.add_parser(
        "benchmark",
        help="latency, throughput and memory of a model here",
        description="The model alone, from normalized images to detections with masks, on drawn scenes. Models without "
        "weights, and those whose published ones cannot be had, get random ones that give as much to do.",
    )
    command.add_argument("model", nargs="?", metavar="MODEL", help=f"{MODEL_HELP}. {EXPORTED_HELP}")
    add_architecture(command)
    add_checkpoint(command)
    command.add_argument(
        "--image-size",
        type=image_size,
        metavar="N",
        help="N or HxW pixels of the network's input (default: the model's own size)",
    )
    command.add_argument(
        "--batch-size", type=int, default=1, metavar="N", help="images a pass, of throughput and memory (default: 1)"
    )
    command.add_argument(
        "--device",
        metavar="D",
        help="cpu, cuda, cuda:1, mps (default: cuda if there is one, else cpu; of an exported file cpu)",
    )
    command.add_argument("--dtype", choices=get_args(Precision), help="compute in this precision")
    command.add_argument("--optimize", action="store_true", help="use the model's faster inference form")
    command.add_argument("--threads", type=int, metavar="N", help="of the CPU (default: torch's choice)")
    command.add_argument("--runs", type=int, default=10, metavar="N", help="timings of each (default: 10)")
    command.add_argument("--json", action="store_true", help="as JSON")
    command.set_defaults(run=_benchmark)


def _benchmark(options: argparse.Namespace) -> int:
    if options.model is None and options.config is None and options.checkpoint is None:
        raise ConfigError("no model: give MODEL (`fpg-zoo list` has the names), --checkpoint FILE or --config FILE")
    check_least(options, batch_size=1, threads=1, runs=2)
    import torch

    from fpg_zoo.evaluation.benchmark import benchmark

    measured = benchmark(
        options.model,
        backbone=options.backbone,
        config=options.config,
        checkpoint=options.checkpoint,
        device=options.device,
        dtype=options.dtype,
        optimize=options.optimize,
        threads=options.threads,
        image_size=options.image_size,
        batch_size=options.batch_size,
        runs=options.runs,
    )
    if options.json:
        versions = {"fpg_zoo": __version__, "torch": torch.__version__}
        print_lines(json.dumps(dataclasses.asdict(measured) | versions, indent=1))
    else:
        _print(measured)
    return DONE


def _print(measured: Benchmark) -> None:
    height, width = measured.image_size
    latency, cost = measured.latency, measured.cost
    lower, median, upper = (1000 * seconds for seconds in (latency.lower, latency.median, latency.upper))
    form = f"{measured.dtype}, optimized" if measured.optimized else measured.dtype
    print_line(f"{measured.model}: {measured.weights} weights, {form}, images of {height}x{width}")
    print_line(f"  device        {measured.device}, {measured.threads} threads")
    print_line(f"  latency       {median:.1f} ms an image (half of {latency.runs} runs: {lower:.1f} to {upper:.1f})")
    print_line(f"  throughput    {measured.throughput:.2f} images/s in batches of {measured.batch_size}")
    print_line(f"  memory        {measured.memory:,.0f} MB of weights and a pass of {measured.batch_size}")
    print_line(f"  detections    {measured.detections:.1f} an image")
    print_line(f"  parameters    {cost.parameters:,}")
    print_line(f"  FLOPs         {cost.flops / 1e9:,.1f} G an image")
    print_line(f"  activations   {cost.activations / 1e6:,.1f} M an image")
