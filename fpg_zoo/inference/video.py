"""Videos and streams as images one after the other, and images as a video; by PyAV, of the extra `video`."""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import threading
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fpg_zoo.errors import ConfigError, ImageError
from fpg_zoo.files import atomic_write, open_regular
from fpg_zoo.structures.images import SOFTWARE, is_remote, label_of
from fpg_zoo.text import printable

VIDEO_SUFFIXES = frozenset(
    ".mp4 .m4v .mov .mkv .webm .avi .mpg .mpeg .ts .mts .m2ts .flv .wmv .ogv .3gp .h264 .h265".split()  # noqa: SIM905
)
_STREAM = re.compile(r"(rtsps?|rtmps?|rtp|udp|tcp|srt)://", re.IGNORECASE)
# FFmpeg's names of what files may be. It knows others, such as lists of other files, which it would open, too.
_FILE_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,mpegvideo,flv,asf,ogg,h264,hevc,m4v,ivf"
_CLOCK = 90_000  # ticks a second of written videos
_PATIENCE_SECONDS = (15.0, 30.0)  # to connect to a stream, and without a byte of it
_DEFAULT_RATE = Fraction(25)
_CRF = "23"  # of H.264: lower is better and larger


def is_video(source: str) -> bool:
    """Whether a path or URL is taken for a video, by its suffix, or for a stream, by its scheme."""
    path = re.split("[?#]", source)[0] if is_remote(source) else source
    return is_stream(source) or Path(path).suffix.lower() in VIDEO_SUFFIXES


def is_stream(source: str) -> bool:
    """Whether it is a stream that may not end."""
    return _STREAM.match(source) is not None


