"""The choice of proposals and detections against one that sorts and suppresses all of them: the same, in its order."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import fpg_zoo
from fpg_zoo.config import RetinaNetConfig, TwoStageConfig
from fpg_zoo.modeling.heads.retina_head import DenseSelection
from fpg_zoo.modeling.heads.roi_heads import BoxSelection
from fpg_zoo.modeling.heads.rpn import Proposals, ProposalSelection
from fpg_zoo.structures import Instances
from fpg_zoo.structures.boxes import best_first, clip, decode, has_area, nms_within

SIZES = [(250, 256), (200, 130)]
TWO_STAGE = fpg_zoo.model_info("faster_rcnn_r50_fpg").config
DENSE = fpg_zoo.model_info("retinanet_r50_fpg").config
assert isinstance(TWO_STAGE, TwoStageConfig)
assert isinstance(DENSE, RetinaNetConfig)


class PlainProposalSelection(ProposalSelection):
    """By a sort of each level, and NMS of all levels together."""

    def _one_image(self, scores, deltas, anchors, size):
        boxes, kept_scores, levels = [], [], []
        for level, (score, delta, anchor) in enumerate(zip(scores, deltas, anchors, strict=True)):
            best = score.sort(descending=True, stable=True).indices[: self.config.candidates_per_level]
            boxes.append(clip(decode(anchor[best], delta[best]), size))
            kept_scores.append(score[best])
            levels.append(torch.full_like(best, level))
        box, score, group = torch.cat(boxes), torch.cat(kept_scores), torch.cat(levels)
        valid = has_area(box)
        box, score, group = box[valid], score[valid], group[valid]
        keep = nms_within(box, score, group, self.config.nms_iou)[: self.config.proposals]
        return Proposals(box[keep], score[keep])


class PlainBoxSelection(BoxSelection):
    """By NMS of every pair of RoI and class."""

    def _one_image(self, scores, deltas, proposals, size):
        region, label = (scores > self.config.score_threshold).nonzero(as_tuple=True)
        score = scores[region, label]
        boxes = clip(decode(proposals[region], deltas[region, label], self.config.delta_std), size)
        keep = nms_within(boxes, score, label, self.config.nms_iou)[: self.config.detections]
        return Instances(boxes=boxes[keep], scores=score[keep], labels=label[keep])


class PlainDenseSelection(DenseSelection):
    """By a sort of every pair of anchor and class of a level, and NMS of all that are left."""

    def _one_image(self, logits, deltas, anchors, size):
        boxes, scores, labels = [], [], []
        for level_scores, delta, anchor in zip((x.sigmoid() for x in logits), deltas, anchors, strict=True):
            place, label = (level_scores > self.config.score_threshold).nonzero(as_tuple=True)
            score = level_scores[place, label]
            best = score.sort(descending=True, stable=True).indices[: self.config.candidates_per_level]
            boxes.append(clip(decode(anchor[place[best]], delta[place[best]]), size))
            scores.append(score[best])
            labels.append(label[best])
        box, score, label = torch.cat(boxes), torch.cat(scores), torch.cat(labels)
        valid = has_area(box)
        box, score, label = box[valid], score[valid], label[valid]
        keep = nms_within(box, score, label, self.config.nms_iou)[: self.config.detections]
        return Instances(boxes=box[keep], scores=score[keep], labels=label[keep])


def maps(strides: tuple[int, ...], channels: int, spread: float, shift: float = 0.0) -> list[torch.Tensor]:
    """Head outputs in steps of an eighth, so that many scores are equal."""
    generator = torch.Generator().manual_seed(channels)
    return [
        (torch.randn(2, channels, 256 // stride, 256 // stride, generator=generator) * spread * 8).round() / 8 + shift
        for stride in strides
    ]


@pytest.mark.parametrize(
    ("scores", "most", "expected"),
    [
        ([0.5, 0.9, 0.5, 0.9, 0.1], 3, [1, 3, 0]),  # of the two halves, the first
        ([0.5, 0.9], 3, [1, 0]),
        ([], 3, []),
        ([0.2, float("nan"), 0.3], 2, [1, 2]),  # as a sort has it
    ],
)
def test_the_best_come_first_and_equals_in_their_order(scores: list[float], most: int, expected: list[int]) -> None:
    assert best_first(torch.tensor(scores), most).tolist() == expected


@pytest.mark.parametrize("most", [1, 3, 20, 500])
def test_nms_of_as_many_as_are_wanted_keeps_the_first_of_all(most: int) -> None:
    generator = torch.Generator().manual_seed(most)
    corners = torch.rand(400, 2, generator=generator) * 50
    boxes = torch.cat((corners, corners + 20 + 30 * torch.rand(400, 2, generator=generator)), dim=1)
    scores = (torch.rand(400, generator=generator) * 50).round() / 50
    groups = torch.randint(3, (400,), generator=generator)
    every = nms_within(boxes, scores, groups, 0.5)
    assert len(every) > 20
    assert nms_within(boxes, scores, groups, 0.5, most).tolist() == every[:most].tolist()


@pytest.mark.parametrize("candidates", [50, 2000])
def test_the_proposals_are_the_plain_ones(candidates: int) -> None:
    config = dataclasses.replace(TWO_STAGE.rpn, candidates_per_level=candidates, proposals=300)
    strides = config.anchors.strides
    outputs = (maps(strides, 3, 2.0), maps(strides, 12, 0.5), SIZES)
    for plain, quick in zip(PlainProposalSelection(config)(*outputs), ProposalSelection(config)(*outputs), strict=True):
        assert len(plain.boxes) > 100
        assert torch.equal(plain.boxes, quick.boxes)
        assert torch.equal(plain.scores, quick.scores)


@pytest.mark.parametrize("shift", [0.0, -4.0, -50.0])
@pytest.mark.slow
def test_the_detections_of_a_dense_head_are_the_plain_ones(shift: float) -> None:
    """Of all pairs, of few and of none over the threshold."""
    config = dataclasses.replace(DENSE.head, candidates_per_level=200)
    strides = config.anchors.strides
    outputs = (maps(strides, 9 * 5, 1.0, shift), maps(strides, 36, 0.3), SIZES)
    found = zip(PlainDenseSelection(config, 5)(*outputs), DenseSelection(config, 5)(*outputs), strict=True)
    for plain, quick in found:
        assert len(plain) == (0 if shift == -50 else config.detections)
        assert torch.equal(plain.labels, quick.labels)
        torch.testing.assert_close(plain.boxes, quick.boxes)
        torch.testing.assert_close(plain.scores, quick.scores)


@pytest.mark.parametrize("spread", [0.1, 4.0])
def test_the_detections_of_regions_are_the_plain_ones(spread: float) -> None:
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(120, 2, generator=generator) * 150
    proposals = torch.cat((corners, corners + 10 + 90 * torch.rand(120, 2, generator=generator)), dim=1)
    logits = (torch.randn(120, 9, generator=generator) * spread * 4).round() / 4
    deltas = torch.randn(120, 8, 4, generator=generator)
    outputs = (logits, deltas, proposals.split([70, 50]), SIZES)
    config = dataclasses.replace(TWO_STAGE.box, detections=40)
    for plain, quick in zip(PlainBoxSelection(config)(*outputs), BoxSelection(config)(*outputs), strict=True):
        assert len(plain) == 40
        for name in ("boxes", "scores", "labels"):
            assert torch.equal(getattr(plain, name), getattr(quick, name))
