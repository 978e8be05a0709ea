"""The detectors: backbone, neck, heads and the choice of detections, one line each.

Legend: N images (N, 3, H, W), RGB, normalized, zero-padded right and bottom; `sizes` their (height, width) before
padding. Boxes are xyxy in pixels of that frame, 0 <= x1 <= x2 <= width.
"""

from __future__ import annotations

import importlib
import itertools
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fpg_zoo.checkpoints.mmdet_names import NameTable
from fpg_zoo.checkpoints.safetensors_files import save
from fpg_zoo.config import DetectorConfig, RetinaNetConfig, TwoStageConfig
from fpg_zoo.modeling import without_waiting
from fpg_zoo.modeling.heads.retina_head import DenseSelection
from fpg_zoo.modeling.heads.roi_align import boxes_to_rois
from fpg_zoo.modeling.heads.roi_heads import BoxHead, BoxSelection, MaskHead, maps_of_class
from fpg_zoo.modeling.heads.rpn import RPN, ProposalSelection
from fpg_zoo.modeling.parts import Backbone, DenseHead, Neck, Part
from fpg_zoo.modeling.postprocess import to_detections
from fpg_zoo.structures import Detections, Instances, check_score
from fpg_zoo.text import printable

Sizes = Sequence[tuple[int, int]]


