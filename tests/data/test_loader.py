"""Batches are the same whatever the workers, the restart and the shares; each image comes once in an epoch."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from coco_folders import annotation, picture, rectangle, write_folder

import fpg_zoo
from fpg_zoo.config import PreprocessConfig
from fpg_zoo.config.training import AugmentConfig
from fpg_zoo.data.coco import CocoDataset
from fpg_zoo.data.dataset import ImageInfo, Sample
from fpg_zoo.data.loader import EvaluationBatch, TrainBatch, evaluation_loader, train_loader
from fpg_zoo.errors import ConfigError, ImageError
from fpg_zoo.modeling.preprocess import preprocess
from fpg_zoo.training.criterion import Criterion

AUGMENT = AugmentConfig(longest_side=64, crop=64)
PREPROCESSING = PreprocessConfig(longest_side=64, pad_divisor=32)
PICTURES = 7


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> CocoDataset:
    """Seven images, four upright and three lying, with two objects each."""
    images = [picture(n, *((40, 48) if n < 4 else (48, 40))) for n in range(PICTURES)]
    annotations = [
        annotation(10 * n + k, n, [4 + n, 5 * k, 9, 20], segmentation=rectangle(4 + n, 5 * k, 13 + n, 5 * k + 20))
        for n in range(PICTURES)
        for k in range(2)
    ]
    folder = write_folder(tmp_path_factory.mktemp("set"), images, annotations)
    return CocoDataset.from_folder(folder, "train", masks=True)


class Counted:
    """A dataset that notes which images were read."""

    def __init__(self, dataset: CocoDataset) -> None:
        self._dataset = dataset
        self.class_names = dataset.class_names
        self.read: list[int] = []

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Sample:
        self.read.append(index)
        return self._dataset[index]

    def image_info(self, index: int) -> ImageInfo:
        return self._dataset.image_info(index)


def _batches(dataset: Any, number: int, **options: Any) -> list[TrainBatch]:
    options = {"batch_size": 2, "seed": 3} | options
    return list(itertools.islice(train_loader(dataset, AUGMENT, PREPROCESSING, **options), number))


def _ids(batches: list[TrainBatch]) -> list[Any]:
    return [image_id for batch in batches for image_id in batch.image_ids]


def _assert_same(first: list[TrainBatch], second: list[TrainBatch]) -> None:
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert (one.sizes, one.image_ids) == (other.sizes, other.image_ids)
        assert torch.equal(one.images, other.images)
        for target, likewise in zip(one.targets, other.targets, strict=True):
            assert target.keys() == likewise.keys() == {"boxes", "labels", "masks"}
            assert all(torch.equal(target[name], likewise[name]) for name in target)


# Order


def test_every_picture_comes_once_in_each_epoch(dataset: CocoDataset) -> None:
    ids = _ids(_batches(dataset, PICTURES))  # 14 images: two epochs, the fourth batch in both
    epochs = [ids[:PICTURES], ids[PICTURES:]]
    assert [sorted(epoch) for epoch in epochs] == [list(range(PICTURES))] * 2
    assert epochs[0] != epochs[1]
    assert epochs[0] != sorted(epochs[0])


def test_seeds_and_epochs_differ_and_runs_do_not(dataset: CocoDataset) -> None:
    first, again, other = (_batches(dataset, PICTURES, seed=seed) for seed in (3, 3, 4))
    _assert_same(first, again)
    assert _ids(first) != _ids(other)
    # An image looks otherwise in the next epoch.
    (one, two) = [(b.images[k], b.sizes[k]) for b in first for k in range(2) if b.image_ids[k] == 0]
    assert one[1] != two[1] or not torch.equal(one[0], two[0])


def test_no_other_random_number_is_used_or_taken(dataset: CocoDataset) -> None:
    torch.manual_seed(1)
    np.random.seed(1)
    first = _batches(dataset, 2)
    taken = torch.rand(1)
    torch.manual_seed(2)
    np.random.seed(2)
    _assert_same(first, _batches(dataset, 2))
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), taken)


@pytest.mark.parametrize("start", [0, 3, 5])
def test_workers_and_restarts_make_the_same_batches(start: int, dataset: CocoDataset) -> None:
    whole = _batches(dataset, 8)
    _assert_same(_batches(dataset, 8 - start, start_batch=start, workers=2), whole[start:])
    _assert_same(_batches(dataset, 8 - start, start_batch=start, workers=1), whole[start:])
    _assert_same(_batches(dataset, 8 - start, start_batch=start), whole[start:])


def test_a_restart_reads_no_earlier_picture(dataset: CocoDataset) -> None:
    counted = Counted(dataset)
    (batch,) = _batches(counted, 1, start_batch=10**6)
    assert counted.read == batch.image_ids


def test_shares_of_several_processes_make_up_the_whole(dataset: CocoDataset) -> None:
    whole = _batches(dataset, 5, batch_size=6)
    shares = [_batches(dataset, 5, batch_size=2, rank=rank, world_size=3) for rank in range(3)]
    for step, batch in enumerate(whole):
        parts = [share[step] for share in shares]
        assert torch.equal(torch.cat([part.images for part in parts]), batch.images)
        assert _ids(parts) == batch.image_ids
    restarted = _batches(dataset, 2, batch_size=2, rank=1, world_size=3, start_batch=3)
    _assert_same(restarted, shares[1][3:])


def test_a_batch_may_hold_more_than_there_are_pictures(dataset: CocoDataset) -> None:
    (batch,) = _batches(dataset, 1, batch_size=16)
    assert sorted(batch.image_ids) == sorted([*range(PICTURES), *range(PICTURES), *batch.image_ids[14:]])
    _assert_same([batch], _batches(dataset, 1, batch_size=16))


# Content


def test_pictures_are_normalised_and_padded(dataset: CocoDataset) -> None:
    # Shown as they are: neither scaled, cropped nor mirrored. 48 pixels are padded to 64, the multiple of 32 beyond.
    augment = AugmentConfig(longest_side=48, factors=(1, 1), crop=48, flip=0)
    batch = next(train_loader(dataset, augment, PREPROCESSING, batch_size=4, seed=0))
    assert (batch.images.dtype, tuple(batch.images.shape)) == (torch.float32, (4, 3, 64, 64))
    mean, std = np.array([123.675, 116.28, 103.53]), np.array([58.395, 57.12, 57.375])
    for image, size, target, image_id in zip(*batch, strict=True):
        assert isinstance(image_id, int)
        sample = dataset[image_id]
        height, width = sample.info.size
        assert size == (height, width)
        expected = (sample.image.numpy() - mean[:, None, None]) / std[:, None, None]
        assert np.abs(image[:, :height, :width].numpy() - expected).max() < 1e-5
        assert not image[:, height:].any()
        assert not image[:, :, width:].any()
        assert np.array_equal(target["boxes"].numpy(), sample.info.objects.boxes)
        assert target["labels"].tolist() == [1, 1]
        assert (target["masks"].dtype, tuple(target["masks"].shape)) == (torch.bool, (2, 64, 64))
        for box, mask in zip(target["boxes"].int().tolist(), target["masks"], strict=True):
            x1, y1, x2, y2 = box
            assert mask[y1:y2, x1:x2].all()
            assert int(mask.sum()) == (x2 - x1) * (y2 - y1) == 180


@pytest.mark.parametrize("name", ["mask_rcnn_nano_fpg", "retinanet_nano_fpg"])
def test_a_criterion_takes_them(name: str, dataset: CocoDataset) -> None:
    model = fpg_zoo.create_model(name, class_names=dataset.class_names)
    augment = AugmentConfig(longest_side=128, crop=128, keep_empty_crops=not name.startswith("retinanet"))
    batch = next(train_loader(dataset, augment, model.config.preprocess, batch_size=2, seed=0))
    losses = Criterion(model)(batch.images, batch.sizes, batch.targets)
    assert all(torch.isfinite(loss) for loss in losses.values())


# Evaluation


def _evaluated(dataset: Any, **options: Any) -> list[EvaluationBatch]:
    return list(evaluation_loader(dataset, PREPROCESSING, **options))


def test_evaluation_sees_each_picture_as_prediction_does(dataset: CocoDataset) -> None:
    for batch in _evaluated(dataset, batch_size=3):
        samples = [dataset[index] for index in batch.image_ids if isinstance(index, int)]
        images, sizes = preprocess([sample.image for sample in samples], PREPROCESSING)
        assert torch.equal(batch.images, images)
        assert batch.sizes == sizes
        assert batch.original_sizes == [sample.info.size for sample in samples]


def test_evaluation_batches_hold_pictures_of_one_padded_size(tmp_path: Path) -> None:
    # 64 x 64, 64 x 32 and 64 x 64 (its 40 of 64 pixels are padded) after scaling and padding to multiples of 32.
    images = [picture(1, 64, 64), picture(2, 20, 40), picture(3, 40, 64), picture(4, 64, 64), picture(5, 9, 90)]
    dataset = CocoDataset.from_folder(write_folder(tmp_path, images, []), "train", training=False)
    batches = _evaluated(dataset, batch_size=2)
    assert [(batch.image_ids, tuple(batch.images.shape[2:])) for batch in batches] == [
        ([1, 3], (64, 64)),
        ([4], (64, 64)),
        ([2, 5], (64, 32)),
    ]


def test_evaluation_is_shared_among_workers_and_processes(dataset: CocoDataset) -> None:
    whole = _evaluated(dataset, batch_size=2)
    for one, other in zip(whole, _evaluated(dataset, batch_size=2, workers=2), strict=True):
        assert torch.equal(one.images, other.images)
        assert one[1:] == other[1:]
    shares = [_evaluated(dataset, batch_size=2, rank=rank, world_size=3) for rank in range(3)]
    ids = [image_id for share in shares for batch in share for image_id in batch.image_ids]
    assert sorted(ids) == list(range(PICTURES))
    assert _evaluated(dataset, batch_size=9, rank=1, world_size=2) == []


def test_what_is_done_already_is_left_out_of_its_batches(tmp_path: Path) -> None:
    images = [picture(n, 64, 64) for n in range(5)]
    dataset = CocoDataset.from_folder(write_folder(tmp_path, images, []), "train", training=False)
    assert [batch.image_ids for batch in _evaluated(dataset, batch_size=2)] == [[0, 1], [2, 3], [4]]
    # Not [0, 4]: what is computed of an image may depend, in its last bits, on those beside it.
    assert [batch.image_ids for batch in _evaluated(dataset, batch_size=2, done={1, 2, 3})] == [[0], [4]]
    shares = [_evaluated(dataset, batch_size=2, done=[2, 3], rank=rank, world_size=2) for rank in range(2)]
    assert [[batch.image_ids for batch in share] for share in shares] == [[[0, 1]], [[4]]]


def test_pictures_of_all_shapes_cost_little_padding(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    images = [picture(n, *(int(side) for side in random.integers(20, 200, 2))) for n in range(60)]
    dataset = CocoDataset.from_folder(write_folder(tmp_path, images, []), "train", training=False)
    batches = _evaluated(dataset, batch_size=8)
    # Each is padded as it is alone, and no batch could be spared: two sizes make three groups.
    assert len({tuple(batch.images.shape[2:]) for batch in batches}) == 3
    assert sum(len(batch.sizes) == 8 for batch in batches) >= len(batches) - 3
    for batch in batches:
        for size in batch.sizes:
            assert tuple(batch.images.shape[2:]) == tuple(-(-side // 32) * 32 for side in size)


# Refusals


@pytest.mark.parametrize("workers", [0, 2])
def test_a_picture_that_cannot_be_read_is_named_in_one_line(workers: int, tmp_path: Path) -> None:
    folder = write_folder(tmp_path, [picture(1)], [annotation(1, 1, [1, 1, 9, 9])])
    dataset = CocoDataset.from_folder(folder, "train")
    (folder / "train" / "1.png").write_bytes(b"nothing")
    loaders: list[Iterator[Any]] = [
        train_loader(dataset, AUGMENT, PREPROCESSING, batch_size=2, seed=0, workers=workers),
        evaluation_loader(dataset, PREPROCESSING, batch_size=2, workers=workers),
    ]
    for loader in loaders:
        with pytest.raises(ImageError, match=r"^.*1\.png: not an image in a format that is read [^\n]*$"):
            next(loader)


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"batch_size": 0}, "batch_size=0: it takes a whole number of at least 1"),
        ({"seed": -1}, "seed=-1: it takes a whole number of at least 0"),
        ({"seed": None}, "seed=None: it takes a whole number"),
        ({"start_batch": 1.5}, r"start_batch=1\.5: it takes a whole number"),
        ({"workers": -1}, "workers=-1: it takes a whole number"),
        ({"world_size": 0}, "world_size=0: it takes a whole number of at least 1"),
        ({"rank": 2, "world_size": 2}, "rank=2: of 2 processes it is a number from 0 to 1"),
        ({"rank": -1}, "rank=-1: of 1 processes"),
    ],
)
def test_numbers_out_of_range(values: dict[str, Any], complaint: str, dataset: CocoDataset) -> None:
    # At once, not when the first batch is asked for.
    with pytest.raises(ConfigError, match=complaint):
        train_loader(dataset, AUGMENT, PREPROCESSING, **({"batch_size": 2, "seed": 0} | values))


def test_there_must_be_something_to_train_on() -> None:
    with pytest.raises(ConfigError, match="the dataset has no images; there is nothing to train on"):
        train_loader([], AUGMENT, PREPROCESSING, batch_size=2, seed=0)  # type: ignore[arg-type]
