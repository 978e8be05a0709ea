"""A model evaluated on a data set by one or several processes, each image once, whatever was killed on the way."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from fpg_zoo.config.serialization import to_dict
from fpg_zoo.data.dataset import Dataset
from fpg_zoo.data.ground_truth import ground_truth
from fpg_zoo.data.loader import evaluation_batches, evaluation_loader
from fpg_zoo.data.open_split import HeldOut
from fpg_zoo.distributed import Processes
from fpg_zoo.errors import ConfigError, FPGZooError
from fpg_zoo.evaluation.coco_metrics import (
    IouType,
    Row,
    metrics_by_name,
    scores_by_type,
)
from fpg_zoo.evaluation.partial_results import ImageRows, Parts
from fpg_zoo.files import on_terminal
from fpg_zoo.inference.exported.detector import ExportedDetector
from fpg_zoo.inference.open_model import AnyDetector
from fpg_zoo.inference.prefetch import prefetch
from fpg_zoo.progress import tqdm
from fpg_zoo.structures import Detections
from fpg_zoo.text import quoted
from fpg_zoo.uploads import prefetch_to_device
from fpg_zoo.version import __version__

_MOST_SHOWN = 5  # class names on either side


def categories_of(model: AnyDetector, data: HeldOut) -> tuple[int, ...]:
    """The data's category id of each class of the model, found by name.

    Raises:
        ConfigError: the classes of either are not those of the other; the message has the difference.
    """
    ids = dict(zip(data.dataset.class_names, data.category_ids, strict=True))
    differences = {
        "the model": [name for name in model.class_names if name not in ids],
        "the data": [name for name in ids if name not in set(model.class_names)],
    }
    differences_text = [f"only {side} has {_first_names(names)}" for side, names in differences.items() if names]
    if differences_text:
        raise ConfigError(
            f"the {len(model.class_names)} classes of {model.name} are not the {len(ids)} of the data: "
            f"{'; '.join(differences_text)}; evaluate on data of the model's classes, under the same names"
        )
    return tuple(ids[name] for name in model.class_names)


def _first_names(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_SHOWN} more" if len(names) > _MOST_SHOWN else ""
    return ", ".join(map(quoted, names[:_MOST_SHOWN])) + more


def parts_of(results: Path, model: AnyDetector, data: HeldOut) -> Parts:
    """Where the detections of this model in these images are kept as they come.

    Raises:
        ConfigError: `results` is a folder.
    """
    settings: dict[str, str | int | None] = {
        "model": model.name,
        "weights": _weights_digest(model),
        "precision": str(model.dtype).removeprefix("torch."),
        "device": model.device.type,
        "data": data.digest,
        "number of images": len(data.dataset),
        "version of fpg_zoo": __version__,
    }
    return Parts(results, settings)


def _weights_digest(model: AnyDetector) -> str:
    """SHA-256 of everything that decides what a model computes: its config and every tensor, or its file."""
    if isinstance(model, ExportedDetector):
        return model.digest()
    digest = hashlib.sha256(json.dumps(to_dict(model.config)).encode())
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def detect_all(
    model: AnyDetector,
    dataset: Dataset,
    category_ids: Sequence[int],
    *,
    batch_size: int = 1,
    workers: int = 0,
    processes: Processes | None = None,
    parts: Parts | None = None,
) -> list[dict[str, Any]]:
    """Detections in every image, by all processes together.

    Args:
        model: in eval mode, the same in every process.
        dataset: the same in every process.
        category_ids: the data's id of each class of the model.
        batch_size, workers: as of `detect_batches`, for each process.
        processes: this one among those that share the images; None for one alone.
        parts: where detections are kept as they come, and what is there already is taken from. None: nowhere.

    Returns:
        In the main process the rows of a COCO results file, in the order of the data set; in the others nothing.

    Raises:
        ConfigError: `parts` hold what was detected with other settings.
        ImageError: an image cannot be read.
        StorageError: `parts` cannot be written.
    """
    processes = processes or Processes()
    by_image = _resumed(parts, processes)
    done = frozenset(processes.broadcast(list(by_image)))
    rows: list[ImageRows] = []
    with contextlib.ExitStack() as stack:
        keep: Callable[[Sequence[ImageRows]], None] | None = None
        if parts is not None:
            keep = stack.enter_context(parts.writing(processes.rank))
        for batch in detect_batches(
            model,
            dataset,
            category_ids,
            batch_size=batch_size,
            workers=workers,
            rank=processes.rank,
            world_size=processes.world_size,
            done=done,
        ):
            if keep is not None:
                keep(batch)
            rows += batch
    for share in processes.gather(rows):
        by_image.update(share)
    return [row for image_id in image_ids_of(dataset) for row in by_image[image_id]] if processes.is_main else []


def _resumed(parts: Parts | None, processes: Processes) -> dict[int | str, list[dict[str, Any]]]:
    """What the main process finds done; in the others nothing. All of them refuse, or none."""
    done: dict[int | str, list[dict[str, Any]]] = {}
    refusal: FPGZooError | None = None
    if parts is not None and processes.is_main:
        try:
            done = parts.done()
        except FPGZooError as error:
            refusal = error
    refusal = processes.broadcast(refusal)
    if refusal is not None:
        raise refusal
    return done


def detect_batches(
    model: AnyDetector,
    dataset: Dataset,
    category_ids: Sequence[int],
    *,
    batch_size: int = 1,
    workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
    done: Collection[int | str] = (),
) -> Iterator[list[tuple[int | str, list[dict[str, Any]]]]]:
    """What a model detects in the images of a data set, batch by batch.

    Args:
        model: in eval mode.
        dataset: its images; its annotations are not looked at.
        category_ids: the data's id of each class of the model.
        batch_size: images in a pass, at most; those of a pass are of equal padded size.
        workers: processes that read images ahead; of an exported file that takes them as they are, a thread does.
        rank, world_size: this process among those that share the images.
        done: ids of images to leave out.

    Yields:
        For each image of a batch its id and the rows of a COCO results file.

    Raises:
        ConfigError: a number out of range.
        ImageError: an image cannot be read.
    """
    shares: dict[str, Any] = {"batch_size": batch_size, "rank": rank, "world_size": world_size, "done": done}
    total = sum(map(len, evaluation_batches(dataset, model.config.preprocess, **shares)))
    with tqdm(total=total, unit="image", disable=rank > 0 or not on_terminal(), leave=False) as bar:
        for image_ids, results in _detected(model, dataset, workers, shares):
            yield [
                (image_id, detections.to_coco(image_id, category_ids))
                for image_id, detections in zip(image_ids, results, strict=True)
            ]
            bar.update(len(results))


def _detected(
    model: AnyDetector, dataset: Dataset, workers: int, shares: Mapping[str, Any]
) -> Iterator[tuple[Sequence[int | str], list[Detections]]]:
    """The ids of each batch's images and what is detected in them."""
    if isinstance(model, ExportedDetector) and model.description.takes_pixels:
        batches = evaluation_batches(dataset, model.config.preprocess, **shares)
        # There is nothing to do for workers but to decode: a thread is enough.
        read = prefetch(lambda batch: [dataset[index].image for index in batch], batches)
        for batch, images in zip(batches, read, strict=True):
            yield [dataset.image_info(index).image_id for index in batch], model.detect_pixels(images.result())
        return
    loader = evaluation_loader(dataset, model.config.preprocess, workers=workers, **shares)
    for loaded, (pixels,) in prefetch_to_device(loader, lambda batch: [batch.images], model.device):
        yield loaded.image_ids, model.detect(pixels, loaded.sizes, loaded.original_sizes)


