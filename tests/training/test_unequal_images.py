"""Images of unequal sizes in one batch: each has the anchors of its own padded size, as mmdetection 3.3.0 counts them.

There an anchor counts in matching and sampling if its cell begins within `pad_shape`, each image's own size brought up
to the divisor; what the batch is padded to beyond that has none.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from coco_folders import annotation, picture, write_folder
from tiny_models import tiny_model
from torch import Tensor
from training_runs import CLASSES, settings, small_model, weights_of

from fpg_zoo.config import AnchorConfig
from fpg_zoo.data.coco import CocoDataset
from fpg_zoo.distributed import Processes
from fpg_zoo.errors import ConfigError
from fpg_zoo.modeling.heads.anchors import anchors_within
from fpg_zoo.training import Criterion
from fpg_zoo.training.recipes import RECIPES, recipe_named
from fpg_zoo.training.run_checkpoints import newest_state
from fpg_zoo.training.targets import Targets
from fpg_zoo.training.trainer import train

RPN, DENSE = "faster_rcnn_nano_fpg", "retinanet_nano_fpg"  # padded to multiples of 64 and 128 pixels


def maps_of(height: int, width: int, strides: tuple[int, ...], channels: int, images: int = 2) -> list[Tensor]:
    return [torch.randn(images, channels, -(-height // s), -(-width // s)) for s in strides]


def counted(maps: list[Tensor], config: AnchorConfig, size: tuple[int, int]) -> int:
    total = sum(level.shape[-2] * level.shape[-1] for level in maps) * config.per_cell
    return len(torch.arange(total)[anchors_within(maps, config, size)])


@pytest.mark.parametrize(
    ("size", "cells"),
    [
        ((128, 128), 32 * 32 + 16 * 16 + 8 * 8 + 4 * 4 + 2 * 2),  # the batch's own
        ((640, 640), 32 * 32 + 16 * 16 + 8 * 8 + 4 * 4 + 2 * 2),  # no cells beyond the batch's
        ((64, 128), 16 * 32 + 8 * 16 + 4 * 8 + 2 * 4 + 1 * 2),
        ((128, 64), 32 * 16 + 16 * 8 + 8 * 4 + 4 * 2 + 2 * 1),
        ((65, 128), 17 * 32 + 9 * 16 + 5 * 8 + 3 * 4 + 2 * 2),  # a cell counts that begins within
        ((1, 1), 5),
    ],
)
def test_anchors_are_those_of_the_cells_that_begin_within(size: tuple[int, int], cells: int) -> None:
    config = AnchorConfig(strides=(4, 8, 16, 32, 64), scales=(8.0,))
    maps = maps_of(128, 128, config.strides, 3)
    assert counted(maps, config, size) == 3 * cells


def test_they_are_the_ones_at_the_top_left() -> None:
    # Two levels of 2 x 3 and 1 x 2 cells, two anchors each. Within 8 x 16 pixels: row 0, columns 0 and 1; one cell.
    config = AnchorConfig(strides=(8, 16), scales=(1.0,), ratios=(0.5, 2.0))
    within = anchors_within(maps_of(16, 24, config.strides, 2), config, (8, 16))
    assert isinstance(within, Tensor)
    assert within.tolist() == [*[True] * 4, *[False] * 8, *[True] * 2, *[False] * 2]


# Losses by hand. Without objects every anchor is negative; where all logits are 0, cross-entropy is ln 2 for each, and
# the focal loss 0.75 * 0.5^2 * ln 2.


def silent(name: str) -> Criterion:
    """With logits of 0, and everything sampled."""
    model = copy.deepcopy(tiny_model(name))
    layer = model.get_submodule("rpn.objectness" if name == RPN else "head.classes")
    for parameter in layer.parameters():
        torch.nn.init.zeros_(parameter)
    return Criterion(model, sample_all=True)


def no_objects(images: int) -> list[dict[str, Tensor]]:
    return [{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}] * images


def test_the_rpns_loss_by_hand() -> None:
    # 128 x 128 has 1364 cells of 3 anchors; 60 x 100, padded to 64 x 128, has 682. The count has one positive of each.
    criterion, sizes = silent(RPN), [(128, 128), (60, 100)]
    images = torch.randn(2, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = criterion(images, sizes, no_objects(2))["loss_rpn_cls"].item()
        as_cropped = criterion(images, sizes, no_objects(2), padded_sizes=[(128, 128)] * 2)["loss_rpn_cls"].item()
    assert found == pytest.approx((4092 + 2046) * math.log(2) / (4093 + 2047), rel=1e-6)
    assert as_cropped == pytest.approx((4092 + 4092) * math.log(2) / (4093 + 4093), rel=1e-6)


def test_retinanets_loss_by_hand() -> None:
    # 256 x 128 has 682 cells of 9 anchors; 100 x 128, padded to 128 x 128, has 341. Each image counts as one positive.
    criterion, sizes = silent(DENSE), [(256, 128), (100, 128)]
    classes = len(criterion.model.class_names)
    images = torch.randn(2, 3, 256, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = criterion(images, sizes, no_objects(2))["loss_cls"].item()
        as_cropped = criterion(images, sizes, no_objects(2), padded_sizes=[(256, 128)] * 2)["loss_cls"].item()
    assert found == pytest.approx(0.1875 * math.log(2) * classes * 9 * (682 + 341) / 2, rel=1e-6)
    assert as_cropped == pytest.approx(0.1875 * math.log(2) * classes * 9 * (682 + 682) / 2, rel=1e-6)


# The reference's formula, anchor by anchor, on random outputs of the heads


def anchors_by_hand(
    config: AnchorConfig, batch: tuple[int, int], size: tuple[int, int]
) -> list[tuple[int, int, int, int, list[float]]]:
    """(level, row, column, number in the cell, box) of each anchor within `size`."""
    anchors = []
    for level, stride in enumerate(config.strides):
        for row in range(min(math.ceil(size[0] / stride), math.ceil(batch[0] / stride))):
            for column in range(min(math.ceil(size[1] / stride), math.ceil(batch[1] / stride))):
                sides = [
                    (stride * scale / math.sqrt(ratio), stride * scale * math.sqrt(ratio))
                    for ratio in config.ratios
                    for scale in config.scales
                ]
                for number, (width, height) in enumerate(sides):
                    x, y = column * stride, row * stride
                    box = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
                    anchors.append((level, row, column, number, box))
    return anchors


def iou(one: list[float], other: list[float]) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    common = max(width, 0) * max(height, 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return common / (sum(areas) - common)


def deltas_by_hand(anchor: list[float], truth: list[float]) -> list[float]:
    width, height = anchor[2] - anchor[0], anchor[3] - anchor[1]
    return [
        (truth[0] + truth[2] - anchor[0] - anchor[2]) / 2 / width,
        (truth[1] + truth[3] - anchor[1] - anchor[3]) / 2 / height,
        math.log((truth[2] - truth[0]) / width),
        math.log((truth[3] - truth[1]) / height),
    ]


# One object in each image. The second one's best anchors in the batch are of cells that begin beyond its own padded
# size (at y = 64), so that they must not be matched, and others rescued in their place.
BATCH, OWN = (128, 128), [(128, 128), (64, 128)]
TRUTHS = [[30.0, 40.0, 100.0, 100.0], [20.0, 40.0, 60.0, 63.0]]


def test_the_rpns_losses_of_two_unequal_images_are_the_references() -> None:
    criterion = Criterion(copy.deepcopy(tiny_model(RPN)), sample_all=True)
    config = criterion.model.config.rpn.anchors  # type: ignore[union-attr]
    torch.manual_seed(0)
    scores, deltas = maps_of(*BATCH, config.strides, 3), maps_of(*BATCH, config.strides, 12)
    told = moved = count = 0.0
    for image, truth in enumerate(TRUTHS):
        anchors = anchors_by_hand(config, BATCH, OWN[image])
        overlaps = [iou(box, truth) for *_, box in anchors]
        best = max(overlaps)
        assert best >= 0.3
        positives = negatives = 0
        for (level, row, column, number, box), overlap in zip(anchors, overlaps, strict=True):
            score = scores[level][image, number, row, column].item()
            if overlap >= 0.7 or overlap > best - 1e-6:
                positives += 1
                told += math.log1p(math.exp(-score))
                given = deltas[level][image, 4 * number : 4 * number + 4, row, column].tolist()
                moved += sum(abs(a - b) for a, b in zip(given, deltas_by_hand(box, truth), strict=True))
            elif overlap < 0.3:
                negatives += 1
                told += math.log1p(math.exp(score))
        count += max(positives, 1) + max(negatives, 1)
    truths = [Targets(torch.tensor([box]), torch.tensor([0]), None) for box in TRUTHS]
    losses = criterion._losses._rpn_losses(scores, deltas, OWN, truths)  # type: ignore[union-attr]
    assert losses["loss_rpn_cls"].item() == pytest.approx(told / count, rel=1e-5)
    assert losses["loss_rpn_bbox"].item() == pytest.approx(moved / count, rel=1e-5)
    other = criterion._losses._rpn_losses(scores, deltas, [BATCH] * 2, truths)  # type: ignore[union-attr]
    assert other["loss_rpn_bbox"].item() != pytest.approx(
        moved / count, rel=0.1
    )  # it is another anchor that is matched


def test_retinanets_losses_of_two_unequal_images_are_the_references(monkeypatch: pytest.MonkeyPatch) -> None:
    criterion = Criterion(copy.deepcopy(tiny_model(DENSE)))
    model = criterion.model
    config, classes = model.config.head.anchors, len(model.class_names)  # type: ignore[union-attr]
    batch, own, label = (256, 128), [(256, 128), (128, 128)], 2
    truth_of = [[30.0, 40.0, 100.0, 140.0], [20.0, 100.0, 60.0, 127.0]]
    torch.manual_seed(0)
    logits, deltas = maps_of(*batch, config.strides, 9 * classes), maps_of(*batch, config.strides, 36)
    monkeypatch.setattr(model.head, "forward", lambda pyramid: (logits, deltas))
    told = moved = count = 0.0
    for image, truth in enumerate(truth_of):
        anchors = anchors_by_hand(config, batch, own[image])
        overlaps = [iou(box, truth) for *_, box in anchors]
        best, positives = max(overlaps), 0
        for (level, row, column, number, box), overlap in zip(anchors, overlaps, strict=True):
            score = logits[level][image, number * classes : (number + 1) * classes, row, column].double()
            miss = score.sigmoid().square() * 0.75 * torch.log1p(score.exp())
            told += miss.sum().item()
            if overlap >= 0.5 or overlap > best - 1e-6:
                positives += 1
                hit = (1 - score[label].sigmoid()) ** 2 * 0.25 * torch.log1p((-score[label]).exp())
                told += (hit - miss[label]).item()
                given = deltas[level][image, 4 * number : 4 * number + 4, row, column].tolist()
                moved += sum(abs(a - b) for a, b in zip(given, deltas_by_hand(box, truth), strict=True))
        count += max(positives, 1)
    truths = [Targets(torch.tensor([box]), torch.tensor([label]), None) for box in truth_of]
    losses = criterion._losses([], own, own, truths)
    assert losses["loss_cls"].item() == pytest.approx(told / count, rel=1e-4)
    assert losses["loss_bbox"].item() == pytest.approx(moved / count, rel=1e-4)


# Whatever is drawn


@pytest.mark.parametrize("name", [RPN, DENSE])
def test_what_lies_beyond_an_images_own_padding_has_no_gradient(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    criterion = Criterion(copy.deepcopy(tiny_model(name)))
    model, batch, own = criterion.model, (256, 256), [(256, 256), (128, 256), (256, 128)]
    anchors = (model.config.rpn if name == RPN else model.config.head).anchors  # type: ignore[union-attr]
    per_cell = anchors.per_cell * (1 if name == RPN else len(model.class_names))
    torch.manual_seed(0)
    outputs = [
        [level.requires_grad_() for level in maps_of(*batch, anchors.strides, channels, 3)]
        for channels in (per_cell, 4 * anchors.per_cell)
    ]
    truths = [Targets(torch.tensor([[10.0, 10, 90, 90], [60, 60, 127, 127]]), torch.tensor([0, 1]), None)] * 3
    if name == RPN:
        losses = criterion._losses._rpn_losses(*outputs, own, truths)  # type: ignore[union-attr]
    else:
        monkeypatch.setattr(model.head, "forward", lambda pyramid: outputs)
        losses = criterion._losses([], own, own, truths)
    sum(losses.values()).backward()  # type: ignore[union-attr]
    for maps in outputs:
        for level, stride in zip(maps, anchors.strides, strict=True):
            assert level.grad is not None
            for gradient, (height, width) in zip(level.grad, own, strict=True):
                assert not gradient[:, height // stride :].any()
                assert not gradient[:, :, width // stride :].any()
    assert outputs[0][0].grad.any()  # type: ignore[union-attr]


@pytest.mark.parametrize("name", [RPN, DENSE, "mask_rcnn_nano_fpg"])
def test_nothing_changes_where_all_are_as_large_as_the_batch(name: str) -> None:
    criterion = Criterion(copy.deepcopy(tiny_model(name)))
    images = torch.randn(2, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    masks = torch.zeros(1, 128, 128, dtype=torch.bool)
    targets = [{"boxes": torch.tensor([[20.0, 20, 90, 90]]), "labels": torch.tensor([1]), "masks": masks}] * 2
    found = []
    for padded_sizes in (None, [(128, 128)] * 2, [(640, 640)] * 2):
        torch.manual_seed(1)
        with torch.no_grad():
            found.append(criterion(images, [(128, 128), (70, 128)], targets, padded_sizes=padded_sizes))
    for losses in found[1:]:
        assert all(torch.equal(losses[key], value) for key, value in found[0].items())


def test_padded_sizes_are_one_for_each_image() -> None:
    criterion = Criterion(copy.deepcopy(tiny_model(RPN)))
    with pytest.raises(ValueError, match="2 sizes and 1 padded sizes for 2 images: give one for each"):
        criterion(torch.zeros(2, 3, 128, 128), [(128, 128)] * 2, no_objects(2), padded_sizes=[(128, 128)])
    with pytest.raises(ValueError, match="1 sizes and 1 padded sizes for 2 images"):
        criterion(torch.zeros(2, 3, 128, 128), [(128, 128)], no_objects(2))


# Recipes, and runs that were started before these had a word for it


def test_the_published_recipe_alone_pads_to_the_crop() -> None:
    assert [name for name, recipe in RECIPES.items() if recipe.pad_to_crop] == ["crop640_50e"]


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> CocoDataset:
    """Four images of 64x32, which crops of 128x128 show as 128x64 at most."""
    categories = [{"id": number, "name": name} for number, name in enumerate(CLASSES, 1)]
    objects = [annotation(number, number, [8, 4, 30, 20], category_id=1) for number in range(1, 5)]
    images = [picture(number, 64, 32) for number in range(1, 5)]
    folder = write_folder(tmp_path_factory.mktemp("wide"), images, objects, categories)
    return CocoDataset.from_folder(folder, "train")


@pytest.mark.slow
def test_a_run_of_an_older_version_goes_on_as_it_was_begun(wide: CocoDataset, tmp_path: Path) -> None:
    own = settings(batch_size=1, recipe=recipe_named("scratch", epochs=3))
    cropped = dataclasses.replace(own, recipe=dataclasses.replace(own.recipe, pad_to_crop=True))
    for name, chosen in (("own", own), ("cropped", cropped)):
        train(small_model(RPN), wide, tmp_path / name, chosen, processes=Processes())
    assert weights_of(tmp_path / "own") != weights_of(tmp_path / "cropped")

    run, answers = tmp_path / "older", iter([None, {"box_AP": 0.5}, None])

    def evaluate(model: object) -> dict[str, float]:
        figures = next(answers)
        if figures is None:
            raise KeyboardInterrupt
        return figures

    def state() -> Path:
        newest = newest_state(run)
        assert newest is not None
        return newest

    with pytest.raises(KeyboardInterrupt):  # after the first of three epochs
        train(small_model(RPN), wide, run, cropped, processes=Processes(), evaluate=evaluate)
    record = json.loads((state() / "progress.json").read_text())
    assert record["settings"]["recipe"].pop("pad_to_crop") is True
    (state() / "progress.json").write_text(json.dumps(record))
    # By the recipe of today; broken off once more after the second.
    with pytest.raises(KeyboardInterrupt):
        train(small_model(RPN), wide, run, own, processes=Processes(), evaluate=evaluate, resume=True)
    assert state().name == "state-00000008"
    train(small_model(RPN), wide, run, own, processes=Processes(), resume=True)
    assert weights_of(run) == weights_of(tmp_path / "cropped")
    assert "pad_to_crop" not in json.loads((state() / "progress.json").read_text())["settings"]["recipe"]


@pytest.mark.slow
def test_other_padding_than_a_run_was_begun_with_is_refused(wide: CocoDataset, tmp_path: Path) -> None:
    own = settings(batch_size=2)
    train(small_model(RPN), wide, tmp_path / "run", own, processes=Processes())
    cropped = dataclasses.replace(own, recipe=dataclasses.replace(own.recipe, pad_to_crop=True))
    with pytest.raises(ConfigError, match=r"recipe\.pad_to_crop was False, is True"):
        train(small_model(RPN), wide, tmp_path / "run", cropped, processes=Processes(), resume=True)
