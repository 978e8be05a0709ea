"""`fpg-zoo train` and `fpg-zoo convert-data`: from a data set to a detector of one's own."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fpg_zoo.cli.exit_codes import DONE, INCOMPLETE
from fpg_zoo.cli.model_options import MODEL_HELP, add_architecture
from fpg_zoo.cli.printing import print_line, print_lines
from fpg_zoo.errors import ConfigError, DownloadError

if TYPE_CHECKING:
    from fpg_zoo.config import DetectorConfig
    from fpg_zoo.data.dataset import Dataset
    from fpg_zoo.data.open_split import HeldOut
    from fpg_zoo.distributed import Processes
    from fpg_zoo.modeling.detectors import Detector
    from fpg_zoo.training.trainer import Evaluate


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Enter them into the parser."""
    command = commands.add_parser(
        "train",
        help="train a detector on images with annotations in COCO's format",
        description="Under torchrun, every process trains on its share and the gradients are averaged.",
    )
    command.add_argument("--model", metavar="NAME", help=MODEL_HELP)
    add_architecture(command)
    command.add_argument("--data", required=True, type=Path, metavar="DIR", help="annotations/instances_*.json, images")
    command.add_argument(
        "--allow-losses", action="store_true", help="go on where more than one annotation in ten cannot be used"
    )
    command.add_argument("--output", required=True, type=Path, metavar="RUN", help="a folder for the run")
    command.add_argument("--recipe", default="finetune", metavar="R", help="crop640_50e, finetune, scratch")
    command.add_argument("--train-split", default="train", metavar="S", help="the split to train on (default: train)")
    command.add_argument("--val-split", metavar="S", help="the split to evaluate on (default: val, if it is there)")
    start = command.add_mutually_exclusive_group()
    start.add_argument("--pretrained", action="store_true", help="begin with the published weights")
    start.add_argument("--checkpoint", type=Path, metavar="F", help="begin with these weights")
    command.add_argument(
        "--pretrained-backbone",
        action=argparse.BooleanOptionalAction,
        help="begin with a backbone trained on ImageNet (default: where no detector's weights are given, and the "
        "backbone has weights that are known)",
    )
    command.add_argument("--backbone-checkpoint", type=Path, metavar="F", help="begin with the backbone in this file")
    command.add_argument("--epochs", type=int, metavar="N", help="instead of the recipe's")
    command.add_argument("--batch-size", type=int, default=8, metavar="N", help="images a pass (default: 8)")
    command.add_argument("--accumulate", type=int, default=1, metavar="N", help="passes a step (default: 1)")
    command.add_argument("--seed", type=int, default=0, metavar="N", help="of everything random (default: 0)")
    command.add_argument("--workers", type=int, default=2, metavar="N", help="processes that read images (default: 2)")
    command.add_argument("--amp", choices=("bf16",), help="compute in this precision where that is safe")
    command.add_argument("--checkpoint-activations", action="store_true", help="less memory, more time, equal results")
    command.add_argument("--ema", action="store_true", help="also average the weights, and evaluate the average")
    command.add_argument("--sync-norms", action="store_true", help="BatchNorm over all processes (CUDA)")
    command.add_argument("--compile", action="store_true", help="compile backbone and neck")
    command.add_argument("--evaluate-every", type=int, default=1, metavar="N", help="epochs (default: 1)")
    command.add_argument("--save-every", type=int, default=500, metavar="N", help="steps (default: 500)")
    command.add_argument("--resume", action="store_true", help="go on from the newest state in RUN, if there is one")
    command.add_argument("--device", metavar="D", help="cpu, cuda, mps (default: cuda if there is one, else cpu)")
    command.set_defaults(run=_train)

    command = commands.add_parser("convert-data", help="a folder in Pascal VOC's format to COCO's")
    command.add_argument("source", type=Path, metavar="VOC_DIR", help="Annotations, JPEGImages, ImageSets/Main")
    command.add_argument("out", type=Path, metavar="OUT", help="a folder that `train --data` reads")
    command.set_defaults(run=_convert_data)


