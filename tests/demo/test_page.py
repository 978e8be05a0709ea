"""The demo's page in headless Chromium, served by the command on loopback; and the folder for a Space."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from command import environment
from conftest import ROOT
from drawn_scenes import write_scene
from packaging.requirements import Requirement
from PIL import Image

import fpg_zoo
from fpg_zoo.inference.predictor import Predictor
from fpg_zoo.structures import Detections

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

pytestmark = pytest.mark.usefixtures("one_thread")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
needs_gradio = pytest.mark.skipif(
    importlib.util.find_spec("gradio") is None, reason="needs Gradio: pip install 'fpg-zoo[demo]'"
)
needs_browser = pytest.mark.skipif(
    CHROMIUM is None or importlib.util.find_spec("playwright") is None,
    reason="needs Chromium and Playwright: apt-get install chromium; pip install playwright",
)
SPACE = ROOT / "examples" / "space"
HOSTILE = "<img src=x onerror=\"document.title='owned'\">{{this}}${1} 自転車"
_PATIENCE = 120  # seconds, on a machine that does other things, too


class Served(NamedTuple):
    """A page that is there, and the folder of the process that serves it."""

    url: str
    folder: Path


@contextlib.contextmanager
def _serving(command: list[str], folder: Path, **variables: str) -> Iterator[str]:
    """The first line that a server prints; it ends by Ctrl-C, without a word, and leaves no files."""
    temporary = folder / "temporary"
    temporary.mkdir()
    # A shell's background jobs start with the signal ignored: take the usual handler, as in a foreground job.
    start = "import runpy, signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    with open(folder / "errors", "w+") as errors:
        process = subprocess.Popen(
            [sys.executable, "-c", start + command[0], *command[1:]],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            cwd=folder,
            env=environment(
                TMPDIR=str(temporary), HF_HUB_OFFLINE="1", FPG_ZOO_CACHE=str(folder / "cache"), **variables
            ),
        )
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip()
            process.send_signal(signal.SIGINT)
            rest, _ = process.communicate(timeout=60)
        finally:
            process.kill()
            process.wait()
        errors.seek(0)
        assert (process.returncode, rest, errors.read()) == (0, "", "")
    assert list(temporary.iterdir()) == []


def _free_port() -> int:
    with socket.socket() as tried:
        tried.bind(("127.0.0.1", 0))
        return int(tried.getsockname()[1])


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scene(tmp_path_factory.mktemp("scene") / "scene.png")


@pytest.fixture(scope="module")
def expected(scene: Path) -> Detections:
    """What the page's first model detects in the scene."""
    (detections,) = Predictor(fpg_zoo.create_model("mask_rcnn_nano_fpg", pretrained=True))(str(scene), score=0.05)
    counts = [len(detections.above(score)) for score in (0.05, 0.3, 0.9)]
    assert len(set(counts)) == 3  # or the slider would show nothing
    return detections


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Three models: one with masks, the same with another's class names, one whose weights are nowhere."""
    folder = tmp_path_factory.mktemp("served")
    model = fpg_zoo.create_model("mask_rcnn_nano_fpg", pretrained=True)
    model.save_pretrained(folder / "hostile")
    config = json.loads((folder / "hostile" / "config.json").read_text())
    text = json.dumps(config).replace(json.dumps("star"), json.dumps(HOSTILE))
    (folder / "hostile" / "config.json").write_text(text)
    port = _free_port()
    command = [
        "from fpg_zoo.cli import main; sys.exit(main())",
        *("demo", "mask_rcnn_nano_fpg", "local-dir:hostile", "mask_rcnn_r50_fpn"),
        *("--device", "cpu", "--port", str(port)),
    ]
    with _serving(command, folder) as line:
        assert line == f"serving http://127.0.0.1:{port}/ until Ctrl-C", (folder / "errors").read_text()
        yield Served(f"http://127.0.0.1:{port}/", folder)


