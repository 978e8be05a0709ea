"""A detector's forward as a graph: tensors in and out, and no size that depends on their values.

Legend: N images, D the most detections of an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fpg_zoo.errors import ExportError
from fpg_zoo.inference.exported.preprocess import to_canvas
from fpg_zoo.inference.exported.roi_align import RoIAlign, pooled
from fpg_zoo.inference.exported.suppression import Suppression
from fpg_zoo.inference.optimized.detectors import InferenceForm
from fpg_zoo.modeling.detectors import Detector, RetinaNet, TwoStageDetector
from fpg_zoo.modeling.heads.fixed_selection import (
    Chosen,
    Ways,
    by_topk,
    dense_detections,
    proposals,
    roi_detections,
)
from fpg_zoo.modeling.heads.roi_align import MultiLevelRoIAlign
from fpg_zoo.modeling.postprocess import paste_masks


@dataclass(frozen=True)
class Operators:
    """What a format has operators of its own for."""

    suppress: Suppression
    align: RoIAlign


class ExportedForm(nn.Module):
    """A detector with the choice of detections in tensors of fixed sizes.

    Args:
        model: in eval mode.
        operators: of the format that it is written in.
        canvas: (H, W) of the network's input; given, it takes images as they are, and resizes them to it.
        paste: give masks in the frame of `images` beside their maps.
    """

    def __init__(
        self, model: Detector, operators: Operators, *, canvas: tuple[int, int] | None = None, paste: bool = False
    ) -> None:
        super().__init__()
        self.model = model
        self.operators = operators
        self.canvas = canvas
        self.paste = paste
        self._ways = Ways(self._suppressed, by_topk)

    @property
    def output_names(self) -> tuple[str, ...]:
        """What `forward` gives."""
        masks = ("mask_maps", "masks") if self.paste else ("mask_maps",)
        return ("num_detections", "boxes", "scores", "labels", *(masks if self.model.config.has_masks else ()))

    def forward(self, images: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
        """Detect objects.

        Args:
            images: (N, 3, H, W) float32, otherwise as of `Detector.detect`; or with a canvas (N, 3, h, w) uint8 RGB of
                any size.
            sizes: (N, 2) int64, height and width before padding; None with a canvas.

        Returns:
            As `output_names` has them: numbers of detections (N,) int64; boxes (N, D, 4) xyxy in pixels of `images`;
            scores (N, D); labels (N, D) int64; of a model with masks, maps (N, D, S, S) of probabilities over the
            boxes, and masks (N, D, height, width) bool. Best first; beyond the number of detections boxes are zeros,
            scores and labels -1.
        """
        height, width = images.shape[-2:]
        if self.canvas is not None:
            images, sizes = to_canvas(images, self.canvas, self.model.config.preprocess)
        assert sizes is not None
        found, maps = self._detect(images.to(self.model.dtype), sizes)
        boxes = found.boxes
        if self.canvas is not None:
            frame = torch.stack(
                [torch.full((), side, dtype=torch.float32, device=boxes.device) for side in (width, height)]
            ).repeat(2)
            scale = sizes[:, None].flip(2).repeat(1, 1, 2) / frame
            boxes = torch.minimum(boxes / scale, frame)
        outputs = ((found.scores >= 0).sum(1), boxes, found.scores, found.labels)
        if maps is None:
            return outputs
        return (*outputs, maps, paste_masks(maps, boxes, (height, width))) if self.paste else (*outputs, maps)

    def _detect(self, images: Tensor, sizes: Tensor) -> tuple[Chosen, Tensor | None]:
        pyramid = self.model.neck(self.model.backbone(images))
        if isinstance(self.model, RetinaNet):
            return self._dense(self.model, pyramid, sizes), None
        assert isinstance(self.model, TwoStageDetector)
        return self._two_stage(self.model, pyramid, sizes)

    def _dense(self, model: RetinaNet, pyramid: Sequence[Tensor], sizes: Tensor) -> Chosen:
        logits, deltas = model.head(pyramid)
        classes = len(model.class_names)
        return dense_detections(logits, deltas, sizes, model.config.head, classes, self._ways)

    def _two_stage(
        self, model: TwoStageDetector, pyramid: Sequence[Tensor], sizes: Tensor
    ) -> tuple[Chosen, Tensor | None]:
        objectness, moves = model.rpn(pyramid)
        regions = proposals(objectness, moves, sizes, model.config.rpn, self._ways)
        logits, deltas = model.box_head.predict(self._pooled(model.box_head.pooling, pyramid, regions))
        found = roi_detections(logits, deltas, regions, sizes, model.config.box, self._ways)
        if model.mask_head is None:
            return found, None
        maps = model.mask_head.predict(self._pooled(model.mask_head.pooling, pyramid, found.boxes))
        side = maps.shape[-1]
        label = found.labels.clamp(min=0).flatten()[:, None, None, None].expand(-1, 1, side, side)
        return found, maps.gather(1, label).float().sigmoid().view(*found.labels.shape, side, side)

    def _suppressed(self, boxes: Tensor, scores: Tensor, iou: float, most: int) -> Tensor:
        rows = self.operators.suppress(boxes.flatten(0, 1), scores.flatten(0, 1), iou, most)
        return rows.view_as(scores)

    def _pooled(self, pooling: MultiLevelRoIAlign, pyramid: Sequence[Tensor], boxes: Tensor) -> Tensor:
        number, count = boxes.shape[:2]
        image = torch.arange(number, device=boxes.device).to(boxes)[:, None, None].expand(number, count, 1)
        rois = torch.cat((image, boxes), 2).flatten(0, 1)
        return pooled(pooling, pyramid, rois, self.operators.align)


def check_exportable(model: Detector) -> None:
    """Refuse what a graph cannot hold.

    Raises:
        ExportError: the model is in train mode, of another class than the zoo's, an inference form, or suppresses
            softly.
    """
    if isinstance(model, InferenceForm):
        raise ExportError(f"this {model.name} is an optimized form: export the model that it was made of")
    if not isinstance(model, (RetinaNet, TwoStageDetector)):
        raise ExportError(f"{type(model).__name__}: it is neither a RetinaNet nor a two-stage detector of the zoo")
    if model.training:
        raise ExportError(f"{model.name} is in train mode: call model.eval() first")
    head = model.config.box if isinstance(model, TwoStageDetector) else model.config.head
    if head.soft_nms is not None:
        raise ExportError(
            f"soft_nms={head.soft_nms.method}: a graph has plain NMS only; build the model with soft_nms=None"
        )
