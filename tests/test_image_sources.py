"""Pictures over HTTP, from a real server on loopback; and the files that folders and patterns stand for."""

from __future__ import annotations

import contextlib
import io
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from serving import serve

import fpg_zoo.images
from fpg_zoo.errors import ImageError
from fpg_zoo.images import find_images, read_image

WIDTH, HEIGHT = 40, 30
PIXELS = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def _png() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(PIXELS).save(stream, "PNG")
    return stream.getvalue()


PNG = _png()


def _refusal(call: Any, source: Any) -> str:
    with pytest.raises(ImageError) as caught:
        call(source)
    return str(caught.value)


# URLs


@contextlib.contextmanager
def _answering(answer: bytes) -> Iterator[str]:
    """The URL of a server that answers one request with exactly these bytes."""

    def answer_once() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(1 << 16)
            connection.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=answer_once, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/a.png"
        thread.join(5)


def test_a_url_is_fetched_and_read() -> None:
    with serve() as server:
        server.files["/a%20b.png?size=1"] = PNG
        assert np.array_equal(np.array(read_image(f"{server.url}/a%20b.png?size=1")), PIXELS)


def test_a_url_that_is_not_there_is_refused_with_the_answer() -> None:
    with serve() as server:
        assert (
            _refusal(read_image, f"{server.url}/gone.png")
            == f"{server.url}/gone.png: the server answered 404 Not Found"
        )


def test_a_url_of_a_web_page_is_refused() -> None:
    with serve() as server:
        server.files["/a.jpg"] = b"<html>Please log in</html>"
        message = _refusal(read_image, f"{server.url}/a.jpg")
    assert message.startswith(f"{server.url}/a.jpg: not a picture in a format that is read")


def test_a_server_that_does_not_listen_is_reported() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/a.png"
    message = _refusal(read_image, url)
    assert message.startswith(f"{url}: cannot be fetched (")
    assert "refused" in message


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(PNG) + PNG[:1000],
        # The picture would decode; only the announced length tells that something is missing.
        b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (len(PNG) + 1) + PNG,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n" % len(PNG) + PNG[:1000],
        b"HTTP/1.1 200 OK\r\n",
        b"garbage\r\n",
        b"",
    ],
    ids=["short body", "one byte short", "short chunk", "no headers", "no status", "closed at once"],
)
def test_a_broken_answer_is_refused_with_the_url(answer: bytes) -> None:
    with _answering(answer) as url:
        assert _refusal(read_image, url).startswith(f"{url}: ")


def test_a_url_that_stalls_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fpg_zoo.images, "URL_TIMEOUT_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as listener:  # accepts, and never answers
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/a.png"
        assert _refusal(read_image, url) == f"{url}: cannot be fetched (timed out)"


def test_a_url_of_more_than_the_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fpg_zoo.images, "MAX_URL_BYTES", len(PNG))
    with serve() as server:
        server.files = {"/fits.png": PNG, "/too_long.png": PNG + b"\0"}
        assert read_image(f"{server.url}/fits.png").size == (WIDTH, HEIGHT)
        message = _refusal(read_image, f"{server.url}/too_long.png")
    assert message == f"{server.url}/too_long.png: cannot be fetched (more than the {len(PNG)} bytes that are read)"


@pytest.mark.parametrize("url", ["http://", "http://127.0.0.1:port/a.jpg", "http://127.0.0.1:9/a b.jpg", "http://[x/a"])
def test_what_is_no_url_is_refused(url: str) -> None:
    assert _refusal(read_image, url).startswith(f"{url}: cannot be fetched (")


# Folders and patterns


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with pictures, other files, and subfolders."""
    (tmp_path / "photos" / "more" / "deep").mkdir(parents=True)
    for name in ("b.JPG", "a.png", "c.TiFf", "notes.txt", "no_suffix", "more/d.jpg", "more/deep/e.jpg"):
        (tmp_path / "photos" / name).write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("folder", ["photos", "photos/", "./photos"])
@pytest.mark.usefixtures("pictures")
def test_a_folder_stands_for_its_pictures_in_order_whatever_the_case_of_their_suffix(folder: str) -> None:
    assert find_images([folder]) == ["photos/a.png", "photos/b.JPG", "photos/c.TiFf"]


@pytest.mark.usefixtures("pictures")
def test_home_is_expanded_in_folders_and_patterns(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(pictures))
    expected = [f"{pictures}/photos/a.png"]
    assert find_images(["~/photos/*.png"]) == expected
    assert find_images(["~/photos"])[:1] == expected


@pytest.mark.parametrize(
    "suffix", [".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".JPEG"]
)
def test_common_suffixes_are_found(suffix: str, tmp_path: Path) -> None:
    (tmp_path / f"x{suffix}").touch()
    assert find_images([str(tmp_path)]) == [str(tmp_path / f"x{suffix}")]


def test_a_folder_named_like_a_picture_is_not_one(tmp_path: Path) -> None:
    (tmp_path / "album.jpg").mkdir()
    (tmp_path / "a.jpg").touch()
    assert find_images([str(tmp_path)]) == [str(tmp_path / "a.jpg")]


@pytest.mark.parametrize("content", [[], ["notes.txt"]])
def test_a_folder_without_pictures_is_refused(content: list[str], tmp_path: Path) -> None:
    for name in content:
        (tmp_path / name).touch()
    message = _refusal(find_images, [str(tmp_path)])
    assert message.startswith(f"{tmp_path}: no pictures in this folder")
    assert ".jpg" in message


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("photos/*.png", ["photos/a.png"]),
        ("photos/[ab].*", ["photos/a.png", "photos/b.JPG"]),
        ("photos/?.TiFf", ["photos/c.TiFf"]),
        ("photos/**/*.jpg", ["photos/more/d.jpg", "photos/more/deep/e.jpg"]),
        ("*/*/*.jpg", ["photos/more/d.jpg"]),
    ],
)
@pytest.mark.usefixtures("pictures")
def test_a_pattern_stands_for_what_it_matches_in_order(pattern: str, expected: list[str]) -> None:
    assert find_images([pattern]) == expected


@pytest.mark.parametrize("pattern", ["photos/*", "photos/**"])
@pytest.mark.usefixtures("pictures")
def test_a_pattern_does_not_stand_for_folders(pattern: str) -> None:
    found = find_images([pattern])
    assert "photos/a.png" in found
    assert [path for path in found if Path(path).is_dir()] == []


@pytest.mark.usefixtures("pictures")
def test_a_pattern_without_a_match_is_refused() -> None:
    assert _refusal(find_images, ["photos/*.webp"]) == "photos/*.webp: no file matches this pattern"


def test_a_file_named_like_a_pattern_is_itself(tmp_path: Path) -> None:
    path = tmp_path / "a[1].jpg"
    path.touch()
    (tmp_path / "a1.jpg").touch()
    assert find_images([str(path)]) == [str(path)]


@pytest.mark.parametrize(
    "source",
    [
        "gone.jpg",
        "http://127.0.0.1/a*.jpg?x=[1]",
        "https://127.0.0.1/photos/",
        "~no-such-user-here/a.jpg",
        "a" * 300 + ".jpg",
    ],
)
def test_missing_files_and_urls_are_passed_on(source: str) -> None:
    assert find_images([source]) == [source]


@pytest.mark.usefixtures("pictures")
def test_each_file_is_given_once_in_the_order_of_first_mention() -> None:
    found = find_images(["photos/c.TiFf", "photos", "photos/*.png", "photos/c.TiFf", "photos/more"])
    assert found == ["photos/c.TiFf", "photos/a.png", "photos/b.JPG", "photos/more/d.jpg"]
