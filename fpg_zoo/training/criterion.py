"""The losses of the published training schedule (mmdetection's names), from images and ground truth.

Legend: N images, A anchors over all levels, R sampled RoIs, C classes. Deltas and boxes: see `structures.boxes`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fpg_zoo.config.training import RoISampling
from fpg_zoo.errors import ConfigError
from fpg_zoo.modeling.detectors import Detector, RetinaNet, TwoStageDetector
from fpg_zoo.modeling.heads.anchors import anchors_like, anchors_within, per_anchor
from fpg_zoo.modeling.heads.roi_align import boxes_to_rois
from fpg_zoo.modeling.heads.rpn import ProposalSelection
from fpg_zoo.modeling.preprocess import padded_size
from fpg_zoo.training.matching import Matcher, Sampler
from fpg_zoo.training.targets import Targets, encode, masks_in, parse_targets

Sizes = Sequence[tuple[int, int]]

_RPN_MATCHER = Matcher(positive=0.7, negative=0.3, allow_low_quality=0.3)
_RPN_SAMPLER = Sampler(number=256, positive_fraction=0.5)
_POSITIVE_REGIONS = 0.25  # of those sampled for the box head, at most
_DENSE_MATCHER = Matcher(positive=0.5, negative=0.5, allow_low_quality=0.0)


class Criterion(nn.Module):
    """A detector with its training losses. What is summed over the batch is divided by the batch's own counts.

    The backbone's stem and first stages are frozen as the schedule has it: their parameters take no gradient, and their
    BatchNorms stay in eval mode whatever the mode of the rest.

    Args:
        model: a `TwoStageDetector` or `RetinaNet`; it is trained in place.
        sample_all: use every anchor and proposal in place of a random sample.
        frozen_stages: backbone stages that are not trained, with the stem; 0..4 of a ResNet. 0 trains the stem, too, as
            training from scratch needs it.
        sampling: of RoIs; the published schedule's by default.

    Raises:
        ConfigError: the backbone has not so many stages, or does not know where its own end.
        TypeError: the detector's class has no losses.
    """

    def __init__(
        self,
        model: Detector,
        *,
        sample_all: bool = False,
        frozen_stages: int = 1,
        sampling: RoISampling | None = None,
    ) -> None:
        super().__init__()
        stem, *stages = model.backbone.stages() if frozen_stages else [[]]
        if not 0 <= frozen_stages <= len(stages):
            raise ConfigError(
                f"frozen_stages={frozen_stages}: the backbone has {len(stages)} stages; freeze 0 to {len(stages)}"
            )
        if type(model) not in _LOSSES:
            raise TypeError(f"{type(model).__name__} is no detector that has a published schedule")
        self.model = model
        frozen = [stem, *stages[:frozen_stages]] if frozen_stages else []
        self._frozen = [part for parts in frozen for part in parts]
        for part in self._frozen:
            part.requires_grad_(False)
        self._losses = _LOSSES[type(model)](model, sample_all, sampling or RoISampling())

    def forward(
        self,
        images: Tensor,
        sizes: Sizes,
        targets: Sequence[Mapping[str, Tensor]],
        *,
        padded_sizes: Sizes | None = None,
    ) -> dict[str, Tensor]:
        """Compute the losses.

        Args:
            images: (N, 3, H, W), as `Detector.detect` takes them.
            sizes: N (height, width) in pixels before padding.
            targets: for each image `boxes` (G, 4) xyxy in pixels of the padded batch, each with an area, and `labels`
                (G,), 0-based. With a mask head also `masks` (G, H', W') bool in the same frame. `has_mask` (G,) bool
                says which objects have one; without it all do. An object without one is learned by its box alone: what
                is given of its mask is not looked at. Without `has_mask` all have one. G may be 0. Crowds are no ground
                truth: leave them out.
            padded_sizes: N (height, width) in pixels within which an image has anchors. None: the least multiples of
                the model's divisor that hold each image, as mmdetection 3.3.0 has it, whatever the batch is padded to.

        Returns:
            Scalars to be added: `loss_rpn_cls`, `loss_rpn_bbox`, `loss_cls`, `loss_bbox` and with a mask head
            `loss_mask`; for RetinaNet `loss_cls`, `loss_bbox`.

        Raises:
            ValueError: targets that do not fit, with the image's index; or not as many sizes as images.
        """
        if padded_sizes is None:
            divisor = self.model.config.preprocess.pad_divisor
            padded_sizes = [padded_size(height, width, divisor) for height, width in sizes]
        if not len(sizes) == len(padded_sizes) == len(images):
            raise ValueError(
                f"{len(sizes)} sizes and {len(padded_sizes)} padded sizes for {len(images)} images: give one for each"
            )
        for part in self._frozen:
            part.eval()
        model = self.model
        parsed = parse_targets(
            targets,
            images=len(images),
            classes=len(model.class_names),
            masks=model.config.has_masks,
            device=images.device,
        )
        pyramid = model.neck(model.backbone(images))
        losses: dict[str, Tensor] = self._losses(pyramid, sizes, padded_sizes, parsed)
        return losses


class _TwoStageLosses:
    def __init__(self, model: TwoStageDetector, sample_all: bool, sampling: RoISampling) -> None:
        self.model = model
        box_sampler = Sampler(number=sampling.rois, positive_fraction=_POSITIVE_REGIONS)
        self.rpn_sampler, self.box_sampler = (
            dataclasses.replace(sampler, number=None) if sample_all else sampler
            for sampler in (_RPN_SAMPLER, box_sampler)
        )
        # Mask R-CNN's schedule also takes a ground truth's best proposal, if it overlaps by half.
        self.box_matcher = Matcher(
            positive=0.5, negative=0.5, allow_low_quality=0.5 if model.mask_head is not None else None
        )
        self.select_proposals = ProposalSelection(
            dataclasses.replace(model.config.rpn, candidates_per_level=sampling.candidates_per_level)
        )

    def __call__(
        self, pyramid: Sequence[Tensor], sizes: Sizes, padded_sizes: Sizes, targets: Sequence[Targets]
    ) -> dict[str, Tensor]:
        objectness, deltas = self.model.rpn(pyramid)
        losses = self._rpn_losses(objectness, deltas, padded_sizes, targets)
        with torch.no_grad():
            proposals = [matched.boxes for matched in self.select_proposals(objectness, deltas, sizes)]
            sampled = [self._sampled(boxes, target) for boxes, target in zip(proposals, targets, strict=True)]
        losses |= self._box_losses(pyramid, sampled, targets)
        if self.model.mask_head is not None:
            losses["loss_mask"] = self._mask_loss(pyramid, sampled, targets)
        return losses

    def _rpn_losses(
        self, objectness: Sequence[Tensor], deltas: Sequence[Tensor], padded_sizes: Sizes, targets: Sequence[Targets]
    ) -> dict[str, Tensor]:
        config = self.model.config.rpn.anchors
        all_anchors = torch.cat(anchors_like(objectness, config))
        scores = torch.cat([per_anchor(x, 1).squeeze(-1) for x in objectness], dim=1)  # (N, A)
        moves = torch.cat([per_anchor(x, 4) for x in deltas], dim=1)  # (N, A, 4)
        loss_cls, loss_bbox, count = zero_loss(scores), zero_loss(moves), 0
        for score, move, size, target in zip(scores, moves, padded_sizes, targets, strict=True):
            inside = anchors_within(objectness, config, size)
            score, move, anchors = score[inside], move[inside], all_anchors[inside]
            match = _RPN_MATCHER(anchors, target.boxes)
            positive, negative = self.rpn_sampler(match)
            chosen = torch.cat((positive, negative))
            loss_cls = loss_cls + binary_cross_entropy(score[chosen], match[chosen] >= 0)
            loss_bbox = loss_bbox + l1_loss(move[positive], encode(anchors[positive], target.boxes[match[positive]]))
            # As the reference counts, which divides by one of either kind at least.
            count += max(len(positive), 1) + max(len(negative), 1)
        return {"loss_rpn_cls": loss_cls / count, "loss_rpn_bbox": loss_bbox / count}

    def _sampled(self, proposals: Tensor, target: Targets) -> tuple[Tensor, Tensor, int]:
        """RoIs chosen of one image, the positive ones first; their matches, -1 for none; number of positive ones."""
        boxes = torch.cat((target.boxes, proposals))
        # The truths join after the matching: among the proposals, each would be the best that it has itself.
        own = torch.arange(len(target.boxes), device=boxes.device)
        match = torch.cat((own, self.box_matcher(proposals, target.boxes)))
        positive, negative = self.box_sampler(match)
        chosen = torch.cat((positive, negative))
        return boxes[chosen], match[chosen], len(positive)

    def _box_losses(
        self, pyramid: Sequence[Tensor], sampled: Sequence[tuple[Tensor, Tensor, int]], targets: Sequence[Targets]
    ) -> dict[str, Tensor]:
        logits, deltas = self.model.box_head(pyramid, boxes_to_rois([boxes for boxes, _, _ in sampled]))
        background = logits.shape[1] - 1
        labels, target_deltas = [], []
        for (boxes, match, positives), target in zip(sampled, targets, strict=True):
            matched = match[:positives]
            label = torch.full_like(match, background)
            label[:positives] = target.labels[matched]
            labels.append(label)
            std = self.model.config.box.delta_std
            target_deltas.append(encode(boxes[:positives], target.boxes[matched], std))
        label = torch.cat(labels)
        positive = (label != background).nonzero().squeeze(1)
        count = max(len(label), 1)
        loss_cls = cross_entropy(logits, label)
        loss_bbox = l1_loss(deltas[positive, label[positive]], torch.cat(target_deltas)) + zero_loss(deltas)
        return {"loss_cls": loss_cls / count, "loss_bbox": loss_bbox / count}

    def _mask_loss(
        self, pyramid: Sequence[Tensor], sampled: Sequence[tuple[Tensor, Tensor, int]], targets: Sequence[Targets]
    ) -> Tensor:
        head = self.model.mask_head
        assert head is not None
        rois, matches = [], []
        for (boxes, match, positives), target in zip(sampled, targets, strict=True):
            positive_boxes, matched = boxes[:positives], match[:positives]
            if target.has_mask is not None:
                known = target.has_mask[matched]
                positive_boxes, matched = positive_boxes[known], matched[known]
            rois.append(positive_boxes)
            matches.append(matched)
        if not any(len(positive_boxes) for positive_boxes in rois):
            return zero_loss(*head.parameters())  # BatchNorm has no use for an empty batch
        logits = head(pyramid, boxes_to_rois(rois))
        labels, masks = [], []
        for positive_boxes, matched, target in zip(rois, matches, targets, strict=True):
            assert target.masks is not None
            if len(positive_boxes):
                labels.append(target.labels[matched])
                masks.append(masks_in(positive_boxes, target.masks, matched, logits.shape[-1]))
        seen = logits[torch.arange(len(logits), device=logits.device), torch.cat(labels)]
        missed: Tensor = binary_cross_entropy(seen, torch.cat(masks)) / seen.numel()
        return missed


class _DenseLosses:
    """RetinaNet's, on every anchor: there is nothing to sample."""

    def __init__(self, model: RetinaNet, _sample_all: bool, _sampling: RoISampling) -> None:
        self.model = model

    def __call__(
        self, pyramid: Sequence[Tensor], sizes: Sizes, padded_sizes: Sizes, targets: Sequence[Targets]
    ) -> dict[str, Tensor]:
        logits, deltas = self.model.head(pyramid)
        classes = len(self.model.class_names)
        config = self.model.config.head.anchors
        all_anchors = torch.cat(anchors_like(logits, config))
        scores = torch.cat([per_anchor(x, classes) for x in logits], dim=1)  # (N, A, C)
        moves = torch.cat([per_anchor(x, 4) for x in deltas], dim=1)  # (N, A, 4)
        loss_cls, loss_bbox, count = zero_loss(scores), zero_loss(moves), 0
        for score, move, size, target in zip(scores, moves, padded_sizes, targets, strict=True):
            inside = anchors_within(logits, config, size)
            score, move, anchors = score[inside], move[inside], all_anchors[inside]
            match = _DENSE_MATCHER(anchors, target.boxes)
            positive = (match >= 0).nonzero().squeeze(1)
            matched = match[positive]
            one_hot = torch.zeros_like(score, dtype=torch.bool)
            one_hot[positive, target.labels[matched]] = True
            loss_cls = loss_cls + focal(score, one_hot)
            loss_bbox = loss_bbox + l1_loss(move[positive], encode(anchors[positive], target.boxes[matched]))
            count += max(len(positive), 1)
        return {"loss_cls": loss_cls / count, "loss_bbox": loss_bbox / count}


