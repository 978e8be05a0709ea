"""Videos as images and images as videos."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from serving import serve
from tiny_models import tiny_model

pytest.importorskip("av")

from videos import BLUE, HEIGHT, RATE, WIDTH, left_color, write_video

from fpg_zoo import Predictor
from fpg_zoo.errors import ConfigError, ImageError
from fpg_zoo.inference.video import VideoWriter, frames, is_video, open_video
from fpg_zoo.structures.images import search_images

pytestmark = pytest.mark.usefixtures("one_thread")
CLOSE = 8  # of 255: what encoding and the colors' conversion lose


def _near(pixel: tuple[int, ...], color: tuple[int, int, int]) -> bool:
    return bool(np.abs(np.subtract(pixel, color)).max() <= CLOSE)


def test_frames_come_in_order_with_number_and_time(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4")
    found = list(frames(tmp_path / "a.mp4"))
    assert [image.size for image in found] == [(WIDTH, HEIGHT)] * 12
    assert [image.info["frame"] for image in found] == list(range(12))
    assert [image.info["time"] for image in found] == pytest.approx([number / RATE for number in range(12)])
    for number, image in enumerate(found):
        assert _near(image.getpixel((5, 20)), left_color(number))
        assert _near(image.getpixel((60, 20)), BLUE)
    with open_video(tmp_path / "a.mp4") as video:
        assert (video.rate, video.count) == (RATE, 12)


# A phone held upright writes -90: turned clockwise, the left half is at the top.
@pytest.mark.parametrize(
    ("rotation", "size", "left", "blue"),
    [
        (-90, (HEIGHT, WIDTH), (24, 3), (24, 60)),
        (90, (HEIGHT, WIDTH), (24, 60), (24, 3)),
        (180, (WIDTH, HEIGHT), (60, 24), (3, 24)),
    ],
)
def test_frames_are_upright(
    rotation: int, size: tuple[int, int], left: tuple[int, int], blue: tuple[int, int], tmp_path: Path
) -> None:
    write_video(tmp_path / "a.mp4", 2, rotation)
    image = next(frames(tmp_path / "a.mp4"))
    assert image.size == size
    assert _near(image.getpixel(left), left_color(0))
    assert _near(image.getpixel(blue), BLUE)


def test_a_predictor_streams_a_video(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", 3)
    predictor = Predictor(tiny_model())
    found = list(predictor.stream(frames(tmp_path / "a.mp4"), batch_size=2))
    alone = [predictor(image)[0] for image in frames(tmp_path / "a.mp4")]
    assert [len(one) for one in found] == [len(one) for one in alone]
    assert {one.size for one in found} == {(HEIGHT, WIDTH)}


@pytest.mark.parametrize(("kind", "said"), [
    ("text", "not a video that can be read"),
    ("playlist", "not a video that can be read"),
    ("cut", "ends after |cannot be read whole"),
    ("headless", "not a video that can be read"),
    ("flipped", "damaged|cannot be read whole"),
    ("gone", "no such file"),
])  # fmt: skip
def test_a_damaged_video_is_one_error(kind: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "a.mp4"
    write_video(file, 40, options={"movflags": "faststart"} if kind in ("cut", "flipped") else None)
    whole = file.read_bytes()
    if kind == "text":
        file.write_text("no video")
    elif kind == "playlist":
        file.write_text("#EXTM3U\n#EXTINF:1,\n/etc/hostname\n")
    elif kind == "cut":
        file.write_bytes(whole[: len(whole) * 2 // 3])
    elif kind == "headless":
        file.write_bytes(whole[: len(whole) // 2])
    elif kind == "flipped":
        place = len(whole) * 2 // 3
        file.write_bytes(whole[:place] + b"\xff" * 600 + whole[place + 600 :])
    else:
        file.unlink()
    with pytest.raises(ImageError, match=said) as caught:
        list(frames(file))
    assert str(caught.value).startswith(f"{file}: ")


def test_a_video_that_is_closed_while_it_is_decoded_ends(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", 30)
    read: list[Image.Image] = []
    with open_video(tmp_path / "a.mp4") as video:
        thread = threading.Thread(target=lambda: read.extend(video))
        thread.start()
    thread.join(timeout=60)
    assert not thread.is_alive()
    assert len(read) <= 30


def test_written_videos_are_read_again_and_known(tmp_path: Path) -> None:
    target = tmp_path / "b_detections.mp4"
    colors = [(200, 30, 30), (30, 200, 30), (30, 30, 200)]
    with VideoWriter(target, 5) as writer:
        for number, color in enumerate(colors):
            assert not target.exists()
            writer.write(Image.new("RGB", (31, 21), color), number * 0.5)
    found = list(frames(target))
    assert [image.size for image in found] == [(32, 22)] * 3  # H.264's sides are even
    assert [image.info["time"] for image in found] == pytest.approx([0, 0.5, 1.0])
    assert all(_near(image.getpixel((10, 10)), color) for image, color in zip(found, colors, strict=True))
    (tmp_path / "c_detections.mp4").write_bytes(b"another")
    found_again, passed_over = search_images([str(tmp_path / "*")])
    assert found_again == [str(tmp_path / "c_detections.mp4")]
    assert passed_over == {str(tmp_path / "*"): {"written by predict": 1}}


def test_a_writer_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    target = tmp_path / "b.mp4"
    target.write_text("before")

    def fails() -> None:
        with VideoWriter(target) as writer:
            writer.write(Image.new("RGB", (32, 32)))
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert [path.name for path in tmp_path.iterdir()] == ["b.mp4"]
    assert target.read_text() == "before"


def test_without_the_extra_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ConfigError, match=r"^videos need the package av: pip install 'fpg-zoo\[video\]'$"):
        next(frames("a.mp4"))


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("a.MP4", True), ("a.jpg", False), ("rtsp://cam/1", True), ("https://x/a.mp4?token=1.jpg", True),
        ("https://x/a.jpg?next=a.mp4", False), ("mp4", False),
    ],
)  # fmt: skip
def test_what_is_a_video(source: str, expected: bool) -> None:
    assert is_video(source) is expected
    assert search_images([source]).files == [source]


def test_a_video_is_read_from_a_url(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", 3)
    with serve() as server:
        server.files["/a.mp4"] = (tmp_path / "a.mp4").read_bytes()
        assert [image.info["frame"] for image in frames(f"{server.url}/a.mp4")] == [0, 1, 2]
        with pytest.raises(ImageError, match=r"gone\.mp4: not a video that can be read \("):
            list(frames(f"{server.url}/gone.mp4"))
    with pytest.raises(ImageError) as caught:
        list(frames("rtsp://user:secret@127.0.0.1:1/camera"))
    assert str(caught.value).startswith("rtsp://***@127.0.0.1:1/camera: ")
    assert "secret" not in str(caught.value)
