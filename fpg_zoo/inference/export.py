"""Detectors written as files for other runtimes: ONNX, programs of `torch.export`, OpenVINO, TorchScript."""

from __future__ import annotations

import copy
import dataclasses
import importlib.metadata
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fpg_zoo.data.shapes import ShapesDataset
from fpg_zoo.errors import ExportError
from fpg_zoo.files import storage_errors, temporary_folder
from fpg_zoo.inference.exported.agreement import ExportAgreement, compare, fits
from fpg_zoo.inference.exported.description import Description
from fpg_zoo.inference.exported.detector import ExportedDetector, padded
from fpg_zoo.inference.exported.form import ExportedForm, check_exportable
from fpg_zoo.inference.exported.formats import DTYPES, DYNAMIC, FORMATS, INCLUDE, SUFFIXES, Dtype, Format, format_of
from fpg_zoo.inference.exported.onnx_operators import OPSET
from fpg_zoo.inference.exported.sessions import import_runtime
from fpg_zoo.inference.exported.write import LEAST_SIDES, OPERATORS, PACKAGES, Graph, write
from fpg_zoo.modeling.detectors import Detector
from fpg_zoo.modeling.preprocess import padded_size, preprocess, resized_size
from fpg_zoo.structures.images import ImageLike, read_image, to_pixels
from fpg_zoo.text import printable
from fpg_zoo.version import __version__

# What the graph is traced in. OpenVINO chooses its precision when it opens a file; 8 bits come after tracing.
_TORCH_DTYPES = {("onnx", "fp16"): torch.float16, ("pt2", "fp16"): torch.float16, ("pt2", "bf16"): torch.bfloat16}
# Which of the formats compute in which precision on a CPU.
_REFUSED = {
    ("onnx", "bf16"): "ONNX Runtime has no bfloat16 convolutions on the CPU; use fp32, or --format openvino",
    ("torchscript", "fp16"): "give fp32",
    ("torchscript", "bf16"): "give fp32",
    ("torchscript", "int8"): "8 bits are for onnx and openvino",
    ("pt2", "int8"): "8 bits are for onnx and openvino",
}
# (height, width) of the scenes that a file is compared on where no images are given.
_SCENES = ((240, 320), (320, 240), (288, 288))
_LEAST_SIDE = 32  # pixels of a scene


@dataclass(frozen=True)
class Exported:
    """A file that was written.

    Attributes:
        path: of it; of OpenVINO the `.xml`, with a `.bin` beside it.
        description: what it says of itself.
        agreement: with the model.
        bytes: of all its files.
    """

    path: Path
    description: Description
    agreement: ExportAgreement
    bytes: int


