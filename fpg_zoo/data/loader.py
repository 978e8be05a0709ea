"""Batches for training and for evaluation, the same whatever the number of workers, from any batch on.

The order of an epoch depends on (seed, epoch), how a picture is varied in it on (seed, epoch, picture), nothing on any
other random number. Epochs follow on each other without a gap: a batch may hold the end of one and the beginning of
the next, so that every picture comes once in each and batches are always full.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils import data

from fpg_zoo.config import PreprocessConfig
from fpg_zoo.config_checks import check_positive
from fpg_zoo.data.augment import AugmentConfig, Augmented, augmented
from fpg_zoo.data.samples import Dataset, Sample
from fpg_zoo.errors import ConfigError, FPGZooError
from fpg_zoo.preprocess import normalise, padded_size, preprocess, resized_size

Key = tuple[int, int]  # epoch, picture


class TrainBatch(NamedTuple):
    """What a `Criterion` takes, and where it is from. H = W is `crop`, padded to the model's divisor.

    Attributes:
        images: (N, 3, H, W) float32, normalised, zero beyond each picture.
        sizes: N (height, width) in pixels before padding.
        targets: per picture `boxes` (G, 4) float32 xyxy in pixels of `images`, `labels` (G,) int64, and with a dataset
            that has masks `masks` (G, H, W) bool, and `has_mask` (G,) bool where an object has none.
        image_ids: N of them.
    """

    images: Tensor
    sizes: list[tuple[int, int]]
    targets: list[dict[str, Tensor]]
    image_ids: list[int | str]


class EvaluationBatch(NamedTuple):
    """What `Detector.detect` takes, and where it is from.

    Attributes:
        images: (N, 3, H, W) float32, as `fpg_zoo.preprocess.preprocess` makes them.
        sizes: N (height, width) in pixels before padding.
        original_sizes: N (height, width) of the pictures, the frame of their annotations.
        image_ids: N of them.
    """

    images: Tensor
    sizes: list[tuple[int, int]]
    original_sizes: list[tuple[int, int]]
    image_ids: list[int | str]


_Item = TypeVar("_Item")
_Batch = TypeVar("_Batch", TrainBatch, EvaluationBatch)


def train_loader(
    dataset: Dataset,
    augment: AugmentConfig,
    preprocessing: PreprocessConfig,
    *,
    batch_size: int,
    seed: int,
    workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
    start_batch: int = 0,
) -> Iterator[TrainBatch]:
    """Batches without end; E epochs are E * len(dataset) / (batch_size * world_size) of them.

    Args:
        dataset: what to train on.
        augment: how it is varied.
        preprocessing: the model's (`model.config.preprocess`), for normalising and padding.
        batch_size: pictures in a batch of this process.
        seed: at least 0.
        workers: processes that make batches ahead; 0 makes them in this one.
        rank, world_size: this process among those that train together. A batch of all of them is a run of
            `batch_size * world_size` pictures, of which each takes its own `batch_size`.
        start_batch: the number of batches that were taken before; they are not loaded.

    Returns:
        An iterator. What cannot be read is raised when its batch comes:

    Raises:
        ConfigError: a number out of range; or no object in any crop, where each must hold one.
        ImageError: a picture cannot be read.
    """
    _check_processes(workers, rank, world_size)
    check_positive(batch_size=batch_size)
    for name, value in (("seed", seed), ("start_batch", start_batch)):
        if not isinstance(value, int) or value < 0:
            raise ConfigError(f"{name}={value}: it takes a whole number of at least 0")
    if not len(dataset):
        raise ConfigError("the dataset has no pictures; there is nothing to train on")
    keys = _TrainKeys(len(dataset), batch_size, seed, rank, world_size, start_batch)
    return _batches(_TrainItems(dataset, augment, seed), keys, _TrainCollate(augment.crop, preprocessing), workers)


def evaluation_loader(
    dataset: Dataset,
    preprocessing: PreprocessConfig,
    *,
    batch_size: int,
    workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
    done: Collection[int | str] = (),
) -> Iterator[EvaluationBatch]:
    """Every picture once, as `fpg_zoo.preprocess.preprocess` makes it; batches hold pictures of equal padded size.

    Padding beyond a picture's own would change what is detected in it. So batches are not all full, and their pictures
    not in the order of the dataset.

    Args:
        dataset: what to evaluate on.
        preprocessing: the model's (`model.config.preprocess`).
        batch_size: at most so many pictures in a batch.
        workers: processes that make batches ahead; 0 makes them in this one.
        rank, world_size: this process among those that evaluate together; each takes batches of its own.
        done: ids of pictures to leave out. The others are put together as they would be with them, so that what is
            computed of them has the same bits.

    Returns:
        An iterator. What cannot be read is raised when its batch comes:

    Raises:
        ConfigError: a number out of range.
        ImageError: a picture cannot be read.
    """
    _check_processes(workers, rank, world_size)
    batches = evaluation_batches(
        dataset, preprocessing, batch_size=batch_size, rank=rank, world_size=world_size, done=done
    )
    return _batches(_Items(dataset), batches, _EvaluationCollate(preprocessing), workers)


def evaluation_batches(
    dataset: Dataset,
    preprocessing: PreprocessConfig,
    *,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    done: Collection[int | str] = (),
) -> list[list[int]]:
    """The pictures of each batch that `evaluation_loader` gives for these arguments, as indices into the dataset.

    Raises:
        ConfigError: a number out of range.
    """
    check_positive(batch_size=batch_size)
    groups: dict[tuple[int, int], list[int]] = {}
    left_out: set[int] = set()
    for index in range(len(dataset)):
        picture = dataset.picture(index)
        size = resized_size(*picture.size, preprocessing.longest_side)
        groups.setdefault(padded_size(*size, preprocessing.pad_divisor), []).append(index)
        if picture.image_id in done:
            left_out.add(index)
    whole = [
        [index for index in members[first : first + batch_size] if index not in left_out]
        for members in groups.values()
        for first in range(0, len(members), batch_size)
    ]
    return [batch for batch in whole if batch][rank::world_size]


def _check_processes(workers: int, rank: int, world_size: int) -> None:
    if not isinstance(workers, int) or workers < 0:
        raise ConfigError(f"workers={workers}: it takes a whole number of at least 0")
    check_positive(world_size=world_size)
    if not isinstance(rank, int) or not 0 <= rank < world_size:
        raise ConfigError(f"rank={rank}: of {world_size} processes it is a number from 0 to {world_size - 1}")


class _TrainKeys:
    """The (epoch, picture) of each batch of one process, without end, beginning at `start_batch`."""

    def __init__(self, pictures: int, batch_size: int, seed: int, rank: int, world_size: int, start_batch: int) -> None:
        self._pictures = pictures
        self._batch_size = batch_size
        self._seed = seed
        self._step = batch_size * world_size
        self._first = start_batch * self._step + rank * batch_size

    def __iter__(self) -> Iterator[list[Key]]:
        epoch, order = -1, np.zeros(0, dtype=np.int64)
        for first in itertools.count(self._first, self._step):
            batch = []
            for place in range(first, first + self._batch_size):
                if place // self._pictures != epoch:
                    epoch = place // self._pictures
                    order = _generator(self._seed, epoch, 0).permutation(self._pictures)
                batch.append((epoch, int(order[place % self._pictures])))
            yield batch


def _generator(seed: int, epoch: int, stream: int) -> np.random.Generator:
    """Stream 0 is of the order of an epoch, 1 + i of picture i in it."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(epoch, stream)))