@contextlib.contextmanager
def _page(url: str, *, width: int = 1400, dark: bool = False, may_log: bool = False) -> Iterator[Any]:
    """The page in Chromium, which asks no other host for anything, and logs no errors unless it may."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"])
        try:
            page = browser.new_page(viewport={"width": width, "height": 900})
            page.set_default_timeout(_PATIENCE * 1000)
            errors, requests = [], []
            page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
            page.on("pageerror", lambda error: errors.append(str(error)))
            page.on("request", lambda request: requests.append(request.url))
            page.goto(url + ("?__theme=dark" if dark else ""))
            page.wait_for_selector("#picture input[type=file]", state="attached")
            yield page
        finally:
            browser.close()
    assert may_log or errors == []
    assert [one for one in requests if not one.startswith((url, "data:", "blob:"))] == []


def _upload(page: Any, file: Path) -> None:
    page.set_input_files("#picture input[type=file]", file)


def _wait_for_rows(page: Any, count: int) -> None:
    page.wait_for_function(f"document.querySelectorAll('#table tbody tr').length === {count}")


def _choose(page: Any, where: str, name: str) -> None:
    page.locator(f"{where} input").click()
    page.get_by_role("option", name=name, exact=True).click()


@needs_gradio
@needs_browser
@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1400])
@pytest.mark.parametrize("dark", [False, True])
def test_a_picture_goes_in_and_the_slider_filters(
    served: Served, scene: Path, expected: Detections, dark: bool, width: int
) -> None:
    with _page(served.url, width=width, dark=dark) as page:
        _upload(page, scene)
        for score in (0.3, 0.9, 0.05):
            if score != 0.3:  # as it is in the beginning
                page.fill("#score input[type=number]", str(score))
                page.press("#score input[type=number]", "Enter")
            kept = expected.above(score)
            _wait_for_rows(page, len(kept))
            assert page.locator("#summary b").inner_text() == f"{len(kept)} of {len(expected)}"
            names = [name.strip() for name in page.locator("#table td:first-child").all_inner_texts()]
            assert names == kept.names
        for typed, score in (("7", 1.0), ("", 0.05)):  # what is out of range, or nothing
            page.fill("#score input[type=number]", typed)
            page.press("#score input[type=number]", "Enter")
            _wait_for_rows(page, len(expected.above(score)))
        page.wait_for_function("document.querySelector('#drawn img').naturalWidth === 960")
        assert page.evaluate("document.scrollingElement.scrollWidth <= innerWidth")
        with Image.open(io.BytesIO(page.screenshot())) as screenshot:
            paper = screenshot.convert("L").getpixel((5, 5))
        assert paper < 60 if dark else paper > 240


@needs_gradio
@needs_browser
@pytest.mark.slow
def test_classes_drawing_and_the_file_to_download(served: Served, scene: Path, expected: Detections) -> None:
    shown = expected.above(0.3)
    name = shown.names[0]
    of_class = [row for row, own in zip(shown.to_coco("scene.png"), shown.names, strict=True) if own == name]
    assert 0 < len(of_class) < len(shown)
    with _page(served.url) as page:
        _upload(page, scene)
        _wait_for_rows(page, len(shown))
        _choose(page, "#classes", name)
        _wait_for_rows(page, len(of_class))
        with page.expect_download() as download:
            page.click("#table a")
        assert download.value.suggested_filename == "scene.png.json"
        assert json.loads(Path(download.value.path()).read_text()) == of_class
        drawn = page.get_attribute("#drawn img", "src")
        for box in ("#boxes", "#masks"):
            page.locator(f"{box} input").click()
            page.wait_for_function("before => document.querySelector('#drawn img').src !== before", arg=drawn)
            drawn = page.get_attribute("#drawn img", "src")
        _wait_for_rows(page, len(of_class))


@needs_gradio
@needs_browser
@pytest.mark.slow
def test_names_of_others_are_texts(served: Served, scene: Path, expected: Detections) -> None:
    names = [HOSTILE if name == "star" else name for name in expected.above(0.3).names]
    assert HOSTILE in names
    with _page(served.url) as page:
        _choose(page, "#model", "local-dir:hostile")
        _upload(page, scene)
        _wait_for_rows(page, len(names))
        assert [name.strip() for name in page.locator("#table td:first-child").all_inner_texts()] == names
        _choose(page, "#classes", HOSTILE)
        _wait_for_rows(page, names.count(HOSTILE))
        assert page.title() == "Feature Pyramid Grids"


@needs_gradio
@needs_browser
@pytest.mark.slow
def test_what_goes_wrong_is_one_line_and_the_page_goes_on(
    served: Served, scene: Path, expected: Detections, tmp_path: Path
) -> None:
    (tmp_path / "bad.png").write_text("no picture")
    (tmp_path / "notes.txt").write_text("no picture")
    with open(tmp_path / "heavy.png", "wb") as file:
        file.truncate(53_000_000)
    with _page(served.url) as page:
        _upload(page, tmp_path / "notes.txt")
        page.get_by_text("Invalid file type").wait_for()
        _upload(page, tmp_path / "bad.png")
        page.wait_for_selector("#summary [role=alert]")
        assert page.inner_text("#summary").startswith("bad.png: not an image in a format that is read (JPEG, PNG, ")
        page.locator("button.gallery-item").first.click()
        page.wait_for_selector("#summary [role=status]")
        _choose(page, "#model", "mask_rcnn_r50_fpn")
        page.wait_for_selector("#summary [role=alert]")
        assert page.inner_text("#summary").startswith(
            f"mask_rcnn_r50_fpn.coco_2022 is not in the cache {served.folder / 'cache'} and HF_HUB_OFFLINE forbids"
        )
        assert page.locator("#table tr").count() == 0
        _choose(page, "#model", "mask_rcnn_nano_fpg")
        page.wait_for_selector("#summary [role=status]")
        _upload(page, scene)
        _wait_for_rows(page, len(expected.above(0.3)))
    with _page(served.url, may_log=True) as page:  # that the server refused it, if it was asked before the page knew
        _upload(page, tmp_path / "heavy.png")
        page.get_by_text("exceed the maximum allowed size").wait_for()


# The Space


def _space() -> dict[str, Any]:
    _, header, text = (SPACE / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    assert text.strip().startswith("# ")
    parsed: dict[str, Any] = yaml.safe_load(header)
    return parsed


def test_the_space_is_described_as_the_hub_asks() -> None:
    header, project = _space(), tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert (header["sdk"], header["app_file"]) == ("gradio", "app.py")
    assert (SPACE / header["app_file"]).is_file()
    assert header["license"] == project["license"].lower()
    assert len(header["short_description"]) <= 60
    colors = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
    assert {header["colorFrom"], header["colorTo"]} <= colors
    (line,) = (SPACE / "requirements.txt").read_text().splitlines()
    requirement = Requirement(line)
    assert requirement.name == project["name"]
    assert requirement.extras == {"demo"}
    (gradio,) = map(Requirement, project["optional-dependencies"]["demo"])
    assert gradio.specifier.contains(header["sdk_version"])


@needs_gradio
@pytest.mark.slow
def test_the_space_serves_the_page(tmp_path: Path) -> None:
    port = _free_port()
    command = [f"runpy.run_path({str(SPACE / 'app.py')!r}, run_name='__main__')"]
    address = {"GRADIO_SERVER_NAME": "127.0.0.1", "GRADIO_SERVER_PORT": str(port)}
    with _serving(command, tmp_path, **address) as line:
        assert line == f"serving http://127.0.0.1:{port}/"
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=60) as answer:
            text = answer.read().decode()
    assert "Feature Pyramid Grids" in text