def binary_cross_entropy(logits: Tensor, positive: Tensor) -> Tensor:
    """Sum over elements; `positive` holds bools, or 0s and 1s, of the logits' shape."""
    return F.binary_cross_entropy_with_logits(logits.float(), positive.float(), reduction="sum")


def l1_loss(deltas: Tensor, target: Tensor) -> Tensor:
    """Sum of |deltas - wanted|."""
    return F.l1_loss(deltas.float(), target, reduction="sum")


def focal(logits: Tensor, positive: Tensor, *, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Sigmoid focal loss (Lin et al., arXiv 1708.02002), summed over elements.

    Args:
        logits: any shape.
        positive: bool, of that shape.
        alpha: weight of the positive elements; the negative ones have 1 - alpha.
        gamma: how much less an element counts that is classified well.
    """
    logits = logits.float()
    probability = logits.sigmoid()
    target = positive.to(logits)
    miss = (1 - probability) * target + probability * (1 - target)
    weight = (alpha * target + (1 - alpha) * (1 - target)) * miss.pow(gamma)
    return (F.binary_cross_entropy_with_logits(logits, target, reduction="none") * weight).sum()


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum over rows of (R, C) logits with (R,) int64 labels."""
    return F.cross_entropy(logits.float(), labels, reduction="sum")


def zero_loss(*outputs: Tensor) -> Tensor:
    """A zero that depends on the outputs, so that their parameters have gradients (of zero) on every process."""
    return torch.stack([output.float().sum() * 0 for output in outputs]).sum()


_Losses = Callable[[Sequence[Tensor], Sizes, Sizes, Sequence[Targets]], dict[str, Tensor]]
# By the detector's class, exactly that: a subclass may compute something else.
_LOSSES: dict[type[Detector], Callable[[Any, bool, RoISampling], _Losses]] = {
    TwoStageDetector: _TwoStageLosses,
    RetinaNet: _DenseLosses,
}