class Detector(nn.Module, ABC):
    """What all detectors share. `name` is the catalog's, "custom" for a config of one's own."""

    # The layers whose shape follows the number of classes, as prefixes of tensor names.
    class_dependent: tuple[str, ...]

    def __init__(self, config: DetectorConfig, backbone: Backbone, neck: Neck, name: str) -> None:
        super().__init__()
        self.config = config
        self.name = name
        self.backbone = backbone
        self.neck = neck

    def __repr__(self) -> str:
        """One line; the tree of modules is that of its parts, as `print(model.neck)`."""
        about = f"{len(self.class_names)} classes, {str(self.dtype).removeprefix('torch.')} on {self.device}"
        return f"{type(self).__name__}({printable(self.name)}, {about})"

    def __getstate__(self) -> dict[str, Any]:
        """What copies and pickles hold: not a compiled network, which would stay that of this object's weights."""
        state: dict[str, Any] = super().__getstate__()  # type: ignore[no-untyped-call]
        return {name: value for name, value in state.items() if name != "run_dense"}

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.config.class_names

    @property
    def device(self) -> torch.device:
        """Where the parameters are, and images are to be."""
        return self._any_weight().device

    @property
    def dtype(self) -> torch.dtype:
        """The floating-point type of the parameters, and of images."""
        return self._any_weight().dtype

    def _any_weight(self) -> Tensor:
        # Inference forms keep their weights in buffers.
        return next(itertools.chain(self.backbone.parameters(), self.backbone.buffers()))

    @property
    def mmdet_tables(self) -> dict[str, NameTable | None]:
        """The names of each part's tensors in mmdetection's files, by the part; None for a part that it has not."""
        return {name: part.mmdet_names for name, part in self.named_children() if isinstance(part, Part)}

    def save_pretrained(self, target: str | Path) -> None:
        """Write the model so that `create_model("local-dir:" + target)` builds it again.

        Args:
            target: a folder, made if need be, for `model.safetensors` and `config.json`; or a path ending in
                `.safetensors`, for one file that describes itself and `create_model(checkpoint=target)` reads.

        Raises:
            StorageError: it cannot be written; what was there before is kept.
        """
        save(self.state_dict(), self.config, self.name, os.path.expanduser(target), {})

    @abstractmethod
    def reset_classes(self) -> None:
        """Initialise the layers whose size follows the number of classes (`class_dependent`) for training."""

    @abstractmethod
    def forward(self, images: Tensor, sizes: Sizes) -> list[Instances]:
        """Find instances: what `detect` does after its checks and before pasting masks.

        Args:
            images: (N, 3, H, W), as of `detect`.
            sizes: N (height, width) in pixels before padding.

        Returns:
            Each image's instances, best first, in pixels of the padded batch; mask maps not yet pasted.
        """

    @abstractmethod
    def run_dense(self, images: Tensor) -> tuple[Sequence[Tensor], ...]:
        """Run what comes before any choice of boxes: backbone, neck and dense head, whose sizes depend on no value.

        Args:
            images: (N, 3, H, W), as of `detect`.

        Returns:
            Per level the head's scores and deltas, after a two-stage detector's pyramid.
        """

    @abstractmethod
    def run_layers(self, images: Tensor) -> None:
        """Run every layer once, for as many RoIs as the config allows; what costs are counted by.

        Args:
            images: (N, 3, H, W), as of `detect`; the meta device will do.
        """

    @torch.no_grad()
    def detect(
        self, images: Tensor, sizes: Sizes, output_sizes: Sizes | None = None, *, score: float = 0.0
    ) -> list[Detections]:
        """Detect objects in a batch.

        Args:
            images: (N, 3, H, W) float32 or of the model's `dtype`, which they are cast to, on its `device`, RGB,
                normalized and padded as `config.preprocess` says; H and W multiples of
                `config.preprocess.pad_divisor`.
            sizes: N (height, width) in pixels before padding.
            output_sizes: N (height, width) in pixels of the frame that boxes and masks are wanted in; `sizes` if None.
            score: the least score, 0..1. Masks of what is below it are not made: each takes a byte for every pixel of
                its frame.

        Returns:
            N `Detections`, best score first, at most as many each as the config's `detections`, on the model's device.
            Boxes and masks are in pixels of `output_sizes`.

        Raises:
            ValueError: the model is in train mode, where BatchNorm would follow the images at hand; shapes, dtype,
                device, sizes or `score` are not as above, or a value is not finite.
        """
        if self.training:
            raise ValueError("the model is in train mode: call model.eval() first")
        check_score(score)
        self._check(images, sizes)
        out_sizes = sizes if output_sizes is None else output_sizes
        if len(out_sizes) != len(sizes) or any(height < 1 or width < 1 for height, width in out_sizes):
            raise ValueError(f"output_sizes={list(out_sizes)}: give one (height, width) of at least 1 for each image")
        if not len(images):
            return []
        found, finite = self._find(images.to(self.dtype), sizes, images.isfinite().all())
        if not finite:
            raise ValueError("images holds NaN or infinite values: look at what made them")
        return [
            to_detections(_above(instances, score), size, output_size, self.class_names)
            for instances, size, output_size in zip(found, sizes, out_sizes, strict=True)
        ]

    def _find(self, images: Tensor, sizes: Sizes, flag: Tensor) -> tuple[list[Instances], bool]:
        """What `forward` gives, and what `flag`, () bool, is; nothing else where that is False and looked at first."""
        is_set = bool(flag)
        return (self(images, sizes) if is_set else []), is_set

    def _check(self, images: Tensor, sizes: Sizes) -> None:
        divisor = self.config.preprocess.pad_divisor
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images has shape {tuple(images.shape)}: it takes (N, 3, H, W)")
        if not images.is_floating_point():
            raise ValueError(
                f"images is {images.dtype}: normalise it first (fpg_zoo.modeling.preprocess) or use fpg_zoo.Predictor"
            )
        if images.dtype not in (self.dtype, torch.float32) or images.device != self.device:
            raise ValueError(
                f"images is {images.dtype} on {images.device} and the model {self.dtype} on {self.device}: "
                "move one of them with .to()"
            )
        height, width = images.shape[-2:]
        if height % divisor or width % divisor or not height or not width:
            raise ValueError(f"images are {height}x{width}: pad height and width to a multiple of {divisor}")
        if len(sizes) != len(images):
            raise ValueError(f"{len(sizes)} sizes for {len(images)} images: give one (height, width) for each")
        for size in sizes:
            if not (0 < size[0] <= height and 0 < size[1] <= width):
                raise ValueError(f"size {tuple(size)} does not lie within the padded images of {height}x{width}")


def _above(instances: Instances, score: float) -> Instances:
    """Those with at least this score."""
    return instances if score == 0 else instances[instances.scores >= score]


