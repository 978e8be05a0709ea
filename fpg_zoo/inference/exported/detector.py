"""An exported file in the place of a model."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from fpg_zoo.config import DetectorConfig
from fpg_zoo.errors import ExportError
from fpg_zoo.files import sha256_of
from fpg_zoo.inference.exported.description import Description
from fpg_zoo.inference.exported.sessions import open_session
from fpg_zoo.modeling.detectors import Sizes
from fpg_zoo.modeling.postprocess import to_detections
from fpg_zoo.structures import Detections, Instances, check_score
from fpg_zoo.text import printable


def padded(images: Tensor, description: Description) -> Tensor:
    """Images (N, 3, H, W), resized and normalized, padded with zeros to what a file takes."""
    height, width = description.input_size(images.shape[-2], images.shape[-1])
    return F.pad(images, (0, width - images.shape[-1], 0, height - images.shape[-2]))


class ExportedDetector:
    """A detector that a runtime computes: what `Predictor` and the evaluation need of a model.

    Args:
        path: a file that `fpg_zoo.export` wrote: `.onnx`, `.pt2`, `.xml` of OpenVINO or `.torchscript`.
        device: to compute on.

    Raises:
        ExportError: it is no such file, is damaged, or its runtime is not installed.
    """

    def __init__(self, path: str | Path, device: str | torch.device = "cpu") -> None:
        self.path = Path(path)
        self._session = open_session(self.path, torch.device(device))
        self.description = self._session.description

    def __repr__(self) -> str:
        return f"ExportedDetector({printable(self.path)}: {printable(self.name)}, {len(self.class_names)} classes)"

    @property
    def name(self) -> str:
        """The model's."""
        return self.description.name

    @property
    def config(self) -> DetectorConfig:
        """The model's."""
        return self.description.config

    @property
    def class_names(self) -> tuple[str, ...]:
        """Of the labels, in order."""
        return self.config.class_names

    @property
    def device(self) -> torch.device:
        """Where images are to be."""
        return self._session.device

    @property
    def dtype(self) -> torch.dtype:
        """Of images."""
        return torch.float32

    def digest(self) -> str:
        """SHA-256 of the file, of OpenVINO's both files."""
        files = [self.path, self.path.with_suffix(".bin")] if self.path.suffix.lower() == ".xml" else [self.path]
        return hashlib.sha256("".join(map(sha256_of, files)).encode()).hexdigest()

    def detect(
        self, images: Tensor, sizes: Sizes, output_sizes: Sizes | None = None, *, score: float = 0.0
    ) -> list[Detections]:
        """As `Detector.detect`; images smaller than the file's fixed or least size are padded to it.

        Raises:
            ExportError: the file takes pixels, or images of another size.
        """
        check_score(score)
        if self.description.takes_pixels:
            raise ExportError(
                f"{printable(self.path)}: takes images as they are (it was exported with preprocessing); use "
                "fpg_zoo.Predictor, or export it without"
            )
        height, width = images.shape[-2:]
        size = self.description.size
        if size is not None and (height > size[0] or width > size[1]):
            raise ExportError(
                f"{printable(self.path)}: its images have {size[0]}x{size[1]} pixels, and this one is "
                f"{height}x{width}: export it for that size, or with --dynamic size"
            )
        images = padded(images, self.description)
        out_sizes = sizes if output_sizes is None else output_sizes
        instances = self._run(images, torch.tensor(list(sizes), dtype=torch.int64).reshape(-1, 2))
        return [
            to_detections(one[one.scores >= score], size, output_size, self.class_names)
            for one, size, output_size in zip(instances, sizes, out_sizes, strict=True)
        ]

    def detect_pixels(self, images: Sequence[Tensor], *, score: float = 0.0) -> list[Detections]:
        """Detect objects in images as they are, by a file that takes them.

        Args:
            images: (3, h, w) uint8 RGB, on the CPU.
            score: as of `detect`.

        Returns:
            Of each image its detections, in its own pixels.
        """
        check_score(score)
        results = []
        for image in images:
            size = (image.shape[-2], image.shape[-1])
            (one,) = self._run(image[None], None)
            results.append(to_detections(one[one.scores >= score], size, size, self.class_names))
        return results

    def _run(self, images: Tensor, sizes: Tensor | None) -> list[Instances]:
        """In passes of as many images as the file takes; the last is filled up with the last image."""
        batch = self.description.batch or max(len(images), 1)
        found: list[Instances] = []
        for first in range(0, len(images), batch):
            part = images[first : first + batch]
            number = len(part)
            inputs = [part] if sizes is None else [part, sizes[first : first + batch].to(self.device)]
            if number < batch:
                inputs = [torch.cat((one, one[-1:].expand(batch - number, *one.shape[1:]))) for one in inputs]
            inputs = [one.contiguous() for one in inputs]
            outputs = dict(zip(self.description.outputs, self._session.run(inputs), strict=True))
            for place, count in enumerate(outputs["num_detections"][:number].tolist()):
                maps = outputs["mask_maps"][place, :count] if "mask_maps" in outputs else None
                boxes, scores, labels = (outputs[name][place, :count] for name in ("boxes", "scores", "labels"))
                found.append(Instances(boxes, scores, labels, maps))
        return found
