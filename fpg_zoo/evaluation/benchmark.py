"""What a model costs here: latency, throughput and memory of a pass, of a model of the zoo or an exported file."""

from __future__ import annotations

import contextlib
import gc
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from fpg_zoo.config import BackboneConfig, DetectorConfig
from fpg_zoo.config.catalog import Cost
from fpg_zoo.data.shapes import ShapesDataset
from fpg_zoo.distributed import device_of_process
from fpg_zoo.errors import DownloadError, WorkerError
from fpg_zoo.evaluation.random_weights import give_work
from fpg_zoo.evaluation.timing import Spread, device_name, in_a_process, measure, processor, resident
from fpg_zoo.inference.exported.detector import ExportedDetector
from fpg_zoo.inference.exported.formats import format_of
from fpg_zoo.inference.open_model import AnyDetector, open_model
from fpg_zoo.inference.precisions import Precision
from fpg_zoo.inference.prepare import prepare
from fpg_zoo.modeling.detectors import Detector
from fpg_zoo.modeling.preprocess import preprocess, resize
from fpg_zoo.models.factory import create_model, model_info
from fpg_zoo.models.names import HUB, LOCAL
from fpg_zoo.structures import Detections

RANDOM, SAVED, EXPORTED = "random", "saved", "exported"
_DRAWN = (32, 1024)  # the least and the greatest side in pixels that scenes are drawn with
_SEED = 0
_RESET = Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Memory:
    """MB of a process that detects, fresh: of a GPU, what torch's allocator has given out; else what is resident.

    Attributes:
        imported: with everything imported and no model there.
        before: with the model there.
        peak: at most while it detects.
    """

    imported: float
    before: float
    peak: float

    @property
    def needed(self) -> float:
        """Of the model and a pass. The runtime of an exported file counts, as it is loaded with it."""
        return self.peak - self.imported


@dataclass(frozen=True)
class Benchmark:
    """What was measured of a model.

    Attributes:
        model: its name.
        weights: the tag of the published ones, `saved`, `exported` or `random`.
        device: a GPU's name, or the processor's.
        threads: of the CPU.
        dtype: of the network; of an exported file as it says itself.
        optimized: whether it is in its inference form.
        image_size: (height, width) in pixels of the images as the network gets them, before padding.
        batch_size: images of a pass, of `throughput` and `memory`.
        latency: seconds from one image, normalized and on the device, to its detections with masks; of an exported file
            that takes pixels, from the image as it is.
        throughput: images a second, at the median of passes of `batch_size` images.
        memory: MB of weights, input and a pass, measured in a process of its own.
        detections: in an image, on average.
        cost: as counted for one image.
    """

    model: str
    weights: str
    device: str
    threads: int
    dtype: str
    optimized: bool
    image_size: tuple[int, int]
    batch_size: int
    latency: Spread
    throughput: float
    memory: float
    detections: float
    cost: Cost


def benchmark(
    name: str | None = None,
    *,
    backbone: str | BackboneConfig | None = None,
    config: DetectorConfig | str | Path | None = None,
    checkpoint: str | Path | None = None,
    device: str | None = None,
    dtype: Precision | None = None,
    optimize: bool = False,
    threads: int | None = None,
    image_size: tuple[int, int] | None = None,
    batch_size: int = 1,
    runs: int = 10,
) -> Benchmark:
    """Measure a model on drawn scenes. Where published weights cannot be had, random ones with as much to do are taken.

    Args:
        name: as of `create_model`, or the path of an exported file.
        backbone, config, checkpoint: as of `create_model`.
        device: as `cpu` or `cuda:1`; None for cuda if there is one, else cpu, and cpu for an exported file.
        dtype, optimize: as of `fpg_zoo.inference.prepare.prepare`.
        threads: of the CPU; None for torch's choice.
        image_size: (height, width) in pixels of the images as the network gets them, before padding; None for what a
            square image is resized to, or for the size of an exported file.
        batch_size: images of a pass, at least 1, of throughput and memory; latency is of one.
        runs: timings of each, at least 2.

    Raises:
        FPGZooError: as of `create_model`, `ExportedDetector` and `prepare`; there is no such device; or the process
            that measures memory has died.
    """
    exported = name is not None and format_of(name) is not None
    place = str(device_of_process("cpu" if exported and device is None else device))
    with _threads(threads), torch.cuda.device(place) if place.startswith("cuda") else contextlib.nullcontext():
        model, weights = open_to_measure(name, backbone=backbone, config=config, checkpoint=checkpoint, device=place)
        size = image_size or native_size(model)
        cost = model_info(model.name, config=model.config).cost(size)  # first, as it is refused in a moment
        with tempfile.TemporaryDirectory() as folder:
            if isinstance(model, Detector):
                file = Path(folder) / "model.safetensors"
                model.save_pretrained(file)
            else:
                file = model.path
            model = prepare(model, dtype=dtype, optimize=optimize)
            latency, detections = time_pass(model, scenes_of(size, 1), runs=runs)
            batch = latency if batch_size == 1 else time_pass(model, scenes_of(size, batch_size), runs=runs)[0]
            memory = peak_memory(file, size, batch_size, place, dtype=dtype, optimize=optimize)
        return Benchmark(
            model=model.name,
            weights=weights,
            device=processor() if place == "cpu" else device_name(place),
            threads=torch.get_num_threads(),
            dtype=_dtype_of(model),
            optimized=optimize,
            image_size=size,
            batch_size=batch_size,
            latency=latency,
            throughput=batch_size / batch.median,
            memory=memory.needed,
            detections=detections,
            cost=cost,
        )