def _train(options: argparse.Namespace) -> int:
    for name in ("evaluate_every", "save_every"):
        if getattr(options, name) < 1:
            raise ConfigError(f"--{name.replace('_', '-')} {getattr(options, name)}: it takes at least 1")
    import torch

    from fpg_zoo.data.coco import CocoDataset
    from fpg_zoo.distributed import device_of_process, process_group
    from fpg_zoo.evaluation.coco_metrics import no_mask_note
    from fpg_zoo.models.factory import create_model, model_info
    from fpg_zoo.training.recipes import recipe_named
    from fpg_zoo.training.trainer import TrainSettings, train

    if options.model is None and options.config is None:
        raise ConfigError("no model: give --model NAME (`fpg-zoo list` has the names) or --config FILE")
    info = model_info(options.model, backbone=options.backbone, config=options.config)
    masks = info.config.has_masks
    recipe = recipe_named(options.recipe, epochs=options.epochs)
    start = _start_of(options, info.config)
    if recipe.frozen_stages and not any(start.values()):
        raise ConfigError(
            f"--recipe {options.recipe} does not train the stem, which would stay at its random beginning: give "
            "--pretrained, --checkpoint, --pretrained-backbone or --backbone-checkpoint, or --recipe scratch"
        )
    settings = TrainSettings(
        recipe=recipe,
        batch_size=options.batch_size,
        accumulate=options.accumulate,
        seed=options.seed,
        bf16=options.amp == "bf16",
        checkpoint_activations=options.checkpoint_activations,
        average=options.ema,
        sync_norms=options.sync_norms,
        compile=options.compile,
    )
    dataset, held_out, digest = _data(options, masks)
    device = device_of_process(options.device)
    with process_group(device) as processes:
        if processes.is_main:
            if isinstance(dataset, CocoDataset):
                print_lines(dataset.summary(), to_stderr=True)
            if held_out is not None:
                notes = held_out.summary, no_mask_note(("bbox", "segm") if masks else ("bbox",), held_out.annotations)
                for note in notes:
                    if note is not None:
                        print_lines(note, to_stderr=True)
        torch.manual_seed(options.seed)  # of layers that begin at random: the same in every process
        try:
            model = create_model(
                options.model,
                backbone=options.backbone,
                config=options.config,
                class_names=dataset.class_names,
                **start,
            ).to(device)
        except DownloadError as error:
            if start["pretrained_backbone"] and options.pretrained_backbone is None:  # nobody asked for it
                raise DownloadError(f"{error}. --no-pretrained-backbone --recipe scratch begins at random") from None
            raise
        if processes.is_main and start["pretrained_backbone"]:
            print_line(f"backbone: {info.config.backbone.label}, trained on ImageNet", to_stderr=True)
        metrics = train(
            model,
            dataset,
            options.output,
            settings,
            processes=processes,
            workers=options.workers,
            save_every=options.save_every,
            evaluate=_evaluation(held_out, options, processes) if held_out else None,
            evaluate_every=options.evaluate_every,
            resume=options.resume,
            data=digest,
        )
        if processes.is_main:
            known = [(name, metrics.get(name)) for name in ("box_AP", "mask_AP")]
            summary = "".join(f", {name} {value:.3f}" for name, value in known if value is not None)
            print_line(f"{options.output}: trained{summary}")
    return DONE


def _evaluation(held_out: HeldOut, options: argparse.Namespace, processes: Processes) -> Evaluate:
    """By all processes together; the main one has the metrics."""
    from fpg_zoo.evaluation.detect import detect_all, metrics_of

    def evaluated(model: Detector) -> dict[str, float | None]:
        rows = detect_all(
            model,
            held_out.dataset,
            held_out.category_ids,
            batch_size=options.batch_size,
            workers=options.workers,
            processes=processes,
        )
        return metrics_of(model, rows, held_out.annotations) if processes.is_main else {}

    return evaluated


def _data(options: argparse.Namespace, masks: bool) -> tuple[Dataset, HeldOut | None, str]:
    """What to train on, what to evaluate on if there is any, and a digest of the annotations trained on."""
    from fpg_zoo.data.coco import CocoDataset
    from fpg_zoo.data.open_split import held_out_of, held_out_scenes
    from fpg_zoo.data.shapes import ShapesDataset
    from fpg_zoo.files import sha256_of

    if options.data == Path("shapes") and not options.data.exists():
        scenes = held_out_scenes(limit=None, masks=masks)
        return ShapesDataset("train", masks=masks), scenes, scenes.digest
    dataset = CocoDataset.from_folder(options.data, options.train_split, masks=masks, allow_losses=options.allow_losses)
    digest = sha256_of(dataset.annotation_file)
    split = options.val_split or "val"
    if options.val_split is None and not (options.data / "annotations" / f"instances_{split}.json").is_file():
        return dataset, None, digest
    val = CocoDataset.from_folder(options.data, split, masks=masks, training=False, allow_losses=options.allow_losses)
    if val.class_names != dataset.class_names:
        raise ConfigError(
            f"{val.annotation_file}: its classes, in the order of their ids, are not those of "
            f"{dataset.annotation_file}; give both files the same categories"
        )
    return dataset, held_out_of(val, split), digest


def _start_of(options: argparse.Namespace, config: DetectorConfig) -> dict[str, Any]:
    """Where the weights come from, as `create_model` takes it: by default ImageNet's, where there is no detector's."""
    from fpg_zoo.models.backbones import has_weights
    from fpg_zoo.models.factory import is_source_of_weights

    detector = bool(options.pretrained or options.checkpoint or is_source_of_weights(options.model))
    given = options.pretrained_backbone
    backbone = given or (
        given is None and not detector and not options.backbone_checkpoint and has_weights(config.backbone)
    )
    return {
        "pretrained": options.pretrained,
        "checkpoint": options.checkpoint,
        "pretrained_backbone": backbone,
        "backbone_checkpoint": options.backbone_checkpoint,
    }


def _convert_data(options: argparse.Namespace) -> int:
    from fpg_zoo.data.convert_voc import convert_voc

    conversion = convert_voc(options.source, options.out)
    print_lines(conversion.summary())
    return INCOMPLETE if conversion.report else DONE