def iou_types_of(model: AnyDetector) -> tuple[IouType, ...]:
    """What a model's detections are judged by: boxes, and masks if it has them."""
    return ("bbox", "segm") if model.config.has_masks else ("bbox",)


def image_ids_of(dataset: Dataset) -> list[int | str]:
    """In the order of the data set."""
    return [dataset.image_info(index).image_id for index in range(len(dataset))]


def evaluate(
    model: AnyDetector, dataset: Dataset, category_ids: Sequence[int], *, batch_size: int = 1, workers: int = 0
) -> dict[str, float | None]:
    """COCO's metrics of a model on a data set.

    Args:
        model: in eval mode, for the data's classes.
        dataset: its images, those without objects included.
        category_ids: the data's id of each class of the model.
        batch_size, workers: as of `detect_all`.

    Returns:
        `METRICS` by name, with `box_` before it, and for a model with masks again with `mask_` where an object has one;
        each 0..1, or None where there is no ground truth of that size.

    Raises:
        ConfigError: there is nothing to evaluate.
        ImageError: an image cannot be read.
    """
    annotations = ground_truth(dataset, category_ids)
    rows = detect_all(model, dataset, category_ids, batch_size=batch_size, workers=workers)
    return metrics_of(model, rows, annotations)


def metrics_of(model: AnyDetector, rows: Sequence[Row], annotations: Mapping[str, Any]) -> dict[str, float | None]:
    """COCO's metrics of what a model detected.

    Args:
        model: that detected.
        rows: of a COCO results file.
        annotations: as of `coco_scores`; all of their images count.

    Returns:
        As `evaluate`.
    """
    return metrics_by_name(scores_by_type(iou_types_of(model), annotations, rows))
