"""`fpg-zoo train` and `fpg-zoo convert-data`: from a data set to a detector of one's own."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from fpg_zoo.cli.exit_codes import DONE, INCOMPLETE
from fpg_zoo.cli.model_options import MODEL_HELP
from fpg_zoo.cli.printing import print_line, print_lines
from fpg_zoo.config.training import PRESETS
from fpg_zoo.run_training import resolved, run_training
from fpg_zoo.training.loggers.names import LOGGERS
from fpg_zoo.training.run_config import (
    OPTIONS,
    Given,
    RunConfig,
    build_run_config,
    read_assignment,
    read_run_file,
    to_toml,
)

_FLAG: dict[str, Any] = {"action": "store_true", "default": None}  # None where it is not given


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Enter them into the parser."""
    command = commands.add_parser(
        "train",
        help="train a detector on annotated images",
        description="Under torchrun, every process trains on its share and the gradients are averaged.",
    )
    add = command.add_argument
    add("--model", metavar="NAME", help=MODEL_HELP)
    add("--backbone", metavar="B", help="of a family (a name of `fpg-zoo list` without r50): resnet101 or timm:NAME")
    add(
        "--config",
        type=Path,
        metavar="F",
        help="a TOML or JSON file: of a whole run, as --dump-config prints it, or of a detector of your own",
    )
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="a field of the run, as schedule.lr=0.01")
    add("--dump-config", action="store_true", help="print the run as a file that --config takes, and end")
    add("--data", metavar="DIR", help="of COCO's, Roboflow's, VOC's, YOLO's and other layouts; hf:OWNER/NAME; shapes")
    add("--annotations", metavar="F", help="a file in COCO's format, in place of what --data has")
    add("--images", metavar="DIR", help="the folder that the names in --annotations start from")
    add("--val-fraction", type=float, metavar="X", help="the share of the images to evaluate on, where no split is")
    add("--keep-background", **_FLAG, help="train on images without objects, too")
    add("--allow-losses", **_FLAG, help="go on where more than one annotation in ten cannot be used")
    add("--output", metavar="RUN", help="a folder for the run")
    add("--augment", metavar="A", help=f"{', '.join(PRESETS)} (default: recipe)")
    add("--recipe", metavar="R", help="crop640_50e, finetune, scratch (default: finetune)")
    add("--train-split", metavar="S", help="the split to train on (default: train, or all)")
    add("--val-split", metavar="S", help="the split to evaluate on (default: val, if it is there)")
    start = command.add_mutually_exclusive_group()
    start.add_argument("--pretrained", **_FLAG, help="begin with the published weights")
    start.add_argument("--checkpoint", metavar="F", help="begin with these weights")
    add(
        "--pretrained-backbone",
        action=argparse.BooleanOptionalAction,
        help="begin with a backbone trained on ImageNet (default: where no detector's weights are given, and the "
        "backbone has weights that are known)",
    )
    add("--backbone-checkpoint", metavar="F", help="begin with the backbone in this file")
    add("--image-size", type=int, metavar="N", help="pixels of the longest side (default: the model's)")
    add("--max-detections", type=int, metavar="N", help="of an image (default: the model's)")
    add("--epochs", type=int, metavar="N", help="instead of the recipe's")
    add("--lr", type=float, metavar="X", help="instead of the recipe's, for batches of schedule.base_batch_size images")
    add("--warmup", type=int, metavar="N", help="steps over which the learning rate grows")
    add("--weight-decay", type=float, metavar="X", help="instead of the recipe's")
    add(
        "--layer-decay",
        type=float,
        metavar="X",
        help="share of the next stage's learning rate, in the backbone",
    )
    add("--freeze", type=int, metavar="N", help="stages of the backbone that are not trained, with the stem")
    add("--batch-size", type=_number_or_auto, metavar="N", help="images a pass, or auto (default: 8)")
    add("--accumulate", type=int, metavar="N", help="passes a step (default: 1)")
    add("--seed", type=int, metavar="N", help="of everything random (default: 0)")
    add("--workers", type=_number_or_auto, metavar="N", help="processes that read images, or auto (default: auto)")
    add("--amp", choices=("bf16", "fp16"), help="compute in this precision where that is safe")
    add("--checkpoint-activations", **_FLAG, help="less memory, more time, equal results")
    add("--ema", **_FLAG, help="also average the weights, and evaluate the average")
    add("--sync-norms", **_FLAG, help="BatchNorm over all processes (CUDA)")
    add("--compile", **_FLAG, help="compile backbone and neck")
    add("--evaluate-every", type=int, metavar="N", help="epochs (default: 1)")
    add("--metric", metavar="M", help="that tells the best model, as box_AP50 (default: box_AP)")
    add("--patience", type=int, metavar="N", help="evaluations without a better one, after which training stops")
    add("--save-every", type=int, metavar="N", help="steps (default: 500)")
    add("--log-every", type=int, metavar="N", help="steps from line to line, off a terminal (default: 50)")
    add("--logger", action="append", metavar="L", help=f"{', '.join(LOGGERS)}; may be given several times")
    add("--resume", action="store_true", help="go on from the newest state in RUN, if there is one")
    add("--device", metavar="D", help="cpu, cuda, mps (default: cuda if there is one, else cpu)")
    command.set_defaults(run=_train)

    command = commands.add_parser("convert-data", help="a folder in Pascal VOC's format to COCO's")
    command.add_argument("source", type=Path, metavar="VOC_DIR", help="Annotations, JPEGImages, ImageSets/Main")
    command.add_argument("out", type=Path, metavar="OUT", help="a folder that `train --data` reads")
    command.set_defaults(run=_convert_data)


def _number_or_auto(text: str) -> int | str:
    return text if text == "auto" else int(text)


def _train(options: argparse.Namespace) -> int:
    config = _config_of(options)
    if options.dump_config:
        print_lines(to_toml(resolved(config)[0]).rstrip("\n"))
        return DONE
    metrics = run_training(config, resume=options.resume, say=lambda text: print_lines(text, to_stderr=True))
    if metrics is not None:
        known = [(name, metrics.get(name)) for name in ("box_AP", "mask_AP")]
        summary = "".join(f", {name} {value:.3f}" for name, value in known if value is not None)
        print_line(f"{config.output}: trained{summary}")
    return DONE


def _config_of(options: argparse.Namespace) -> RunConfig:
    """The run that the options describe: a file's fields, those of the options in place, then those of --set."""
    given = read_run_file(options.config) if options.config is not None else {}
    for name, key in OPTIONS.items():
        value = getattr(options, name)
        if value is not None:
            given[key] = Given(value, f"--{name.replace('_', '-')}: ")
    given |= dict(map(read_assignment, options.set))
    return build_run_config(given)


def _convert_data(options: argparse.Namespace) -> int:
    from fpg_zoo.data.convert_voc import convert_voc

    conversion = convert_voc(options.source, options.out)
    print_lines(conversion.summary())
    return INCOMPLETE if conversion.report else DONE
