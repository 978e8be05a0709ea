"""`fpg-zoo download`, `verify`, `cache`, `convert` and `push`: where weights come from and where they go."""

from __future__ import annotations

import argparse
import functools
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fpg_zoo.cli.exit_codes import DONE, INCOMPLETE
from fpg_zoo.cli.model_options import add_architecture
from fpg_zoo.cli.printing import print_line, print_notice
from fpg_zoo.errors import ConfigError, FPGZooError
from fpg_zoo.text import printable, quoted

if TYPE_CHECKING:
    from fpg_zoo.evaluation.agreement import Row
    from fpg_zoo.modeling.detectors import Detector
    from fpg_zoo.weights.manifest import PublishedBackbone

_PICKLED = (".pth", ".pt", ".ckpt", ".bin")


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Enter them into the parser."""
    command = commands.add_parser("download", help="fetch, verify and convert published checkpoints into the cache")
    command.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help="NAME, NAME.TAG, hf-hub:OWNER/REPO[@REVISION]; or a backbone, as resnet50",
    )
    command.add_argument("--all", action="store_true", help="every published checkpoint of a detector")
    command.set_defaults(run=_download)

    command = commands.add_parser("verify", help="hash a checkpoint file, or all of the cache, and compare")
    command.add_argument("file", nargs="?", type=_path, metavar="FILE", help="default: every file of the cache")
    command.set_defaults(run=_verify)

    command = commands.add_parser("cache", help="what the cache holds, where it is, and clearing it up")
    command.add_argument(
        "action",
        nargs="?",
        choices=("list", "prune", "path"),
        default="list",
        help="list its files; prune partial downloads, temporary files and superseded weights; or print its path "
        "(default: list)",
    )
    command.set_defaults(run=_cache)

    command = commands.add_parser("convert", help="a checkpoint file to safetensors that describe themselves, or back")
    command.add_argument("file", type=_path, metavar="FILE", help="of weights; to go back, also a folder of ours")
    command.add_argument("out", type=_path, metavar="OUT", help="a file ending in .safetensors, or a folder; FILE.pth")
    command.add_argument(
        "--to", choices=("zoo", "reference"), default="zoo", help="the format of OUT (default: zoo, safetensors)"
    )
    command.add_argument("--model", metavar="NAME", help="what FILE is of (default: recognized by its tensors)")
    command.add_argument(
        "--ignore-settings", action="store_true", help="go on without settings of mmdetection's that the zoo has not"
    )
    add_architecture(command)
    command.add_argument("--check", nargs="+", metavar="IMAGES", help="compare detections in these with --against")
    command.add_argument(
        "--against",
        type=_path,
        metavar="RESULTS",
        help="what mmdetection found in them: *.bbox.json, *.segm.json",
    )
    command.add_argument(
        "--annotations", type=_path, metavar="F", help="the ids of images and categories in RESULTS (default: COCO's)"
    )
    command.set_defaults(run=_convert)

    command = commands.add_parser("push", help="upload a model to the Hugging Face hub")
    command.add_argument("source", metavar="SOURCE", help="a checkpoint file or folder, or NAME, NAME.TAG")
    command.add_argument("repository", metavar="OWNER/REPO", help="made if it is not there")
    command.add_argument("--private", action="store_true", help="make the repository private, if it is made")
    command.add_argument("--revision", metavar="BRANCH", help="the branch to push to (default: main)")
    command.add_argument("--message", metavar="TEXT", help="of the commit")
    command.add_argument(
        "--metric",
        "--figure",
        dest="metrics",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="what you measured, for the model card, as in box_ap=41.2; may be repeated",
    )
    command.add_argument(
        "--license", "--licence", metavar="ID", help="of the weights, as the hub names it, as in apache-2.0"
    )
    command.set_defaults(run=_push)


def _path(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("an empty text is no path")
    return Path(os.path.expanduser(text))


def _download(options: argparse.Namespace) -> int:
    from fpg_zoo.models.factory import model_info, published
    from fpg_zoo.models.names import HUB
    from fpg_zoo.weights.manifest import Published, load_manifest

    if options.all == bool(options.names):
        raise ConfigError("download what? Give names (`fpg-zoo list --pretrained` has them), or --all alone")
    names = options.names
    if options.all:  # what comes with the zoo is there already
        names = [entry.name for entry in load_manifest().checkpoints if not entry.packaged]
    from fpg_zoo.weights.hub.fetch import check_spec
    from fpg_zoo.weights.hub.fetch import fetch as fetch_from_hub

    entries: dict[str, Published | PublishedBackbone] = {}
    for name in names:  # a misspelt one is told before anything is fetched
        if name.startswith(HUB):
            check_spec(name[len(HUB) :])
        else:
            entries[name] = load_manifest().backbone(name) or published(name)
    from fpg_zoo.models.backbones import fetch_backbone
    from fpg_zoo.models.loading import fetch

    failed = 0
    for name in names:
        try:
            entry = entries.get(name)
            if entry is None:
                print_line(f"{name}: {fetch_from_hub(name[len(HUB) :])}", flush=True)
            elif isinstance(entry, Published):
                print_line(f"{entry.name}: {fetch(entry, model_info(entry.architecture).config)}", flush=True)
            else:
                print_line(f"{entry.name}: {fetch_backbone(entry)}", flush=True)
        except FPGZooError as error:
            if len(names) == 1:
                raise
            message = str(error)
            print_notice(message if message.startswith(name) else f"{name}: {message}")
            failed += 1
    if failed:
        print_line(f"{len(names) - failed} of {len(names)} are in the cache")
    return INCOMPLETE if failed else DONE


def _verify(options: argparse.Namespace) -> int:
    from itertools import chain

    from fpg_zoo.weights.hub import fetch as hub
    from fpg_zoo.weights.store import Store, verify_file

    verdicts = [verify_file(options.file)] if options.file else chain(Store().verify(), hub.verify())
    checked, bad = 0, 0
    for verdict in verdicts:
        print_line(f"{verdict.state:<8} {verdict.path}  {verdict.detail}".rstrip(), flush=True)
        checked += 1
        bad += verdict.state != "good"
    if not checked:
        print_line(f"nothing in the cache {Store().folder}")
    return INCOMPLETE if bad else DONE


def _cache(options: argparse.Namespace) -> int:
    from fpg_zoo.weights.listing import contents, prune
    from fpg_zoo.weights.store import Store

    store = Store()
    if options.action == "path":
        print_line(store.folder)
        return DONE
    items = list(prune(store)) if options.action == "prune" else contents(store)
    for item in items:
        print_line(f"{item.kind:<10}  {item.size / 1e6:8.1f} MB  {item.path.name}")
    total = f"{len(items)} files, {sum(item.size for item in items) / 1e6:.1f} MB"
    print_line(f"{total} {'removed from' if options.action == 'prune' else 'in'} {store.folder}")
    return DONE


def _convert(options: argparse.Namespace) -> int:
    from fpg_zoo.checkpoints.mmdet_settings import differing_settings
    from fpg_zoo.checkpoints.safetensors_files import save
    from fpg_zoo.config.catalog import ARCHITECTURES
    from fpg_zoo.files import sha256_of
    from fpg_zoo.models.factory import create_model
    from fpg_zoo.models.loading import save_reference

    if (options.check is None) != (options.against is None):
        raise ConfigError("--check IMAGES and --against RESULTS go together: give both")
    if options.check and options.to == "reference":
        raise ConfigError("--check IMAGES: it compares what is converted to the zoo's format; leave --to reference out")
    pickled = options.out.suffix.lower() in _PICKLED
    if options.to == "reference" and not pickled:
        raise ConfigError(f"{options.out}: the reference's format is a file ending in .pth; name one")
    if options.to == "zoo" and pickled:
        raise ConfigError(
            f"{options.out}: convert writes safetensors; name a file ending so, or a folder, or give --to reference"
        )
    if options.file.is_dir() and options.to == "zoo":
        raise ConfigError(f"{options.file}: a folder; convert takes a checkpoint file")
    if options.out.exists() and options.file.exists() and options.out.samefile(options.file):
        raise ConfigError(f"{options.out}: OUT is FILE itself, whose other content would be lost; name another")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = create_model(
            options.model,
            backbone=options.backbone,
            config=options.config,
            checkpoint=options.file,
            ignore_settings=options.ignore_settings,
        )
    for warning in caught:
        print_notice(warning.message)
    message = f"{options.out}: {model.name}, {len(model.class_names)} classes"
    if options.to == "reference":
        print_line(f"{message}, {save_reference(model, options.out)} tensors under the reference's names")
        return DONE
    check = None if options.check is None else _open_check(model, options)
    if model.name in ARCHITECTURES:
        for setting in differing_settings(ARCHITECTURES[model.name].build_config(), model.config):
            print_line(f"setting of the file: {setting}")
    digest = sha256_of(options.file)
    # A file's name may be of any bytes, and metadata is Unicode.
    origin = {"source_file": printable(options.file.name, max_length=None), "source_sha256": digest}
    save(model.state_dict(), model.config, model.name, options.out, origin)
    print_line(f"{message}, {len(model.state_dict())} tensors (from SHA-256 {digest})")
    return check() if check else DONE


def _open_check(model: Detector, options: argparse.Namespace) -> Callable[[], int]:
    """What compares the model's detections with those in a results file; all files but the images have been read."""
    from fpg_zoo.data.annotation_problems import Report
    from fpg_zoo.data.coco import read_annotations
    from fpg_zoo.data.coco_images import name_of
    from fpg_zoo.evaluation.agreement import read_detections
    from fpg_zoo.inference.result_files import image_ids_of
    from fpg_zoo.structures.images import find_images

    expected = read_detections(options.against)
    files = image_ids_of(find_images(options.check))
    category_ids = None
    if options.annotations is not None:
        content, names, ids = read_annotations(options.annotations, Report())
        by_name = dict(zip(names, ids, strict=True))
        if set(by_name) != set(model.class_names):
            raise ConfigError(f"{options.annotations}: its classes are not the model's; name the model's own data")
        category_ids = [by_name[name] for name in model.class_names]
        image_ids = {
            os.path.basename(str(name_of(image))): image["id"]
            for image in content["images"]
            if isinstance(image, dict) and type(image.get("id")) in (int, str)
        }
        files = {file: image_ids[name] for file in files if (name := os.path.basename(file)) in image_ids}
    known = {file: image_id for file, image_id in files.items() if image_id in expected}
    if not known:
        raise ConfigError(
            f"{options.against}: no detections of these images; their ids are those in --annotations F, or their names "
            f"where those are numbers: {', '.join(map(str, list(files.values())[:3])) or 'none'}"
        )
    return functools.partial(_check, model, known, expected, category_ids)


