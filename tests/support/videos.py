"""Videos made in the test: two colors side by side, the left one by the frame's number."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

WIDTH, HEIGHT, RATE = 64, 48, 10
BLUE = (0, 0, 250)


def left_color(number: int) -> tuple[int, int, int]:
    return (40 + 5 * number, 40, 0)


def write_video(path: str | Path, count: int = 12, rotation: int = 0, options: dict[str, str] | None = None) -> None:
    """A frame's left half is `left_color`, its right half blue; shown turned counterclockwise by `rotation` degrees."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream("libx264", rate=RATE, options={"crf": "1"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv444p"
        if rotation:
            if not hasattr(stream, "set_display_rotation"):
                pytest.skip("this PyAV writes no rotation")
            stream.set_display_rotation(rotation)
        for number in range(count):
            pixels = np.empty((HEIGHT, WIDTH, 3), dtype=np.uint8)
            pixels[:, : WIDTH // 2], pixels[:, WIDTH // 2 :] = left_color(number), BLUE
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
