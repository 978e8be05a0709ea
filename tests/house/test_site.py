"""The documentation site: its reference, its links, and a build without a warning."""

from __future__ import annotations

import importlib.util
import re
from types import SimpleNamespace
from typing import Any

import docs_hooks
import pytest
from command import environment, python
from conftest import ROOT

import fpg_zoo


def test_the_reference_has_every_public_name() -> None:
    pages = "".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs" / "api").glob("*.md"))
    assert set(re.findall(r"^::: fpg_zoo\.(\w+)$", pages, re.MULTILINE)) >= set(fpg_zoo.__all__)


class _Files:
    """The site's pages, as mkdocs has them, by their paths in it."""

    def __init__(self, **titles: str) -> None:
        self._titles = titles

    def get_file_from_path(self, path: str) -> Any:
        title = self._titles.get(path.removesuffix(".md").replace("/", "_"))
        return title and SimpleNamespace(src_uri=path, content_string=f"# {title}\n")


@pytest.mark.parametrize(
    ("page", "written", "shown"),
    [
        ("data.md", "[data.md](data.md#splits)", "[Data](data.md#splits)"),  # the title up to a colon
        ("data.md", "[how](../examples/notebooks/train.ipynb)", "[how](tutorials/train.md)"),
        ("api/index.md", "[see](../data.md)", "[see](../data.md)"),
        ("tutorials/train.md", "[data](../../docs/data.md)", "[data](../data.md)"),
        ("contributing.md", "[docs/data.md](docs/data.md)", "[Data](data.md)"),
        ("data.md", "[examples/track.py](../examples/track.py)", "`examples/track.py`"),
        ("data.md", "[data](../docs/data.md)", "[data](data.md)"),
        ("data.md", "[recorded](../examples/track.py)", "recorded (`examples/track.py`)"),
        ("data.md", "[gone](../examples/gone.py)", "[gone](../examples/gone.py)"),  # mkdocs warns of it
        ("data.md", "[a](https://example.org/a.md) [b](#splits)", "[a](https://example.org/a.md) [b](#splits)"),
    ],
)
def test_a_link_leads_to_a_page_or_becomes_text(page: str, written: str, shown: str) -> None:
    files: Any = _Files(data="Data: what is read", tutorials_train="Train")
    where: Any = SimpleNamespace(file=SimpleNamespace(src_uri=page))
    assert docs_hooks.on_page_markdown(written, where, None, files) == shown


def test_the_command_page_has_every_command_and_option() -> None:
    page = docs_hooks.command_to_markdown()
    assert {"## `fpg-zoo predict`", "## `fpg-zoo data show`"} <= set(page.splitlines())
    assert "| `--batch-size N` |" in page
    assert "| `IMAGES ...` |" in page


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("mkdocs") is None, reason="mkdocs is not installed: pip install -e .[docs]"
)
def test_the_site_is_built_without_a_warning(tmp_path) -> None:
    arguments = ("-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site"))
    built = python(*arguments, cwd=ROOT, env=environment(NO_MKDOCS_2_WARNING="1"), timeout=300)
    assert built.returncode == 0, built.stdout + built.stderr
    assert "data:image/jpeg;base64" in (tmp_path / "site" / "tutorials" / "detect" / "index.html").read_text()
