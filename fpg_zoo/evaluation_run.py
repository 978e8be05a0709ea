"""A model evaluated on a data set by one or several processes, each picture once, whatever was killed on the way."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fpg_zoo.config.serialization import to_dict
from fpg_zoo.data.coco import CocoDataset
from fpg_zoo.data.dataset import Dataset, Picture, Sample
from fpg_zoo.data.ground_truth import ground_truth
from fpg_zoo.data.shapes import PICTURES, ShapesDataset
from fpg_zoo.distributed import Processes
from fpg_zoo.errors import ConfigError, FPGZooError
from fpg_zoo.evaluation import detected, image_ids_of
from fpg_zoo.evaluation_parts import Found, Parts
from fpg_zoo.files import sha256_of
from fpg_zoo.modeling.detectors import Detector
from fpg_zoo.text import quoted
from fpg_zoo.version import __version__

SHAPES = Path("shapes")  # stands for the procedural data set
_SPLITS = ("val2017", "val")  # looked for in this order if none is named
_MOST_SHOWN = 5  # class names on either side


class HeldOut(NamedTuple):
    """Pictures to evaluate on.

    Attributes:
        dataset: the pictures.
        annotations: what detections are compared with, as of `fpg_zoo.data.ground_truth.ground_truth`.
        category_ids: the file's id of each of the data set's classes.
        digest: the file's SHA-256, or what else tells the data from any other.
        summary: what there is and what was left out, for people; None where there is nothing to say.
        split: of the data.
    """

    dataset: Dataset
    annotations: dict[str, Any]
    category_ids: tuple[int, ...]
    digest: str
    summary: str | None
    split: str


def open_held_out(
    data: Path, split: str | None, *, limit: int | None, masks: bool, allow_losses: bool = False
) -> HeldOut:
    """The pictures to evaluate on.

    Args:
        data: a folder laid out as COCO is, or `SHAPES` for the procedural scenes unless there is a folder of this name.
        split: of the folder; None for `val2017` or else `val`.
        limit: the first so many pictures, at least 1; None for all.
        masks: read masks, too.
        allow_losses: as of `CocoDataset`.

    Raises:
        ConfigError: no such data, too much of it cannot be used, or there is nothing in it to evaluate.
    """
    if data == SHAPES and not data.exists():
        if split is not None:
            raise ConfigError(f"split {split!r}: the procedural scenes have none to choose from; leave it out")
        return held_out_scenes(limit=limit, masks=masks)
    files = {name: data / "annotations" / f"instances_{name}.json" for name in _SPLITS}
    split = split or next((name for name, file in files.items() if file.is_file()), _SPLITS[0])
    whole = CocoDataset.from_folder(data, split, masks=masks, training=False, allow_losses=allow_losses)
    return held_out_of(whole, split, limit=limit)


def held_out_of(whole: CocoDataset, split: str, *, limit: int | None = None) -> HeldOut:
    """A data set to evaluate on.

    Args:
        whole: read with `training=False`.
        split: its name.
        limit: the first so many pictures; None for all.

    Raises:
        ConfigError: there is nothing in it to evaluate.
    """
    dataset, source = (whole, "") if limit is None else (_First(whole, limit), f", its first {limit} pictures")
    truth = ground_truth(dataset, whole.category_ids, source=f"{whole.annotation_file}{source}", report=whole.report)
    digest = sha256_of(whole.annotation_file)
    return HeldOut(dataset, truth, whole.category_ids, digest, whole.summary(), split)


def held_out_scenes(*, limit: int | None, masks: bool) -> HeldOut:
    """The procedural scenes to evaluate on.

    Args:
        limit: the first so many; None for all.
        masks: with masks.
    """
    most = PICTURES["val"]
    shapes = ShapesDataset("val", most if limit is None else min(limit, most), masks=masks)
    truth = ground_truth(shapes, shapes.category_ids)
    return HeldOut(shapes, truth, shapes.category_ids, str(SHAPES), None, shapes.split)


class _First:
    """The first pictures of a data set."""

    def __init__(self, dataset: Dataset, count: int) -> None:
        self.class_names = dataset.class_names
        self._dataset = dataset
        self._count = min(count, len(dataset))

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Sample:
        return self._dataset[index]

    def picture(self, index: int) -> Picture:
        return self._dataset.picture(index)


def categories_of(model: Detector, data: HeldOut) -> tuple[int, ...]:
    """The data's category id of each class of the model, found by name.

    Raises:
        ConfigError: the classes of either are not those of the other; the message has the difference.
    """
    ids = dict(zip(data.dataset.class_names, data.category_ids, strict=True))
    differences = {
        "the model": [name for name in model.class_names if name not in ids],
        "the data": [name for name in ids if name not in set(model.class_names)],
    }
    told = [f"only {side} has {_shown(names)}" for side, names in differences.items() if names]
    if told:
        raise ConfigError(
            f"the {len(model.class_names)} classes of {model.name} are not the {len(ids)} of the data: "
            f"{'; '.join(told)}; evaluate on data of the model's classes, under the same names"
        )
    return tuple(ids[name] for name in model.class_names)


def _shown(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_SHOWN} more" if len(names) > _MOST_SHOWN else ""
    return ", ".join(map(quoted, names[:_MOST_SHOWN])) + more


def parts_of(results: Path, model: Detector, data: HeldOut) -> Parts:
    """Where the detections of this model in these pictures are kept as they come.

    Raises:
        ConfigError: `results` is a folder.
    """
    settings: dict[str, str | int | None] = {
        "model": model.name,
        "weights": _weights_digest(model),
        "precision": str(model.dtype).removeprefix("torch."),
        "device": model.device.type,
        "data": data.digest,
        "number of pictures": len(data.dataset),
        "version of fpg_zoo": __version__,
    }
    return Parts(results, settings)


def _weights_digest(model: Detector) -> str:
    """SHA-256 of everything that decides what a model computes: its config and every tensor."""
    digest = hashlib.sha256(json.dumps(to_dict(model.config)).encode())
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def detect_all(
    model: Detector,
    dataset: Dataset,
    category_ids: Sequence[int],
    processes: Processes,
    *,
    batch_size: int,
    workers: int,
    parts: Parts | None = None,
) -> list[dict[str, Any]]:
    """Detections in every picture, by all processes together.

    Args:
        model: in eval mode, the same in every process.
        dataset: the same in every process.
        category_ids: the data's id of each class of the model.
        processes: this one among those that share the pictures.
        batch_size, workers: as of `fpg_zoo.evaluation.detected`, for each process.
        parts: where detections are kept as they come, and what is there already is taken from. None: nowhere.

    Returns:
        For the leader the rows of a COCO results file, in the order of the data set; for the others nothing.

    Raises:
        ConfigError: `parts` hold what was detected with other settings.
        ImageError: a picture cannot be read.
        StorageError: `parts` cannot be written.
    """
    by_picture = _begun(parts, processes)
    done = frozenset(processes.shared(list(by_picture)))
    found: list[Found] = []
    with contextlib.ExitStack() as stack:
        keep: Callable[[Sequence[Found]], None] | None = None
        if parts is not None:
            keep = stack.enter_context(parts.writing(processes.rank))
        for batch in detected(
            model,
            dataset,
            category_ids,
            batch_size=batch_size,
            workers=workers,
            rank=processes.rank,
            world_size=processes.count,
            done=done,
        ):
            if keep is not None:
                keep(batch)
            found += batch
    for share in processes.gathered(found):
        by_picture.update(share)
    return [row for image_id in image_ids_of(dataset) for row in by_picture[image_id]] if processes.leads else []


def _begun(parts: Parts | None, processes: Processes) -> dict[int | str, list[dict[str, Any]]]:
    """What the leader finds done; for the others nothing. All of them refuse, or none."""
    done: dict[int | str, list[dict[str, Any]]] = {}
    refusal: FPGZooError | None = None
    if parts is not None and processes.leads:
        try:
            done = parts.done()
        except FPGZooError as error:
            refusal = error
    refusal = processes.shared(refusal)
    if refusal is not None:
        raise refusal
    return done
