"""Batches for training and for evaluation, the same whatever the number of workers, from any batch on.

The order of an epoch depends on (seed, epoch), how an image is varied in it on (seed, epoch, image), nothing on any
other random number, and none is taken from anybody. Epochs follow each other without a gap: a batch may hold the end of
one and the beginning of the next. So every image comes once in each epoch, and batches are always full.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from fpg_zoo.config import PreprocessConfig
from fpg_zoo.config.training import AugmentConfig
from fpg_zoo.config.validation import check_positive
from fpg_zoo.data.augment import Augmented, augmented
from fpg_zoo.data.dataset import Dataset
from fpg_zoo.data.user_transform import AugmentCallable, check_transform
from fpg_zoo.data.workers import parallel_map
from fpg_zoo.errors import ConfigError
from fpg_zoo.modeling.preprocess import normalize, padded_size, resize, resized_size

Key = tuple[int, int]  # epoch, image


class TrainBatch(NamedTuple):
    """What a `Criterion` takes, and where it is from. H = W is `crop`, padded to the model's divisor.

    Attributes:
        images: (N, 3, H, W) float32, normalized, zero beyond each image.
        sizes: N (height, width) in pixels before padding.
        targets: for each image `boxes` (G, 4) float32 xyxy in pixels of `images` and `labels` (G,) int64. With a
            dataset that has masks, also `masks` (G, H, W) bool, and `has_mask` (G,) bool where an object has none.
        image_ids: N of them.
    """

    images: Tensor
    sizes: list[tuple[int, int]]
    targets: list[dict[str, Tensor]]
    image_ids: list[int | str]


class EvaluationBatch(NamedTuple):
    """What `Detector.detect` takes, and where it is from.

    Attributes:
        images: (N, 3, H, W) float32, as `fpg_zoo.modeling.preprocess.preprocess` makes them.
        sizes: N (height, width) in pixels before padding.
        original_sizes: N (height, width) of the images, the frame of their annotations.
        image_ids: N of them.
    """

    images: Tensor
    sizes: list[tuple[int, int]]
    original_sizes: list[tuple[int, int]]
    image_ids: list[int | str]


_Keys = TypeVar("_Keys", list[Key], list[int])
_Batch = TypeVar("_Batch", TrainBatch, EvaluationBatch)


def train_loader(
    dataset: Dataset,
    augment: AugmentConfig,
    preprocessing: PreprocessConfig,
    *,
    transform: AugmentCallable | None = None,
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
        transform: an augmentation of one's own, after that. Where worker processes are spawned and not forked, it must
            be picklable.
        batch_size: images in a batch of this process.
        seed: at least 0.
        workers: processes that make batches ahead; 0 makes them in this one.
        rank, world_size: this process among those that train together. A batch of all of them is a run of
            `batch_size * world_size` images, of which each takes its own `batch_size`.
        start_batch: the number of batches that were taken before; they are not loaded.

    Returns:
        An iterator. What cannot be read is raised when its batch comes:

    Raises:
        ConfigError: a number out of range; copy-paste without masks; a transform that workers cannot be given, or that
            returns something else than it is to; or no object in any crop, where each must hold one.
        ImageError: an image cannot be read.
        WorkerError: a worker cannot be started, has died, or does not answer.
    """
    _check_processes(workers, rank, world_size)
    check_positive(batch_size=batch_size)
    _check_training(dataset, augment, seed=seed, start_batch=start_batch)
    if transform is not None:
        check_transform(transform, workers)
    keys = _TrainKeys(len(dataset), batch_size, seed, rank, world_size, start_batch)
    read = _ReadTrainBatch(dataset, augment, transform, seed, preprocessing.pad_divisor)
    return _batches(read, keys, preprocessing, workers)


def train_samples(dataset: Dataset, augment: AugmentConfig, *, seed: int) -> Iterator[Augmented]:
    """What the batches of `train_loader` are made of, image by image in their order, without end.

    Args:
        dataset, augment, seed: as of `train_loader`.

    Returns:
        An iterator. What cannot be read is raised when its turn comes:

    Raises:
        ConfigError: as of `train_loader`.
        ImageError: an image cannot be read.
    """
    _check_training(dataset, augment, seed=seed)
    return (
        augmented(dataset, index, augment, _generator(seed, epoch, 1 + index))
        for keys in _TrainKeys(len(dataset), 1, seed, 0, 1, 0)
        for epoch, index in keys
    )


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
    """Every image once, as `modeling.preprocess.preprocess` makes it; batches hold images of equal padded size.

    Padding beyond an image's own would change what is detected in it. So batches are not all full, and their images
    not in the order of the dataset.

    Args:
        dataset: what to evaluate on.
        preprocessing: the model's (`model.config.preprocess`).
        batch_size: at most so many images in a batch.
        workers: processes that make batches ahead; 0 makes them in this one.
        rank, world_size: this process among those that evaluate together; each takes batches of its own.
        done: ids of images to leave out. The others are put together as they would be with them, so that what is
            computed of them has the same bits.

    Returns:
        An iterator. What cannot be read is raised when its batch comes:

    Raises:
        ConfigError: a number out of range.
        ImageError: an image cannot be read.
        WorkerError: a worker cannot be started, has died, or does not answer.
    """
    _check_processes(workers, rank, world_size)
    batches = evaluation_batches(
        dataset, preprocessing, batch_size=batch_size, rank=rank, world_size=world_size, done=done
    )
    return _batches(_ReadEvaluationBatch(dataset, preprocessing), batches, preprocessing, workers)