def open_to_measure(
    name: str | None = None,
    *,
    backbone: str | BackboneConfig | None = None,
    config: DetectorConfig | str | Path | None = None,
    checkpoint: str | Path | None = None,
    device: str = "cpu",
) -> tuple[AnyDetector, str]:
    """A detector with something to do, and whose weights it has, as of `Benchmark.weights`.

    Warns where it has random ones although others were published.

    Args:
        name, backbone, config, checkpoint, device: as of `benchmark`.

    Raises:
        FPGZooError: as of `create_model` and `ExportedDetector`.
    """
    if name is not None and format_of(name) is not None:
        return open_model(name, device=device, backbone=backbone, config=config, checkpoint=checkpoint), EXPORTED
    if checkpoint is not None or (name is not None and name.startswith((LOCAL, HUB))):
        model = create_model(name, backbone=backbone, config=config, checkpoint=checkpoint, device=device)
        return model, SAVED
    info = model_info(name, backbone=backbone, config=config)
    if info.checkpoints:
        try:
            return create_model(info.checkpoints[0].name, device=device), info.checkpoints[0].tag
        except DownloadError as error:
            warnings.warn(f"{info.name}: measured with random weights ({error})", stacklevel=2)
    torch.manual_seed(_SEED)
    model = create_model(info.name, config=info.config)
    give_work(model, *preprocess(scenes_of(native_size(model), 2), model.config.preprocess))
    return model.to(device), RANDOM


def native_size(model: AnyDetector) -> tuple[int, int]:
    """(height, width) in pixels of what a square image is resized to, or that an exported file is written for."""
    size = model.description.size if isinstance(model, ExportedDetector) else None
    return size or model.config.preprocess.square_size


def scenes_of(size: tuple[int, int], count: int) -> list[Tensor]:
    """Held-out drawn scenes of (height, width) pixels, each (3, height, width) uint8.

    They are drawn at this size, or as near to it as can be and resized.
    """
    least, most = _DRAWN
    height, width = (min(max(side, least), most) for side in size)
    scenes = ShapesDataset("val", count, size=(height, width))
    return [resize(scenes[index].image, size) for index in range(count)]


def detection_pass(model: AnyDetector, scenes: Sequence[Tensor]) -> Callable[[], list[Detections]]:
    """A pass of the model alone, over scenes of one size that are neither resized nor read: what is timed.

    Args:
        model: in eval mode.
        scenes: (3, H, W) uint8; normalized, padded and brought to the device before the pass, unless an exported file
            takes them as they are.
    """
    if isinstance(model, ExportedDetector) and model.description.takes_pixels:
        pixels = list(scenes)
        return lambda: model.detect_pixels(pixels)
    height, width = scenes[0].shape[-2:]
    as_they_are = replace(model.config.preprocess, fixed_size=(height, width))
    images, sizes = preprocess(scenes, as_they_are)
    images = images.to(model.device, model.dtype)
    return lambda: model.detect(images, sizes)


def time_pass(model: AnyDetector, scenes: Sequence[Tensor], *, runs: int) -> tuple[Spread, float]:
    """Seconds of a pass over scenes as of `detection_pass`, and the number of detections in one, on average."""
    run = detection_pass(model, scenes)
    found = run()  # the first pass allocates and chooses kernels; the second is as the others
    return measure(run, runs=runs, warmup=1), sum(map(len, found)) / len(found)


def peak_memory(
    file: Path,
    size: tuple[int, int],
    batch_size: int,
    device: str,
    *,
    dtype: Precision | None = None,
    optimize: bool = False,
) -> Memory:
    """Memory of detecting, in a process of its own that reads the model from a file, with this one's threads.

    Args:
        file: safetensors that describes itself, or an exported file.
        size: (height, width) in pixels of the scenes.
        batch_size: images of a pass.
        device: cpu, cuda or mps; MPS counts as the CPU, whose memory it shares.
        dtype, optimize: as of `fpg_zoo.inference.prepare.prepare`.

    Raises:
        WorkerError: the process has died.
    """
    try:
        return in_a_process(_memory, file, size, batch_size, device, dtype, optimize, torch.get_num_threads())
    except BrokenProcessPool:
        raise WorkerError(
            "the process that measures memory has died, for want of memory most likely: give a smaller batch or image"
        ) from None


def _memory(
    file: Path,
    size: tuple[int, int],
    batch_size: int,
    device: str,
    dtype: Precision | None,
    optimize: bool,
    threads: int,
) -> Memory:
    torch.set_num_threads(threads)
    on_gpu = device.startswith("cuda")
    scenes = scenes_of(size, batch_size)
    imported = 0.0 if on_gpu else resident()
    exported = format_of(file) is not None
    model = open_model(os.fspath(file), device=device) if exported else create_model(checkpoint=file, device=device)
    run = detection_pass(prepare(model, dtype=dtype, optimize=optimize), scenes)
    del model
    gc.collect()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device) / 1e6
    else:
        with contextlib.suppress(OSError):  # not every system can; the peak of making the model then counts, too
            _RESET.write_text("5")
        before = resident()
    for _ in range(2):
        run()
    peak = torch.cuda.max_memory_allocated(device) / 1e6 if on_gpu else resident(peak=True)
    return Memory(imported, before, peak)


@contextlib.contextmanager
def _threads(number: int | None) -> Iterator[None]:
    """While this is open, torch computes in so many threads."""
    before = torch.get_num_threads()
    if number is not None:
        torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _dtype_of(model: AnyDetector) -> str:
    if isinstance(model, ExportedDetector):
        return model.description.dtype
    return {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[model.dtype]
