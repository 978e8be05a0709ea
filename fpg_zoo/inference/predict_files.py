"""Detections of many image files and videos, written in the formats that were asked for."""

from __future__ import annotations

import collections
import contextlib
import functools
import itertools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from fpg_zoo.distributed import device_of_process
from fpg_zoo.errors import ConfigError, FPGZooError, ImageError, is_out_of_memory
from fpg_zoo.files import on_terminal
from fpg_zoo.inference.exported.formats import format_of
from fpg_zoo.inference.open_model import open_model
from fpg_zoo.inference.precisions import Precision
from fpg_zoo.inference.predictor import Predictor
from fpg_zoo.inference.prefetch import prefetch
from fpg_zoo.inference.prepare import cudnn_benchmark, prepare
from fpg_zoo.inference.result_files import Outputs, ResultFiles, image_ids_of, stems_of
from fpg_zoo.inference.result_formats import Source
from fpg_zoo.inference.video import VideoWriter, is_stream, is_video, open_video, require_av
from fpg_zoo.progress import tqdm
from fpg_zoo.structures import Detections
from fpg_zoo.structures.detections import counted_names
from fpg_zoo.structures.images import ANNOTATED_ENDING, label_of, read_image
from fpg_zoo.text import printable

_Value = TypeVar("_Value")


@dataclass
class Summary:
    """What came of a run: how many images were detected in and objects found, and which images were skipped.

    `resumed` of the images are an earlier run's.
    """

    detected: int = 0
    objects: int = 0
    resumed: int = 0
    skipped: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Running:
    """How a run computes.

    Attributes:
        device: where the model runs; None for cuda if there is one, else cpu, and cpu for an exported file.
        batch_size, dtype, optimize, compile: as of `Predictor.__call__` and `prepare`.
        cudnn_benchmark: as of `prepare.cudnn_benchmark`.
        detecting: the other arguments of `Predictor.__call__`, by name.
        resume: go on with what an earlier run with the same settings has begun.
    """

    device: str | None = None
    batch_size: int = 1
    dtype: Precision | None = None
    optimize: bool = False
    compile: bool = False
    cudnn_benchmark: bool = False
    detecting: Mapping[str, Any] = field(default_factory=dict)
    resume: bool = False


def predict_files(
    files: Sequence[str], *, model_arguments: Mapping[str, Any], outputs: Outputs, running: Running
) -> Summary:
    """Detect objects in image files one after the other; a line per image goes to standard output.

    Args:
        files: paths and URLs. One that cannot be read, or for which memory does not suffice, is reported on standard
            error and skipped.
        model_arguments: of `open_model`, but for the device.
        outputs: what to write, and where. An image's id in a COCO results file is its file name if that is a number, as
            COCO's are, and otherwise its path as given, a URL without a password.
        running: how.

    Returns:
        The images and objects counted. Of a skipped image nothing is counted or written.

    Raises:
        FPGZooError: no such model or device, or nothing can be written as asked.
        ValueError: an argument of `Predictor.__call__` is out of its range.
    """
    outputs.check(files)
    if any(map(is_video, files)):
        require_av()
        if outputs.labelme is not None:
            raise ConfigError("labelme: its files belong to image files, which frames of a video are not; leave it out")
    # Only now what takes time, and only after that the first file is made.
    exported = format_of(model_arguments.get("name") or "") is not None
    device = device_of_process("cpu" if exported and running.device is None else running.device)
    model = open_model(**model_arguments, device=device)
    model = prepare(model, dtype=running.dtype, optimize=running.optimize, compile=running.compile)
    results = ResultFiles(outputs, _settings(model_arguments, running), resume=running.resume)
    with _told_of_compiling(running), cudnn_benchmark(running.cudnn_benchmark), results.writing():
        predictor = Predictor(model, masks_to_cpu=bool(outputs.annotated or outputs.labelme))
        run = _Run(predictor, running, results, files, stems_of(files, outputs), image_ids_of(files))
        with tqdm(total=len(files), unit="image", disable=not on_terminal()) as run.bar:
            left = [file for file in files if not run.counted_before(file)]
            for videos, group in itertools.groupby(left, key=is_video):
                if videos:
                    for file in group:
                        run.video(file)
                else:
                    run.images(list(group))
        results.finish()
    return run.summary


@contextlib.contextmanager
def _told_of_compiling(running: Running) -> Iterator[None]:
    """Turn what torch.compile raises at the first image into one error."""
    try:
        yield
    except RuntimeError as error:
        if not running.compile or not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        reason = printable(str(error).strip().splitlines()[0])
        raise ConfigError(
            f"compile: torch.compile does not work here ({reason}); install a C++ compiler, or leave it out"
        ) from error


def _settings(model_arguments: Mapping[str, Any], running: Running) -> dict[str, Any]:
    """What decides about the detections, as values of JSON. A file counts as another one when it was written anew."""
    settings: dict[str, Any] = {"dtype": running.dtype, "optimize": running.optimize, **running.detecting}
    if running.compile:  # which may pad images more
        settings["compile"] = True
    for name, value in model_arguments.items():
        path = Path(str(value).removeprefix("local-dir:")).expanduser()
        settings[name] = None if value is None else str(value)
        with contextlib.suppress(OSError):
            if value is not None and path.is_file():
                settings[f"{name} written at"] = path.stat().st_mtime_ns
    return settings