# Workers hand an error over as a value: raised there, torch would wrap it in a report of many lines.


class _TrainItems(data.Dataset[Augmented | FPGZooError]):
    def __init__(self, dataset: Dataset, config: AugmentConfig, seed: int) -> None:
        self._dataset = dataset
        self._config = config
        self._seed = seed

    def __getitem__(self, key: Key) -> Augmented | FPGZooError:
        epoch, index = key
        try:
            return augmented(self._dataset, index, self._config, _generator(self._seed, epoch, 1 + index))
        except FPGZooError as error:
            return error


class _Items(data.Dataset[Sample | FPGZooError]):
    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset

    def __getitem__(self, index: int) -> Sample | FPGZooError:
        try:
            return self._dataset[index]
        except FPGZooError as error:
            return error


class _TrainCollate:
    def __init__(self, crop: int, config: PreprocessConfig) -> None:
        self._size = padded_size(crop, crop, config.pad_divisor)
        self._config = config

    def __call__(self, items: Sequence[Augmented | FPGZooError]) -> TrainBatch | FPGZooError:
        images = torch.zeros(len(items), 3, *self._size)
        sizes, targets, image_ids = [], [], []
        for image, item in zip(images, items, strict=True):
            if isinstance(item, FPGZooError):
                return item
            height, width = item.image.shape[-2:]
            image[:, :height, :width] = normalise(item.image, self._config)
            target = dict(item.target)
            if "masks" in target:
                beyond = (0, self._size[1] - width, 0, self._size[0] - height)
                target["masks"] = functional.pad(target["masks"], beyond)
            sizes.append((height, width))
            targets.append(target)
            image_ids.append(item.picture.image_id)
        return TrainBatch(images, sizes, targets, image_ids)


class _EvaluationCollate:
    def __init__(self, config: PreprocessConfig) -> None:
        self._config = config

    def __call__(self, items: Sequence[Sample | FPGZooError]) -> EvaluationBatch | FPGZooError:
        samples = []
        for item in items:
            if isinstance(item, FPGZooError):
                return item
            samples.append(item)
        images, sizes = preprocess([sample.image for sample in samples], self._config)
        pictures = [sample.picture for sample in samples]
        return EvaluationBatch(
            images, sizes, [picture.size for picture in pictures], [picture.image_id for picture in pictures]
        )


def _batches(
    items: data.Dataset[_Item],
    keys: Iterable[list[Any]],
    collate: Callable[[Sequence[_Item]], _Batch | FPGZooError],
    workers: int,
) -> Iterator[_Batch]:
    loader: data.DataLoader[_Item] = data.DataLoader(
        items,
        batch_sampler=keys,
        collate_fn=collate,
        num_workers=workers,
        generator=torch.Generator(),  # else it takes a number from the program's own generator
    )
    batch: _Batch | FPGZooError
    for batch in loader:
        if isinstance(batch, FPGZooError):
            raise batch
        yield batch
