"""Images over HTTP, from a real server on loopback; and the files that folders and patterns stand for."""

from __future__ import annotations

import collections
import contextlib
import io
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from serving import sending, serve

import fpg_zoo.structures.images
from fpg_zoo.errors import ImageError
from fpg_zoo.structures.images import counted, find_images, read_image, search_images

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
    assert message.startswith(f"{server.url}/a.jpg: not an image in a format that is read")


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
        # The image would decode; only the announced length tells that something is missing.
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
    monkeypatch.setattr(fpg_zoo.structures.images, "URL_TIMEOUT_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as listener:  # accepts, and never answers
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/a.png"
        assert _refusal(read_image, url) == f"{url}: cannot be fetched (timed out)"


def test_a_url_of_more_than_the_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fpg_zoo.structures.images, "MAX_URL_BYTES", len(PNG))
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
    """A working folder with images, other files, and subfolders."""
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
    assert message.startswith(f"{tmp_path}: no images in this folder")
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


# What is passed over


def test_what_a_folder_holds_beside_images_is_counted_by_kind(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.PNG", "notes.TXT", "more.txt", "c.heic", "README", ".DS_Store", "._a.jpg", ".d.png"):
        (tmp_path / name).touch()
    (tmp_path / "sub.jpg").mkdir()
    (tmp_path / "gone.png").symlink_to("nowhere")
    found = search_images([str(tmp_path), str(tmp_path / "a.jpg")])
    assert found.files == [str(tmp_path / "a.jpg"), str(tmp_path / "b.PNG")]
    assert found.passed_over == {
        str(tmp_path): {".txt": 2, "hidden": 3, ".heic": 1, "without a suffix": 1, "folder": 1, "not a regular file": 1}
    }


def test_kinds_are_told_most_frequent_first_and_not_too_many() -> None:
    kinds = collections.Counter({".a": 1, ".b": 9, "hidden": 3, ".\x1b[2J": 4, ".e": 2, ".f": 1, "." + "x" * 99: 5})
    told = counted(kinds)
    assert told == f"9 .b, 5 .{'x' * 36}..., 4 .\\x1b[2J, 3 hidden, 2 .e, 2 of other kinds"
    assert counted(collections.Counter({".txt": 1})) == "1 .txt"


def test_a_folder_of_other_files_is_refused_with_their_kinds(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    for name in ("a.heic", "b.heic"):
        (tmp_path / name).touch()
    assert _refusal(find_images, [str(tmp_path)]).endswith("; it holds 2 .heic, 1 folder")


def test_a_folder_that_cannot_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_: Path) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refused)
    message = _refusal(find_images, [str(tmp_path)])
    assert message == f"{tmp_path}: this folder cannot be read (Permission denied); make it readable"


# Names with the letters of patterns