def export(
    model: Detector,
    path: str | Path,
    *,
    format: Format | None = None,
    dtype: Dtype = "fp32",
    size: tuple[int, int] | None = None,
    batch: int = 1,
    dynamic: Collection[str] = (),
    include: Collection[str] = (),
    check: Sequence[ImageLike] = (),
    calibration: Sequence[ImageLike] = (),
) -> Exported:
    """Write a whole detector, from images to boxes, scores, labels and masks, and compare it with the model.

    The file takes `images` and `sizes` and gives `num_detections`, `boxes`, `scores`, `labels` and, of a model with
    masks, `mask_maps`; `fpg_zoo.inference.exported.form` says which shapes and frames they have. `Predictor(path)`
    runs it.

    Args:
        model: in eval mode, not an inference form.
        path: to write: `.onnx`, `.pt2`, `.xml` (OpenVINO, with a `.bin` beside it) or `.torchscript`.
        format: `onnx`, `pt2`, `openvino` or `torchscript`; what the suffix stands for if None.
        dtype: to compute in: `fp32`, `fp16`, `bf16` or `int8`. The choice of detections is in float32 always.
        size: (height, width) in pixels of the network's input, multiples of `config.preprocess.pad_divisor`; the
            largest that an image is resized to if None.
        batch: images in a pass.
        dynamic: `batch` for any number of images, `size` for images of any size.
        include: `preprocess` for images as they are, uint8 RGB, which the file resizes and normalizes; `masks` for
            masks in the frame of the images, beside the maps.
        check: images to compare the file and the model on, as `Predictor` takes them; drawn scenes if there are none.
        calibration: images that the ranges of `int8` come from, some dozens like those that the file is for; those of
            `check` if there are none.

    Returns:
        What was written.

    Raises:
        ExportError: a setting is not as above, a part of the model cannot be exported, a package is missing, or file
            and model do not agree. No file is left then, and what was at `path` stays.
        ImageError: an image of `check` cannot be read.
        StorageError: `path` cannot be written.
    """
    target = Path(path).expanduser()
    kind = check_export(target, format=format, dtype=dtype, batch=batch, dynamic=dynamic, include=include)
    check_exportable(model)
    canvas = _canvas(model, size, dynamic, include)
    images = [to_pixels(read_image(one)) for one in check]
    description = Description(
        name=model.name,
        config=model.config,
        dtype=dtype,
        batch=None if "batch" in dynamic else batch,
        size=None if "size" in dynamic and "preprocess" not in include else canvas,
        min_side=LEAST_SIDES.get(kind, 1) * model.config.preprocess.pad_divisor,
        takes_pixels="preprocess" in include,
        outputs=(),
        versions=_versions(kind),
    )
    images = images or _scenes(model, description.size)
    for place, image in enumerate(images):
        if not fits(image, model, description.size):
            raise ExportError(
                f"image {place} of check is larger than {canvas[0]}x{canvas[1]} pixels once it is resized; give a "
                "larger size, or dynamic=['size']"
            )
    traced_in = _TORCH_DTYPES.get((kind, dtype), torch.float32)
    converted = copy.deepcopy(model).to(traced_in) if model.dtype != traced_in else model
    form = ExportedForm(
        converted,
        OPERATORS[kind],
        canvas=canvas if description.takes_pixels else None,
        paste="masks" in include,
    ).eval()
    description = dataclasses.replace(description, outputs=form.output_names)
    with temporary_folder(target.parent) as folder:
        file = folder / f"model{target.suffix}"
        ranges: list[Sequence[Tensor]] = []
        if dtype == "int8":
            given = [to_pixels(read_image(one)) for one in calibration] or images
            ranges = [_inputs(image, converted, description) for image in given]
        write(Graph(form, _examples(converted, description, canvas), description, ranges), kind, file)
        # torch's files hold the device that they were traced on; the others are run on the CPU.
        device = model.device if kind in ("pt2", "torchscript") else torch.device("cpu")
        agreement = compare(model, ExportedDetector(file, device), images)
        if not agreement.agrees:
            raise ExportError(f"{printable(target)}: not written, it does not agree with the model: {agreement.line()}")
        with storage_errors(target.parent):
            size_of_files = sum(one.stat().st_size for one in folder.iterdir())
            # The .xml last, so that it never stands beside another's weights for long.
            for one in sorted(folder.iterdir(), key=lambda one: one.suffix == target.suffix):
                one.replace(target.with_suffix(one.suffix))
    return Exported(target, description, agreement, size_of_files)


def check_export(
    path: Path, *, format: str | None, dtype: str, batch: int, dynamic: Collection[str], include: Collection[str]
) -> Format:
    """Whether `export` can write such a file, before there is a model.

    Args:
        path, format, dtype, batch, dynamic, include: as of `export`.

    Returns:
        The format.

    Raises:
        ExportError: a setting is not as there, settings contradict each other, or a package is missing.
    """
    kind = _format(path, format)
    _check_settings(kind, dtype, batch, dynamic, include)
    for name in PACKAGES[kind]:
        import_runtime(name)
    return kind


def _format(path: Path, given: str | None) -> Format:
    of_suffix = format_of(path)
    suffixes = ", ".join(f"{suffix} for {kind}" for suffix, kind in SUFFIXES.items())
    if given is not None and given not in FORMATS:
        raise ExportError(f"format={given!r}: it takes one of {', '.join(FORMATS)}")
    if of_suffix is None or (given is not None and given != of_suffix):
        raise ExportError(
            f"{printable(path)}: its name does not say the format{f' {given}' if given else ''}: end it in {suffixes}"
        )
    return of_suffix


