"""What backbones, necks and heads have in common: what the rest of the package asks of a part, the part says itself."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from fpg_zoo.checkpoints.mmdet_names import NameTable


class Part(nn.Module):
    """A backbone, a neck or a head.

    Attributes:
        mmdet_names: the names of its tensors in mmdetection's files, as `checkpoints.mmdet_names` has them. None for a
            part that mmdetection has not: its detectors cannot be converted to such files or from them.
    """

    mmdet_names: NameTable | None = None


class Backbone(Part):
    """Images to feature maps, one for each stage.

    `forward`: (N, 3, H, W) to a sequence of (N, channels[i], H / strides[i], W / strides[i]), fine to coarse, sizes
    rounded up.

    Attributes:
        channels: of each stage.
    """

    channels: Sequence[int]

    def stages(self) -> list[list[nn.Module]]:
        """What is frozen together: first the stem, then the modules of each stage, fine to coarse."""
        raise NotImplementedError(f"{type(self).__name__} does not say what its stages are: define stages()")

    def forward(self, images: Tensor) -> Sequence[Tensor]:
        raise NotImplementedError


class Neck(Part):
    """The backbone's feature maps to a pyramid.

    `forward`: a map for each stage of the backbone to `levels` maps (N, out_channels, H_l, W_l), fine to coarse.

    Attributes:
        out_channels: channels of every output level.
    """

    out_channels: int

    def segments(self) -> list[nn.Module]:
        """What activation checkpointing computes again, each from its inputs; none where it is of no use."""
        return []

    def forward(self, stages: Sequence[Tensor]) -> Sequence[Tensor]:
        raise NotImplementedError


class DenseHead(Part):
    """The head of a RetinaNet.

    `forward`: maps (N, W, H_l, W_l) to (logits, deltas), lists of (N, A * C, H_l, W_l) and (N, A * 4, H_l, W_l),
    anchor-major.

    Attributes:
        class_layers: its layers whose size follows the number of classes, by their names in it.
    """

    class_layers: tuple[str, ...] = ("classes",)

    def reset_classes(self) -> None:
        """Initialise the layers whose size follows the number of classes, for training."""
        raise NotImplementedError(f"{type(self).__name__} does not say how its classes begin: define reset_classes()")

    def forward(self, pyramid: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        raise NotImplementedError