@pytest.mark.parametrize("name", ["photos[1]", "a*b", "what?", "[!x]", "**", "[a", "photos [copy] (2)"])
def test_a_folder_is_itself_whatever_letters_its_name_has(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Each of these names is a pattern of one of the others, were they patterns.
    for other in (name, "photos1", "aXb", "whatX", "y", "z"):
        (tmp_path / other).mkdir(exist_ok=True)
        (tmp_path / other / f"in {other.replace('*', 'star')}.png").touch()
    (tmp_path / name / "1.jpg").touch()
    monkeypatch.chdir(tmp_path)
    inside = f"{name}/in {name.replace('*', 'star')}.png"
    assert find_images([name]) == [f"{name}/1.jpg", inside]
    assert find_images([f"{name}/*.png"]) == [inside]
    assert find_images([f"{name}/[0-9].jpg"]) == [f"{name}/1.jpg"]
    assert find_images([f"{tmp_path}/{name}/**/*.jpg"]) == [f"{tmp_path}/{name}/1.jpg"]
    # A file that is not there is no pattern, and reading it tells.
    assert find_images([f"{name}/gone.jpg"]) == [f"{name}/gone.jpg"]


def test_patterns_span_folders_below_one_with_such_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("[2024]/may", "[2024]/june", "2/may"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "a.jpg").touch()
    monkeypatch.chdir(tmp_path)
    assert find_images(["[2024]/*/a.jpg"]) == ["[2024]/june/a.jpg", "[2024]/may/a.jpg"]
    assert find_images(["[2024]/../[2]/*/a.jpg"]) == ["[2024]/../2/may/a.jpg"]


# Servers that lie, and URLs that are none. What http_client refuses is tested there; here, that nothing else is raised.


@pytest.mark.parametrize(
    "head",
    [
        b"Content-Length: -1",
        b"Content-Length: +5",
        b"Content-Length: 1_0",
        b"Content-Length: \xd9\xa5",
        b"Content-Length: 5\r\nContent-Length: 6",
        b"Content-Length: " + b"0" * 5000,
        b"Transfer-Encoding: chunked\r\nX: y",  # and the body is no chunk
        b"Transfer-Encoding: gzip",
    ],
)
def test_lengths_that_are_none_are_refused(head: bytes) -> None:
    with _answering(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n\r\n" + PNG) as url:
        message = _refusal(read_image, url)
    assert message.startswith(f"{url}: cannot be fetched (")
    assert message.isprintable()
    assert len(message) < 300


@pytest.mark.parametrize(
    "target",
    ["file:///etc/hostname", "ftp://127.0.0.1/a.png", "data:image/png;base64,iVBO", "http://u:cret@127.0.0.1/"],
)
def test_a_redirect_leads_to_no_other_scheme(target: str) -> None:
    with _answering(f"HTTP/1.1 302 Found\r\nLocation: {target}\r\n\r\n".encode()) as url:
        message = _refusal(read_image, url)
    assert message.startswith(f"{url}: cannot be fetched (it redirects to ")
    assert "cret" not in message


def test_a_body_that_drips_is_given_up_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fpg_zoo.structures.images, "URL_TOTAL_SECONDS", 0.5)

    def drip(write: Any) -> None:
        write(b"HTTP/1.1 200 OK\r\n\r\n")
        for byte in PNG:
            write(bytes([byte]))
            time.sleep(0.05)

    begin = time.monotonic()
    with sending(drip) as server:
        assert "time" in _refusal(read_image, f"{server}/a.png")
    assert time.monotonic() - begin < 10


def test_control_characters_of_a_server_do_not_reach_the_message() -> None:
    with _answering(b"HTTP/1.1 404 \x1b]0;title\x07\x9b2J\r\n\r\n") as url:
        message = _refusal(read_image, url)
    assert message.startswith(f"{url}: the server answered 404 ")
    assert message.isprintable()


@pytest.mark.parametrize(
    ("url", "named"),
    [
        ("http://user:secret@127.0.0.1:9/a.png", "http://***@127.0.0.1:9/a.png"),
        ("HTTPS://secret@127.0.0.1/a.png", "HTTPS://***@127.0.0.1/a.png"),
        ("http://u:se/cret@127.0.0.1/a.png", "http://***@127.0.0.1/a.png"),
    ],
)
def test_a_password_is_in_no_message(url: str, named: str) -> None:
    message = _refusal(read_image, url)
    assert message.startswith(f"{named}: cannot be fetched (")
    assert "cret" not in message


NO_URLS = [
    "http://ÿ../a.jpg",
    "http://" + "a" * 70 + ".example/a.jpg",
    "http://[::1/a.jpg",
    "http://127.0.0.1:99999/a.jpg",
    "http://127.0.0.1:-1/a.jpg",
    "http://\x00/a.jpg",
    "http://127.0.0.1:9/\x1b[2J\r\nX: y.jpg",
    "http:///a.jpg",
    "http://%/a.jpg",
    "https://user:pass@/",
    "http://127.0.0.1:9/" + "a" * 100_000,
    "http://\ud800/a.jpg",
]


@pytest.mark.parametrize("url", NO_URLS, ids=range(len(NO_URLS)))
def test_what_cannot_be_asked_for_is_refused_in_one_line(url: str) -> None:
    message = _refusal(read_image, url)
    assert ": cannot be fetched (" in message
    assert message.isprintable()
