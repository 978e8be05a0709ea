"""All ten architectures against the reference's outputs, stored in tests/golden, from equal weights and inputs.

Tolerances. The same arithmetic in fp32 on another processor, thread count or torch may round differently; after some
hundred layers that is around 1e-6 relative. Nothing but rounding is to pass:
"""

from __future__ import annotations

from dataclasses import dataclass

import golden_weights
import numpy as np
import pytest
import torch
from conftest import GOLDEN, PUBLISHED, golden_model
from torch import Tensor
from torchvision.ops import box_iou

from fpg_zoo.modeling.detectors import Detector, TwoStageDetector
from fpg_zoo.structures import Detections

MAP_RELATIVE_L2 = 1e-5  # ten times what rounding costs
SAME_BOX_IOU = 0.999  # a 1000th of the area: rounding moves a corner by less
SAME_SCORE = 1e-4
PROPOSALS_MATCHED = 199  # of 200: one may fall on the other side of the NMS threshold
DETECTIONS_MATCHED = 99  # of 100, likewise
MASK_AREA = 0.005  # relative: pixels that lie on the threshold
MASK_IOU = 0.99

IMAGES, SIZES = (2, 3, 256, 384), [(250, 375)] * 2

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Case:
    """One architecture's outputs beside the reference's."""

    name: str
    model: Detector
    maps: dict[str, Tensor]
    found: list[Detections]
    expected: dict[str, Tensor]


# Of module scope, so that pytest runs all tests of one architecture in a row and computes its outputs once.
@pytest.fixture(scope="module", params=PUBLISHED)
def case(request: pytest.FixtureRequest) -> Case:
    name = request.param
    model, images = golden_model(name), golden_weights.image(IMAGES)
    two_stage = isinstance(model, TwoStageDetector)
    with torch.no_grad():
        stages = model.backbone(images)
        pyramid = model.neck(stages)
        scores, deltas = model.rpn(pyramid) if two_stage else model.head(pyramid)
    kinds = {"c": stages, "p": pyramid}
    kinds |= {"rpn_cls": scores, "rpn_reg": deltas} if two_stage else {"cls": scores, "reg": deltas}
    first = {"c": 2}  # C2 is the finest stage
    maps = {
        f"{kind}{i + first.get(kind, 0)}": level for kind, levels in kinds.items() for i, level in enumerate(levels)
    }
    with np.load(GOLDEN / f"{name}.npz") as file:
        expected = {key: torch.from_numpy(file[key]) for key in file.files}
    return Case(name, model, maps, model.detect(images, SIZES), expected)


def matched(boxes: Tensor, scores: Tensor, expected: dict[str, Tensor], key: str, same: Tensor | None = None) -> int:
    """How many of the expected boxes have one of ours that is the same."""
    pairs = box_iou(expected[f"{key}.boxes"], boxes) > SAME_BOX_IOU
    pairs &= (expected[f"{key}.scores"][:, None] - scores[None]).abs() < SAME_SCORE
    if same is not None:
        pairs &= same
    return int(pairs.any(dim=1).sum())


def test_every_map_equals_the_reference(case: Case) -> None:
    sampled = {
        key for key in case.expected if key.rstrip("0123456789") in ("c", "p", "rpn_cls", "rpn_reg", "cls", "reg")
    }
    assert sampled == set(case.maps)
    errors = {}
    for key, level in case.maps.items():
        flat = level.flatten()
        samples = flat[torch.linspace(0, flat.numel() - 1, min(512, flat.numel())).long()]
        errors[key] = float((samples - case.expected[key]).norm() / case.expected[key].norm())
    assert max(errors.values()) < MAP_RELATIVE_L2, errors
    for level in range(5):
        assert tuple(case.maps[f"p{level}"].shape) == tuple(case.expected[f"p{level}.shape"].tolist())


def test_proposals_equal_the_reference(case: Case) -> None:
    if not isinstance(case.model, TwoStageDetector):
        return  # RetinaNet has none, and its golden file none either
    scores, deltas = ([case.maps[f"rpn_{kind}{level}"] for level in range(5)] for kind in ("cls", "reg"))
    for image, proposals in enumerate(case.model.select_proposals(scores, deltas, SIZES)):
        key = f"proposals{image}"
        assert len(proposals.boxes) == int(case.expected[f"{key}.count"])
        # Ours a little beyond the first 200, as equal scores have no order.
        assert matched(proposals.boxes[:220], proposals.scores[:220], case.expected, key) >= PROPOSALS_MATCHED


def test_detections_equal_the_reference(case: Case) -> None:
    for image, detections in enumerate(case.found):
        key = f"det{image}"
        same_label = case.expected[f"{key}.labels"][:, None] == detections.labels[None]
        assert len(detections) == len(case.expected[f"{key}.boxes"])
        assert matched(detections.boxes, detections.scores, case.expected, key, same_label) >= DETECTIONS_MATCHED


def test_masks_equal_the_reference(case: Case) -> None:
    for image, detections in enumerate(case.found):
        key, masks = f"det{image}", detections.masks
        assert (masks is not None) == (f"{key}.mask_areas" in case.expected)
        if masks is None:
            continue
        same = box_iou(case.expected[f"{key}.boxes"], detections.boxes) > SAME_BOX_IOU
        same &= case.expected[f"{key}.labels"][:, None] == detections.labels[None]
        assert int(same.any(dim=1).sum()) >= DETECTIONS_MATCHED
        ours = same.int().argmax(dim=1)
        areas = masks.flatten(1).sum(1)[ours]
        wanted = case.expected[f"{key}.mask_areas"]
        assert int(((areas - wanted).abs() / wanted.clamp(min=1) <= MASK_AREA).sum()) >= DETECTIONS_MATCHED
        _, height, width = case.expected[f"{key}.masks_shape"].tolist()
        bits = np.unpackbits(case.expected[f"{key}.masks_packed"].numpy())[: 10 * height * width]
        first_ten = torch.from_numpy(bits.reshape(10, height, width)).bool()
        common = (first_ten & masks[ours[:10]]).flatten(1).sum(1)
        either = (first_ten | masks[ours[:10]]).flatten(1).sum(1)
        assert bool((common > MASK_IOU * either).all())