def _check_settings(kind: Format, dtype: str, batch: int, dynamic: Collection[str], include: Collection[str]) -> None:
    for name, values, allowed in (
        ("dtype", [dtype], DTYPES),
        ("dynamic", dynamic, DYNAMIC),
        ("include", include, INCLUDE),
    ):
        for value in values:
            if value not in allowed:
                raise ExportError(f"{name}: {value!r} is not one of {', '.join(allowed)}")
    if batch < 1:
        raise ExportError(f"batch={batch}: it takes at least 1")
    if (kind, dtype) in _REFUSED:
        raise ExportError(f"format {kind} with dtype {dtype}: {_REFUSED[kind, dtype]}")
    if kind == "torchscript" and "batch" in dynamic:
        raise ExportError("format torchscript has a fixed number of images: leave `batch` out of dynamic")


def _canvas(
    model: Detector, size: tuple[int, int] | None, dynamic: Collection[str], include: Collection[str]
) -> tuple[int, int]:
    config = model.config.preprocess
    if size is not None:
        if "size" in dynamic:
            raise ExportError(f"size={size} and dynamic size: leave one of them out")
        if len(size) != 2 or any(side < 1 or side % config.pad_divisor for side in size):
            raise ExportError(f"size={size}: it takes (height, width), multiples of {config.pad_divisor}")
        if config.fixed_size is None and max(size) < config.longest_side:
            raise ExportError(
                f"size={size}: images are resized to a longest side of {config.longest_side} pixels, and none fits; "
                "give a larger size, or change preprocess.longest_side in the model's config"
            )
        return size
    if config.fixed_size is not None:
        return padded_size(*config.fixed_size, config.pad_divisor)
    side = resized_size(config.longest_side, config.longest_side, config)[0]
    if config.shortest_side is not None and config.shortest_side < config.longest_side:
        side = config.longest_side
    return padded_size(side, side, config.pad_divisor)


def _examples(model: Detector, description: Description, canvas: tuple[int, int]) -> tuple[Tensor, ...]:
    """Inputs to trace with. Sizes of 1 would be taken for fixed, so there are two images where any number will do."""
    number = description.batch or 2
    if description.takes_pixels:
        return (torch.zeros(number, 3, 120, 160, dtype=torch.uint8, device=model.device),)
    images = torch.zeros(number, 3, *canvas, dtype=torch.float32, device=model.device)
    return images, torch.tensor([canvas] * number, dtype=torch.int64, device=model.device)


def _inputs(image: Tensor, model: Detector, description: Description) -> tuple[Tensor, ...]:
    """An image as the graph takes it."""
    if description.takes_pixels:
        return (image[None],)
    batch, sizes = preprocess([image], model.config.preprocess)
    batch = padded(batch, description)
    number = description.batch or 1
    return batch.expand(number, -1, -1, -1).contiguous(), torch.tensor(sizes * number, dtype=torch.int64)


def _scenes(model: Detector, size: tuple[int, int] | None) -> list[Tensor]:
    """Drawn scenes that fit in a file of this size; of several shapes, or else of its own."""
    scenes = [ShapesDataset("val", 1, size=shape)[0].image for shape in _SCENES]
    if size is None or all(fits(scene, model, size) for scene in scenes):
        return scenes
    scale = max(_LEAST_SIDE / min(size), 1.0)
    own = (round(size[0] * scale), round(size[1] * scale))
    return [ShapesDataset("val", 3, size=own)[index].image for index in range(3)]


def _versions(kind: Format) -> dict[str, str]:
    versions = {"fpg_zoo": __version__, "torch": str(torch.__version__)}
    if PACKAGES[kind]:
        versions["opset"] = str(OPSET)
    return versions | {name: importlib.metadata.version(name) for name in PACKAGES[kind]}
