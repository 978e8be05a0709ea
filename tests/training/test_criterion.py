"""The criterion's contracts on the nano models: what is matched, sampled, counted, frozen and refused."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from tiny_models import tiny_model
from torch import Tensor

from fpg_zoo.config.training import RoISampling
from fpg_zoo.structures.boxes import decode
from fpg_zoo.training import Criterion
from fpg_zoo.training.criterion import (
    _TwoStageLosses,
    binary_cross_entropy,
    cross_entropy,
    focal,
    l1_loss,
)
from fpg_zoo.training.matching import IGNORED, NEGATIVE, Matcher, Sampler
from fpg_zoo.training.targets import Targets, encode, masks_in

NAMES = ["faster_rcnn_nano_fpg", "mask_rcnn_nano_fpg", "retinanet_nano_fpg"]


def boxes(*rows: tuple[float, float, float, float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)


# Matching. Boxes of 10x10 beside a truth of 10x10: shifted by d, the IoU is (10 - d) / (10 + d).
TRUTH = boxes((0, 0, 10, 10))
SHIFTED = boxes((0, 0, 10, 10), (1, 0, 11, 10), (2, 0, 12, 10), (5, 0, 15, 10), (6, 0, 16, 10), (20, 0, 30, 10))
# IoU:          1               9/11 = 0.82     8/12 = 0.67     5/15 = 0.33     4/16 = 0.25     0


def test_positive_ignored_and_negative_are_told_by_the_iou() -> None:
    match = Matcher(positive=0.7, negative=0.3, allow_low_quality=None)(SHIFTED, TRUTH)
    assert match.tolist() == [0, 0, IGNORED, IGNORED, NEGATIVE, NEGATIVE]


def test_an_iou_equal_to_a_threshold_is_positive_and_not_negative() -> None:
    # A box of half the truth's area inside it: IoU 0.5 exactly.
    half = boxes((0, 0, 5, 10))
    assert Matcher(positive=0.5, negative=0.5, allow_low_quality=None)(half, TRUTH).tolist() == [0]
    assert Matcher(positive=0.7, negative=0.5, allow_low_quality=None)(half, TRUTH).tolist() == [IGNORED]


def test_every_box_that_ties_for_a_truths_best_is_rescued_and_no_other() -> None:
    # Shifted by 3 to either side: IoU 7/13 = 0.54 both, the best that the truth has.
    candidates = boxes((3, 0, 13, 10), (-3, 0, 7, 10), (4, 0, 14, 10))
    matcher = Matcher(positive=0.7, negative=0.3, allow_low_quality=0.3)
    assert matcher(candidates, TRUTH).tolist() == [0, 0, IGNORED]


def test_a_truth_whose_best_is_below_the_rescue_gets_nothing() -> None:
    candidates = boxes((6, 0, 16, 10))  # IoU 0.25
    assert Matcher(positive=0.7, negative=0.3, allow_low_quality=0.3)(candidates, TRUTH).tolist() == [NEGATIVE]
    assert Matcher(positive=0.7, negative=0.3, allow_low_quality=0.2)(candidates, TRUTH).tolist() == [0]


def test_a_rescue_wins_over_what_overlaps_more_and_the_later_truth_over_the_earlier() -> None:
    # The one box is identical with truth 0, and also the best that truths 1 and 2 have (IoU 8/12 and 7/13).
    truths = boxes((0, 0, 10, 10), (2, 0, 12, 10), (-3, 0, 7, 10))
    assert Matcher(positive=0.7, negative=0.3, allow_low_quality=0.3)(TRUTH, truths).tolist() == [2]
    assert Matcher(positive=0.7, negative=0.3, allow_low_quality=0.6)(TRUTH, truths).tolist() == [1]
    assert Matcher(positive=0.7, negative=0.3, allow_low_quality=None)(TRUTH, truths).tolist() == [0]


def test_without_truths_all_boxes_are_negative() -> None:
    assert Matcher(positive=0.5, negative=0.5, allow_low_quality=0.0)(SHIFTED, boxes()).tolist() == [NEGATIVE] * 6


def test_a_truth_gets_its_best_proposal_though_it_is_a_region_itself() -> None:
    # The proposal lies nearer to truth 0 (IoU 9/11) than to truth 1 (8/12), whose best it is: the later one wins.
    losses = _TwoStageLosses(tiny_model(), True, RoISampling())
    truth = Targets(boxes((0, 0, 10, 10), (3, 0, 13, 10)), torch.tensor([0, 1]), None)
    regions, match, positives = losses._sampled(boxes((1, 0, 11, 10)), truth)
    assert match.tolist() == [0, 1, 1]
    assert positives == 3
    assert torch.equal(regions, boxes((0, 0, 10, 10), (3, 0, 13, 10), (1, 0, 11, 10)))


def test_as_many_regions_are_sampled_as_the_recipe_says_a_quarter_of_them_positive() -> None:
    losses = _TwoStageLosses(tiny_model(), False, RoISampling(candidates_per_level=50, rois=8))
    assert losses.select_proposals.config.candidates_per_level == 50
    truth = Targets(boxes((0, 0, 10, 10)), torch.tensor([0]), None)
    proposals = torch.cat([boxes((0, 0, 10, 9 + 0.01 * step)) for step in range(20)] + [boxes((50, 50, 60, 60))] * 20)
    regions, match, positives = losses._sampled(proposals, truth)
    assert (len(regions), len(match), positives) == (8, 8, 2)


# Sampling: 100 positive, 900 negative, 50 ignored.
MATCH = torch.tensor([3] * 100 + [NEGATIVE] * 900 + [IGNORED] * 50)


@pytest.mark.parametrize(
    ("number", "fraction", "positive", "negative"),
    [
        (256, 0.5, 100, 156),  # as many positive as there are, the rest negative
        (100, 0.25, 25, 75),  # at most a quarter positive
        (2000, 0.5, 100, 900),  # all there are
        (None, 0.5, 100, 900),
    ],
)
def test_a_sample_has_its_number_and_at_most_its_part_of_positives(
    number: int | None, fraction: float, positive: int, negative: int
) -> None:
    found = Sampler(number=number, positive_fraction=fraction)(MATCH)
    assert [len(indices) for indices in found] == [positive, negative]
    assert set(found[0].tolist()) <= set(range(100))
    assert set(found[1].tolist()) <= set(range(100, 1000))
    assert len(set(found[1].tolist())) == negative


def test_a_sample_is_drawn_evenly() -> None:
    # 2000 draws of 25 from 100: each comes 500 times on average, standard deviation sqrt(2000 * 0.25 * 0.75) = 19.4.
    torch.manual_seed(0)
    sampler = Sampler(number=100, positive_fraction=0.25)
    counts = torch.bincount(torch.cat([sampler(MATCH)[0] for _ in range(2000)]), minlength=100)
    assert counts.min() > 500 - 5 * 19.4
    assert counts.max() < 500 + 5 * 19.4


# Losses by hand


def test_losses_of_one_element() -> None:
    # sigmoid(0) = 0.5: cross-entropy ln 2; focal 0.25 * 0.5^2 * ln 2 for a positive, three times that for a negative.
    zero = torch.zeros(1)
    assert binary_cross_entropy(zero, torch.tensor([True])).item() == pytest.approx(math.log(2))
    assert focal(zero, torch.tensor([True])).item() == pytest.approx(0.0625 * math.log(2))
    assert focal(zero, torch.tensor([False])).item() == pytest.approx(0.1875 * math.log(2))
    assert cross_entropy(torch.zeros(1, 3), torch.tensor([2])).item() == pytest.approx(math.log(3))
    assert l1_loss(torch.tensor([1.0, -2.0]), torch.tensor([3.0, 0.5])).item() == 4.5


def test_encoding_by_hand_and_as_the_inverse_of_decoding() -> None:
    # From a 10x20 box at the origin to one of 20x20 whose center lies 5 to the right: dx = 5/10, dw = ln 2.
    found = encode(boxes((0, 0, 10, 20)), boxes((0, 0, 20, 20)), (0.1, 0.1, 0.2, 0.2))
    assert found.tolist() == [pytest.approx([5.0, 0.0, math.log(2) / 0.2, 0.0])]
    torch.manual_seed(0)
    start, extent = torch.rand(50, 2) * 100, torch.rand(50, 2) * 50 + 1
    some = torch.cat((start, start + extent), dim=1)
    std = (0.1, 0.1, 0.2, 0.2)
    torch.testing.assert_close(decode(some, encode(some, some.flip(0), std), std), some.flip(0), atol=1e-3, rtol=1e-4)


def test_a_mask_seen_through_a_box_of_its_own_size_is_itself() -> None:
    mask = torch.zeros(2, 8, 8, dtype=torch.bool)
    mask[1, 2:6, 1:4] = True
    found = masks_in(boxes((0, 0, 8, 8), (4, 4, 8, 8)), mask, torch.tensor([1, 1]), 8)
    assert torch.equal(found[0], mask[1])
    # The second box sees rows and columns 4..7 at twice the size: only rows 4 and 5, no column beyond 3.
    assert not found[1].any()


# The whole criterion


def targets(name: str, *, empty: tuple[int, ...] = ()) -> list[dict[str, Tensor]]:
    made = []
    for image in range(2):
        count = 0 if image in empty else 2
        masks = torch.zeros(count, 128, 128, dtype=torch.bool)
        masks[:, 20:60, 20:60] = True
        made.append(
            {
                "boxes": boxes((20, 20, 60, 60), (30, 70, 110, 120))[:count],
                "labels": torch.tensor([7, 3])[:count],
                **({"masks": masks} if name.startswith("mask") else {}),
            }
        )
    return made


def images() -> Tensor:
    torch.manual_seed(0)
    return torch.randn(2, 3, 128, 128)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("empty", [(), (0,), (0, 1)], ids=["both", "one empty", "both empty"])
@pytest.mark.slow
def test_every_trained_parameter_has_a_finite_gradient_whatever_the_truths(name: str, empty: tuple[int, ...]) -> None:
    criterion = Criterion(copy.deepcopy(tiny_model(name)).train())
    losses = criterion(images(), [(128, 128)] * 2, targets(name, empty=empty))
    assert all(loss.ndim == 0 and torch.isfinite(loss) for loss in losses.values())
    torch.stack(list(losses.values())).sum().backward()
    for key, parameter in criterion.model.named_parameters():
        if key.startswith(("backbone.conv1.", "backbone.bn1.", "backbone.layer1.")):
            assert parameter.grad is None, key
        else:
            assert parameter.grad is not None, key
            assert torch.isfinite(parameter.grad).all(), key
    if len(empty) == 2:
        assert losses["loss_bbox"] == 0
        assert losses.get("loss_mask", 0) == 0


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.slow
def test_losses_of_a_batch_do_not_depend_on_the_order_of_its_images(name: str) -> None:
    criterion = Criterion(copy.deepcopy(tiny_model(name)), sample_all=True)
    truths = targets(name, empty=(1,))
    with torch.no_grad():
        one = criterion(images(), [(128, 128), (100, 128)], truths)
        other = criterion(images().flip(0), [(100, 128), (128, 128)], truths[::-1])
    for key in one:
        torch.testing.assert_close(one[key], other[key], rtol=1e-5, atol=1e-7)


def test_the_statistics_of_frozen_norms_stay_and_those_of_others_move() -> None:
    model = copy.deepcopy(tiny_model("retinanet_nano_fpg")).train()
    before = {key: value.clone() for key, value in model.state_dict().items() if "running" in key}
    Criterion(model)(images(), [(128, 128)] * 2, targets("retinanet_nano_fpg"))
    after = model.state_dict()
    for key, value in before.items():
        assert torch.equal(after[key], value) == key.startswith(("backbone.bn1.", "backbone.layer1.")), key


def test_nothing_is_frozen_for_training_from_scratch() -> None:
    criterion = Criterion(copy.deepcopy(tiny_model("retinanet_nano_fpg")).train(), frozen_stages=0)
    assert all(parameter.requires_grad for parameter in criterion.parameters())


def test_losses_are_reckoned_in_float32_under_autocast() -> None:
    name = "mask_rcnn_nano_fpg"
    criterion = Criterion(copy.deepcopy(tiny_model(name)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = criterion(images(), [(128, 128)] * 2, targets(name))
    assert {loss.dtype for loss in losses.values()} == {torch.float32}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"boxes": boxes((20, 20, 20, 60), (30, 70, 110, 120))}, r"targets\[1\]: a box has no area"),
        ({"boxes": boxes((20, 20, math.nan, 60), (30, 70, 110, 120))}, r"targets\[1\]: a box has no area, or a coord"),
        ({"boxes": boxes((20, 20, 40, 60))}, r"targets\[1\]: boxes \(1, 4\) and labels \(2,\)"),
        ({"labels": torch.tensor([7, 80])}, r"targets\[1\]: a label is outside 0\.\.79"),
        ({"labels": torch.tensor([-1, 0])}, r"targets\[1\]: a label is outside 0\.\.79"),
        ({"masks": torch.zeros(1, 128, 128)}, r"targets\[1\]: masks \(1, 128, 128\) are to be \(2, H, W\)"),
    ],
)
def test_targets_that_do_not_fit_are_refused_with_the_image(change: dict[str, Tensor], message: str) -> None:
    criterion = Criterion(copy.deepcopy(tiny_model()))
    truths = targets("mask_rcnn_nano_fpg")
    truths[1] |= change
    with pytest.raises(ValueError, match=message):
        criterion(images(), [(128, 128)] * 2, truths)


def test_missing_masks_and_missing_targets_are_told() -> None:
    criterion = Criterion(copy.deepcopy(tiny_model()))
    with pytest.raises(ValueError, match=r"targets\[0\] has no 'masks'"):
        criterion(images(), [(128, 128)] * 2, targets("faster_rcnn_nano_fpg"))
    with pytest.raises(ValueError, match="1 targets for 2 images"):
        criterion(images(), [(128, 128)] * 2, targets("mask_rcnn_nano_fpg")[:1])
    with pytest.raises(ValueError, match="frozen_stages=5"):
        Criterion(copy.deepcopy(tiny_model()), frozen_stages=5)