class TwoStageDetector(Detector):
    """Faster R-CNN (Ren et al., arXiv 1506.01497) and, with a mask head, Mask R-CNN (He et al., arXiv 1703.06870)."""

    config: TwoStageConfig
    class_dependent = ("box_head.classes.", "box_head.deltas.", "mask_head.classes.")

    def __init__(self, config: TwoStageConfig, backbone: Backbone, neck: Neck, name: str) -> None:
        super().__init__(config, backbone, neck, name)
        width, classes = self.neck.out_channels, len(config.class_names)
        strides = config.rpn.anchors.strides[: config.roi_levels]
        self.rpn = RPN(config.rpn, width)
        self.select_proposals = ProposalSelection(config.rpn)
        self.box_head = BoxHead(config.box, width, classes, strides)
        self.select_boxes = BoxSelection(config.box)
        self.mask_head = MaskHead(config.mask, width, classes, strides) if config.mask else None

    def reset_classes(self) -> None:
        self.box_head.reset_classes()
        if self.mask_head is not None:
            self.mask_head.reset_classes()

    def forward(self, images: Tensor, sizes: Sizes) -> list[Instances]:
        if without_waiting.suits(self.config, images.device):
            return self._find(images, sizes, torch.ones((), dtype=torch.bool, device=images.device))[0]
        pyramid, objectness, deltas = self.run_dense(images)
        proposals = [instance.boxes for instance in self.select_proposals(objectness, deltas, sizes)]
        logits, refinements = self.box_head(pyramid, boxes_to_rois(proposals))
        instances = self.select_boxes(logits, refinements, proposals, sizes)
        return instances if self.mask_head is None else self._with_masks(self.mask_head, pyramid, instances)

    def _find(self, images: Tensor, sizes: Sizes, flag: Tensor) -> tuple[list[Instances], bool]:
        if not without_waiting.suits(self.config, images.device):
            return super()._find(images, sizes, flag)
        pyramid, objectness, deltas = self.run_dense(images)
        regions = without_waiting.choose_proposals(objectness, deltas, sizes, self.config)
        chosen = without_waiting.run_box_head(self.box_head, pyramid, regions, sizes, self.config)
        return without_waiting.finish(chosen, self.mask_head, pyramid, flag)

    def run_dense(self, images: Tensor) -> tuple[Sequence[Tensor], ...]:
        pyramid = self.neck(self.backbone(images))
        return pyramid, *self.rpn(pyramid)

    def run_layers(self, images: Tensor) -> None:
        pyramid = self.run_dense(images)[0]
        channels = pyramid[0].shape[1]
        heads = ((self.box_head, self.config.rpn.proposals), (self.mask_head, self.config.box.detections))
        for head, count in heads:
            if head is not None:
                side = head.pooling.pool
                head.predict(images.new_empty(len(images) * count, channels, side, side))

    @staticmethod
    def _with_masks(head: MaskHead, pyramid: Sequence[Tensor], instances: list[Instances]) -> list[Instances]:
        counts = [len(instance) for instance in instances]
        if not any(counts):  # not every device has convolutions of an empty batch
            side = 2 * head.pooling.pool
            return [replace(instance, mask_maps=instance.boxes.new_zeros(0, side, side)) for instance in instances]
        logits = head(pyramid, boxes_to_rois([instance.boxes for instance in instances]))
        maps = torch.split(maps_of_class(logits, torch.cat([instance.labels for instance in instances])), counts)
        return [replace(instance, mask_maps=image_maps) for instance, image_maps in zip(instances, maps, strict=True)]


class RetinaNet(Detector):
    """RetinaNet (Lin et al., arXiv 1708.02002)."""

    config: RetinaNetConfig

    def __init__(self, config: RetinaNetConfig, backbone: Backbone, neck: Neck, head: DenseHead, name: str) -> None:
        super().__init__(config, backbone, neck, name)
        self.head = head
        self.class_dependent = tuple(f"head.{layer}." for layer in head.class_layers)
        self.select = DenseSelection(config.head, len(config.class_names))

    def reset_classes(self) -> None:
        self.head.reset_classes()

    def forward(self, images: Tensor, sizes: Sizes) -> list[Instances]:
        if without_waiting.suits(self.config, images.device):
            return self._find(images, sizes, torch.ones((), dtype=torch.bool, device=images.device))[0]
        logits, deltas = self.run_dense(images)
        return self.select(logits, deltas, sizes)

    def _find(self, images: Tensor, sizes: Sizes, flag: Tensor) -> tuple[list[Instances], bool]:
        if not without_waiting.suits(self.config, images.device):
            return super()._find(images, sizes, flag)
        logits, deltas = self.run_dense(images)
        return without_waiting.choose_dense(logits, deltas, sizes, self.config, flag)

    def run_dense(self, images: Tensor) -> tuple[Sequence[Tensor], ...]:
        logits, deltas = self.head(self.neck(self.backbone(images)))
        return logits, deltas

    def run_layers(self, images: Tensor) -> None:
        self.run_dense(images)


def __getattr__(name: str) -> Any:
    if name != "build_detector":  # which was here, and other people's code imports it from here
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module("fpg_zoo.modeling.build").build_detector