def _check(
    model: Detector,
    files: Mapping[str, int | str],
    expected: Mapping[int | str, Sequence[Row]],
    category_ids: Sequence[int] | None,
) -> int:
    from fpg_zoo.evaluation.agreement import compare

    agreements = list(compare(model, files, expected, category_ids))
    for one in agreements:
        if not one.agrees:
            print_line(f"image {one.image_id}: {one.matched} of {one.expected} agree, {one.found} found")
    matched, total = sum(one.matched for one in agreements), sum(one.expected for one in agreements)
    agreeing = sum(one.agrees for one in agreements)
    print_line(f"{matched} of {total} detections agree, in {agreeing} of {len(agreements)} images")
    return DONE if agreeing == len(agreements) else INCOMPLETE


def _push(options: argparse.Namespace) -> int:
    from fpg_zoo.weights.hub.push import check_push, push_to_hub

    metrics = _metrics(options.metrics)
    settings = {"revision": options.revision, "metrics": metrics, "license": options.license}
    check_push(options.repository, **settings)  # before a model is loaded, or fetched
    with warnings.catch_warnings(record=True) as message:
        warnings.simplefilter("always")
        commit = push_to_hub(
            _model_of(options.source),
            options.repository,
            private=options.private or None,
            message=options.message,
            **settings,
        )
    for warning in message:
        print_notice(warning.message)
    print_line(f"hf-hub:{options.repository}@{commit}")
    return DONE


def _metrics(texts: Sequence[str]) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for text in texts:
        name, _, value = text.rpartition("=")
        name = name.strip()
        try:
            if not name:
                raise ValueError
            number = float(value)
        except ValueError:
            raise ConfigError(f"--metric {quoted(text)}: give NAME=VALUE with a number, as in box_ap=41.2") from None
        if name in metrics:
            raise ConfigError(f"--metric {quoted(text)}: {printable(name)} is there twice; give each metric once")
        metrics[name] = number
    return metrics


def _model_of(source: str) -> Detector:
    """What a command's SOURCE stands for: a path that exists, or else a name with its published weights."""
    from fpg_zoo.models.factory import check_source, create_model

    path = _path(source)
    if path.exists() or path.suffix.lower() in (".safetensors", *_PICKLED):
        return create_model(checkpoint=path)
    check_source(source)
    return create_model(source, pretrained=not source.startswith(("local-dir:", "hf-hub:")))