def evaluation_batches(
    dataset: Dataset,
    preprocessing: PreprocessConfig,
    *,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    done: Collection[int | str] = (),
) -> list[list[int]]:
    """The images of each batch that `evaluation_loader` gives for these arguments, as indices into the dataset.

    Raises:
        ConfigError: a number out of range.
    """
    check_positive(batch_size=batch_size)
    groups: dict[tuple[int, int], list[int]] = {}
    left_out: set[int] = set()
    for index in range(len(dataset)):
        info = dataset.image_info(index)
        size = resized_size(*info.size, preprocessing)
        groups.setdefault(padded_size(*size, preprocessing.pad_divisor), []).append(index)
        if info.image_id in done:
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


def _check_training(dataset: Dataset, augment: AugmentConfig, **numbers: int) -> None:
    for name, value in numbers.items():
        if not isinstance(value, int) or value < 0:
            raise ConfigError(f"{name}={value}: it takes a whole number of at least 0")
    if not len(dataset):
        raise ConfigError("the dataset has no images; there is nothing to train on")
    if augment.copy_paste and dataset.image_info(0).objects.masks is None:
        raise ConfigError(
            f"copy_paste={augment.copy_paste}: objects are cut out by their masks, and these images are without; use "
            "data with masks, or leave it out"
        )


class _TrainKeys:
    """The (epoch, image) of each batch of one process, without end, beginning at `start_batch`."""

    def __init__(
        self, dataset_size: int, batch_size: int, seed: int, rank: int, world_size: int, start_batch: int
    ) -> None:
        self._dataset_size = dataset_size
        self._batch_size = batch_size
        self._seed = seed
        self._step = batch_size * world_size
        self._first = start_batch * self._step + rank * batch_size

    def __iter__(self) -> Iterator[list[Key]]:
        epoch, order = -1, np.zeros(0, dtype=np.int64)
        for first in itertools.count(self._first, self._step):
            batch = []
            for place in range(first, first + self._batch_size):
                if place // self._dataset_size != epoch:
                    epoch = place // self._dataset_size
                    order = _generator(self._seed, epoch, 0).permutation(self._dataset_size)
                batch.append((epoch, int(order[place % self._dataset_size])))
            yield batch


def _generator(seed: int, epoch: int, stream: int) -> np.random.Generator:
    """Stream 0 is of the order of an epoch, 1 + i of image i in it."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(epoch, stream)))


class _ReadTrainBatch:
    """Makes the batches of one process, but for normalising: the images of a result are uint8."""

    def __init__(
        self,
        dataset: Dataset,
        augment: AugmentConfig,
        transform: AugmentCallable | None,
        seed: int,
        pad_divisor: int,
    ) -> None:
        self._dataset = dataset
        self._augment = augment
        self._transform = transform
        self._seed = seed
        self._size = padded_size(augment.crop, augment.crop, pad_divisor)

    def __call__(self, keys: Sequence[Key]) -> TrainBatch:
        loaded = [
            augmented(self._dataset, index, self._augment, _generator(self._seed, epoch, 1 + index), self._transform)
            for epoch, index in keys
        ]
        targets = []
        for sample in loaded:
            target = dict(sample.target)
            if "masks" in target:
                height, width = sample.image.shape[-2:]
                beyond = (0, self._size[1] - width, 0, self._size[0] - height)
                target["masks"] = functional.pad(target["masks"], beyond)
            targets.append(target)
        images, sizes = _padded([sample.image for sample in loaded], self._size)
        return TrainBatch(images, sizes, targets, [sample.info.image_id for sample in loaded])


class _ReadEvaluationBatch:
    """As `_ReadTrainBatch`, of images as a whole."""

    def __init__(self, dataset: Dataset, config: PreprocessConfig) -> None:
        self._dataset = dataset
        self._config = config

    def __call__(self, indices: Sequence[int]) -> EvaluationBatch:
        loaded = [self._dataset[index] for index in indices]
        infos = [sample.info for sample in loaded]
        resized = []
        for sample in loaded:
            height, width = sample.image.shape[-2:]
            resized.append(resize(sample.image, resized_size(height, width, self._config)))
        height, width = (max(image.shape[axis] for image in resized) for axis in (-2, -1))
        images, sizes = _padded(resized, padded_size(height, width, self._config.pad_divisor))
        return EvaluationBatch(images, sizes, [info.size for info in infos], [info.image_id for info in infos])


def _padded(images: Sequence[Tensor], size: tuple[int, int]) -> tuple[Tensor, list[tuple[int, int]]]:
    """(N, 3, *size) uint8, zero beyond each image; and each one's (height, width)."""
    batch = torch.zeros(len(images), 3, *size, dtype=torch.uint8, device="cpu")
    sizes = []
    for place, image in zip(batch, images, strict=True):
        height, width = image.shape[-2:]
        place[:, :height, :width] = image
        sizes.append((height, width))
    return batch, sizes


def _batches(
    read: Callable[[_Keys], _Batch], keys: Iterable[_Keys], config: PreprocessConfig, workers: int
) -> Iterator[_Batch]:
    """Batches by workers, normalized here: uint8 is a quarter of what is handed over."""
    with contextlib.closing(parallel_map(read, keys, workers)) as batches:
        for batch in batches:
            images = torch.zeros(batch.images.shape, dtype=torch.float32, device="cpu")
            for image, pixels, (height, width) in zip(images, batch.images, batch.sizes, strict=True):
                image[:, :height, :width] = normalize(pixels[:, :height, :width], config)
            yield batch._replace(images=images)
