"""A page in headless Chromium: its pixels, and what it is once its script has run."""

from __future__ import annotations

import html
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from PIL import Image

_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--enable-logging=stderr",
)
_CONTENT_POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')


def _run(page: Path, *flags: str) -> str:
    """What it prints; nothing is logged on the page's console.

    Skips the test where there is no Chromium.
    """
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    with tempfile.TemporaryDirectory() as profile:
        # A group of its own, so that none of its processes outlives the test.
        browser = subprocess.Popen(
            [program, *_FLAGS, f"--user-data-dir={profile}", *flags, page.as_uri()],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            printed, logged = browser.communicate(timeout=90)
        except subprocess.TimeoutExpired:
            os.killpg(browser.pid, 9)
            raise
    assert browser.returncode == 0, logged
    assert [line for line in logged.splitlines() if "CONSOLE" in line] == []
    return printed


def screenshot(page: Path, target: Path, size: tuple[int, int], *, dark: bool = False) -> Image.Image:
    """A page's top left (width, height) pixels, RGB."""
    scheme = ["--blink-settings=preferredColorScheme=0"] if dark else []
    _run(page, f"--screenshot={target}", "--window-size={},{}".format(*size), *scheme)
    with Image.open(target) as image:
        return image.convert("RGB")


def document(page: Path) -> str:
    """A page's HTML once its script has run."""
    return _run(page, "--dump-dom")


def told(page: Path, doing: str, *, width: int = 1280) -> str:
    """What a script says by `tell(text)` on a page, in a frame so many pixels wide; its content policy is lifted."""
    text, count = _CONTENT_POLICY.subn("", page.read_text(encoding="utf-8"))
    assert count == 1
    driven, outer = page.with_name("driven.html"), page.with_name("outer.html")
    doing = f"const tell = (text) => parent.postMessage(text, '*');\n{doing}"
    driven.write_text(text.replace("</body>", f"<script>{doing}</script></body>"), encoding="utf-8")
    # A window cannot be as narrow as a telephone; and a frame of a file may talk, but not be looked into.
    outer.write_text(
        f'<!doctype html><title></title><iframe src="driven.html" width="{width}" height="900"></iframe>'
        "<script>onmessage = (event) => { document.title = event.data; };</script>"
    )
    shown = _run(outer, "--dump-dom", "--virtual-time-budget=5000", f"--window-size={width + 100},1000")
    (title,) = re.findall("<title>(.*?)</title>", shown)
    return html.unescape(title)
