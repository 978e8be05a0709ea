"""Feature Pyramid Grids in torchvision's detectors: `python examples/torchvision_detectors.py`.

`fpg_zoo.features` takes the place of their FPN. A step of each is trained on noise here; put your own images and
targets in its place.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.models.detection import FasterRCNN, MaskRCNN, RetinaNet
from torchvision.ops import MultiScaleRoIAlign

import fpg_zoo

CLASSES = 3


def build(method: str) -> FasterRCNN | RetinaNet:
    """A detector of torchvision's on a Feature Pyramid Grid; `method` is `faster_rcnn`, `mask_rcnn` or `retinanet`."""
    # With pretrained_backbone=True it begins with ImageNet's weights.
    pyramid = fpg_zoo.features(f"{method}_fpg_chn128", backbone="resnet18")
    normalization = {"image_mean": pyramid.image_mean, "image_std": pyramid.image_std}
    if method == "retinanet":
        return RetinaNet(pyramid, num_classes=CLASSES, **normalization)
    pooled = {"box_roi_pool": MultiScaleRoIAlign(["0", "1", "2", "3"], output_size=7, sampling_ratio=2)}
    if method == "faster_rcnn":
        return FasterRCNN(pyramid, num_classes=CLASSES, **normalization, **pooled)
    mask_pool = MultiScaleRoIAlign(["0", "1", "2", "3"], output_size=14, sampling_ratio=2)
    return MaskRCNN(pyramid, num_classes=CLASSES, **normalization, **pooled, mask_roi_pool=mask_pool)


def train_step(model: FasterRCNN | RetinaNet, images: list[Tensor], targets: list[dict[str, Tensor]]) -> float:
    """One step of SGD; the sum of the losses before it."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    losses: dict[str, Tensor] = model(images, targets)
    loss = torch.stack(list(losses.values())).sum()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return loss.item()


def main() -> None:
    torch.manual_seed(0)
    images = [torch.rand(3, 200, 300), torch.rand(3, 180, 240)]
    target = {"boxes": torch.tensor([[20.0, 30.0, 120.0, 150.0]]), "labels": torch.tensor([1])}
    targets = [target | {"masks": torch.ones(1, *image.shape[1:], dtype=torch.uint8)} for image in images]
    for method in ("faster_rcnn", "mask_rcnn", "retinanet"):
        print(f"{method}: loss {train_step(build(method), images, targets):.3f}")


if __name__ == "__main__":
    main()