def require_av() -> Any:
    """The package PyAV.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return importlib.import_module("av")
    except ImportError as error:
        raise ConfigError("videos need the package av: pip install 'fpg-zoo[video]'") from error


def frames(source: str | Path) -> Iterator[Image.Image]:
    """The frames of a video or stream, one at a time, for `Predictor.stream`.

    Args:
        source: a file, or a URL of one or of a stream (`rtsp://` and others).

    Returns:
        An iterator over PIL images in mode RGB, upright. `image.info["frame"]` is its number from 0, and
        `image.info["time"]` its time in seconds from the first frame.

    Raises:
        ConfigError: the package av is not installed.
        ImageError: it cannot be opened, or read to its end; raised when that is reached.
    """
    with open_video(source) as video:
        yield from video


class Video:
    """An open video, to be gone through once.

    Attributes:
        rate: frames per second on average.
        count: how many frames there are; None where that is not known.
    """

    def __init__(self, container: Any, label: str, *, live: bool) -> None:
        """Of `open_video`."""
        self._container = container
        self._label = label
        self._live = live
        self._lock = threading.Lock()  # a thread may be decoding when another closes
        self._closed = False
        self._stream = container.streams.video[0]
        self._stream.thread_type = "AUTO"
        self.rate = Fraction(self._stream.average_rate or self._stream.guessed_rate or _DEFAULT_RATE)
        self.count: int | None = self._stream.frames or None

    def __iter__(self) -> Iterator[Image.Image]:
        """Its frames, as of `frames`."""
        decoded = self._decoded()
        first: float | None = None
        number = 0
        while True:
            with self._lock:
                frame = None if self._closed else next(decoded, None)
                if frame is None:
                    return
                pixels = frame.to_ndarray(format="rgb24")
            upright = np.rot90(pixels, round(frame.rotation / 90))  # counterclockwise, both
            image = Image.fromarray(np.ascontiguousarray(upright))
            time = float(number / self.rate) if frame.time is None else float(frame.time)
            first = time if first is None else first
            image.info.update(frame=number, time=time - first)
            yield image
            number += 1

    def _decoded(self) -> Iterator[Any]:
        """Frames; what FFmpeg raises, and what it passes over, is one error that names the video."""
        import av

        packets = number = 0
        try:
            for packet in self._container.demux(self._stream):
                packets += packet.size > 0
                for frame in packet.decode():
                    if frame.is_corrupt and not self._live:
                        raise ImageError(f"{self._label}: frame {number} is damaged; convert or copy the video anew")
                    yield frame
                    number += 1
        except av.error.FFmpegError as error:
            raise ImageError(
                f"{self._label}: cannot be read whole, only {number} frames ({printable(error.strerror)}); convert or "
                "copy it anew"
            ) from None
        # The index of an MP4 file says what is to come; where the rest is missing, FFmpeg ends without a word.
        if "mp4" in self._container.format.name and self.count is not None and packets < self.count:
            raise ImageError(f"{self._label}: ends after {packets} of {self.count} frames; copy it anew")
        if not number:
            raise ImageError(f"{self._label}: holds no frames; give another video")

    def close(self) -> None:
        """End it, once the frame that is being decoded is done."""
        with self._lock:
            self._closed = True
            self._container.close()


@contextlib.contextmanager
def open_video(source: str | Path) -> Iterator[Video]:
    """Open a video or stream, to go through its frames once.

    Raises:
        ConfigError: the package av is not installed.
        ImageError: it cannot be opened, or holds no video.
    """
    av = require_av()
    text = str(source)
    label, live = label_of(text), is_stream(text)
    with contextlib.ExitStack() as stack:
        try:
            if is_remote(text):
                options = {"rtsp_transport": "tcp"} if text.lower().startswith("rtsp") else {}
                container = av.open(text, options=options, timeout=_PATIENCE_SECONDS, metadata_errors="replace")
            else:
                stream = stack.enter_context(open_regular(os.path.expanduser(source)))
                options = {"format_whitelist": _FILE_FORMATS}
                container = av.open(stream, options=options, metadata_errors="replace")
        except FileNotFoundError:
            raise ImageError(f"{label}: no such file") from None
        except (OSError, av.error.FFmpegError, ValueError) as error:
            reason = printable(getattr(error, "strerror", None) or error)
            raise ImageError(f"{label}: not a video that can be read ({reason}); convert it to MP4") from None
        if not container.streams.video:
            container.close()
            raise ImageError(f"{label}: holds no video; give another file")
        video = Video(container, label, live=live)
        stack.callback(video.close)
        yield video


class VideoWriter:
    """An MP4 file of images, H.264, without sound.

    It takes its name when the `with` block ends; where the block raises, nothing is left.

    Args:
        path: ending in `.mp4`.
        rate: images per second, for those that come without a time.

    Raises:
        ConfigError: the package av is not installed.
        StorageError: it cannot be written.
    """

    def __init__(self, path: str | Path, rate: Fraction | int = _DEFAULT_RATE) -> None:
        self._path = Path(path)
        self._rate = Fraction(rate)
        self._av = require_av()
        self._stack = contextlib.ExitStack()
        self._stream: Any = None
        self._last = -1

    def __enter__(self) -> VideoWriter:
        temporary = self._stack.enter_context(atomic_write(self._path))
        self._container = self._av.open(str(temporary), "w", format="mp4")
        self._stack.push(self._end)
        self._container.metadata["comment"] = SOFTWARE
        return self

    def write(self, image: Image.Image, time: float | None = None) -> None:
        """Add an image.

        Args:
            image: in mode RGB; one of another size than the first is resized to that.
            time: seconds from the beginning, more than the last one's; at the rate if None.
        """
        if self._stream is None:
            self._begin(image.size)
        if image.size != self._size:
            image = image.resize(self._size)
        # H.264 with halved colors takes even sides only.
        pixels = np.pad(np.asarray(image), ((0, image.height % 2), (0, image.width % 2), (0, 0)), mode="edge")
        frame = self._av.VideoFrame.from_ndarray(pixels, format="rgb24")
        step = round(_CLOCK / self._rate)
        wanted = self._last + step if time is None and self._last >= 0 else round((time or 0.0) * _CLOCK)
        self._last = max(wanted, self._last + 1)
        frame.pts, frame.time_base = self._last, Fraction(1, _CLOCK)
        self._container.mux(self._stream.encode(frame))

    def _begin(self, size: tuple[int, int]) -> None:
        self._size = size
        known = self._av.codecs_available
        codec, options = ("libx264", {"crf": _CRF, "preset": "veryfast"}) if "libx264" in known else ("mpeg4", {})
        self._stream = self._container.add_stream(codec, rate=self._rate, options=options)
        self._stream.width, self._stream.height = (side + side % 2 for side in size)
        self._stream.pix_fmt = "yuv420p"
        self._stream.codec_context.time_base = Fraction(1, _CLOCK)

    def _end(self, raised: type[BaseException] | None, *_: object) -> None:
        try:
            if raised is None and self._stream is not None:
                self._container.mux(self._stream.encode(None))
        finally:
            self._container.close()

    def __exit__(self, *raised: Any) -> None:
        self._stack.__exit__(*raised)