class _Run:
    """One run over files."""

    bar: Any

    def __init__(
        self,
        predictor: Predictor,
        running: Running,
        results: ResultFiles,
        files: Sequence[str],
        stems: Mapping[str, str],
        image_ids: Mapping[str, int | str],
    ) -> None:
        self.predictor = predictor
        self.running = running
        self.results = results
        self.sources = {file: Source(file, image_ids[file], stems[file]) for file in files}
        self.summary = Summary()

    def counted_before(self, file: str) -> bool:
        """Whether an earlier run has finished it; it is then counted."""
        objects = self.results.done.get(label_of(file))
        if objects is None:
            return False
        self.summary.detected += 1
        self.summary.resumed += 1
        self.summary.objects += objects
        self.bar.update()
        return True

    def video(self, file: str) -> None:
        """A video or stream, frame by frame; the next frames are decoded meanwhile. Ctrl-C ends a stream in peace."""
        try:
            written = _if_memory_suffices(functools.partial(self._video, file))
        except ImageError as error:
            written = str(error)
        if written is not None:
            self.results.drop_source()
            self._skip(file, written if written.startswith(label_of(file)) else f"{label_of(file)}: {written}")
        self.bar.update()

    def _video(self, file: str) -> None:
        source, folder, size = self.sources[file], self.results.outputs.annotated, self.running.batch_size
        names, count = collections.Counter[str](), 0
        with contextlib.ExitStack() as stack:
            video = stack.enter_context(open_video(file))
            writer = None
            if folder is not None:
                target = folder / f"{source.stem}{ANNOTATED_ENDING}.mp4"
                writer = stack.enter_context(VideoWriter(target, video.rate))
            bar = stack.enter_context(
                tqdm(total=video.count, unit="frame", disable=not on_terminal(), leave=False, position=1)
            )
            frames = iter(video)
            batches = prefetch(lambda _: list(itertools.islice(frames, size)), itertools.count())
            try:
                while batch := next(batches).result():
                    for image, detections in zip(batch, self._stream(batch), strict=True):
                        time = image.info["time"]
                        if writer is not None:
                            writer.write(detections.draw(image), time)
                        self.results.add(_frame_of(source, count, time), image, detections)
                        names.update(detections.names)
                        count += 1
                        bar.update()
            except KeyboardInterrupt:
                if not is_stream(file) or not count:
                    raise
                self.results.drop_frame()
        self._finish(file, names.total(), f"{count} frames, {counted_names(names.elements()) or 'nothing found'}")

    def images(self, files: Sequence[str]) -> None:
        """Images, some at a time; the next ones are read meanwhile."""
        size = self.running.batch_size
        batches = [files[first : first + size] for first in range(0, len(files), size)]
        for batch, coming in zip(batches, prefetch(_read_all, batches), strict=True):
            self._batch(batch, coming.result())

    def _batch(self, files: Sequence[str], read: Sequence[Image.Image | ImageError]) -> None:
        """Images read, or what is wrong with them, in order.

        A function of its own, so that these images and their masks are gone before the next ones are made.
        """
        images = [image for image in read if not isinstance(image, ImageError)]
        found: Iterator[Detections | str] = iter(self._detect(images))
        for file, image in zip(files, read, strict=True):
            if isinstance(image, ImageError):
                self._skip(file, str(image))
            else:
                detections = next(found)
                line = detections if isinstance(detections, str) else self._write(file, image, detections)
                if isinstance(line, str):
                    self._skip(file, f"{label_of(file)}: {line}")
            self.bar.update()

    def _detect(self, images: Sequence[Image.Image]) -> list[Detections | str]:
        """Each image's detections, or why there are none. Where memory does not suffice for all, one by one."""
        found = _if_memory_suffices(lambda: list(self._stream(images)))
        if not isinstance(found, str):
            return [*found]
        if len(images) == 1:
            return [found]
        return [_if_memory_suffices(functools.partial(self._only, image)) for image in images]

    def _only(self, image: Image.Image) -> Detections:
        return next(self._stream([image]))

    def _stream(self, images: Sequence[Image.Image]) -> Iterator[Detections]:
        return self.predictor.stream(images, self.running.batch_size, **self.running.detecting)

    def _write(self, file: str, image: Image.Image, detections: Detections) -> str | None:
        """Write and count an image's detections; or why it cannot be."""
        failure = _if_memory_suffices(lambda: self.results.add(self.sources[file], image, detections))
        if failure is not None:
            self.results.drop_source()
            return failure
        self._finish(file, len(detections), counted_names(detections.names))
        return None

    def _finish(self, file: str, objects: int, counts: str) -> None:
        self.results.finish_source(self.sources[file], objects)
        self.summary.detected += 1
        self.summary.objects += objects
        line = f"{label_of(file)}: {counts or 'nothing found'}"
        if sys.stdout is not None:
            self.bar.write(printable(line, max_length=None), file=sys.stdout)
            sys.stdout.flush()

    def _skip(self, file: str, reason: str) -> None:
        self.summary.skipped.append(file)
        self.bar.write(f"skipped: {printable(reason, max_length=None)}", file=sys.stderr)


def _frame_of(video: Source, number: int, time: float) -> Source:
    return replace(
        video,
        image_id=f"{label_of(video.file)}#{number}",
        stem=f"{video.stem}_{number:06}",
        frame=number,
        time=time,
    )


def _if_memory_suffices(function: Callable[[], _Value]) -> _Value | str:
    """What it gives; what to tell where memory does not suffice."""
    try:
        return function()
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, FPGZooError) or not is_out_of_memory(error):
            raise
        return "not enough memory to detect in it or draw on it; make it smaller, or raise the score"


def _read_all(files: Sequence[str]) -> list[Image.Image | ImageError]:
    read: list[Image.Image | ImageError] = []
    for file in files:
        try:
            read.append(read_image(file))
        except ImageError as error:
            read.append(error)
    return read
