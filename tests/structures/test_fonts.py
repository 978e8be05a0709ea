"""Names on images: in a font that has their characters, or with escapes; never as empty boxes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from font_files import write_font
from PIL import Image

import fpg_zoo.structures.fonts
from fpg_zoo.structures import Detections
from fpg_zoo.structures.fonts import lettering

ASCII = "".join(map(chr, range(ord("!"), ord("~") + 1)))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The only folder of fonts."""
    fpg_zoo.structures.fonts._letterings.cache_clear()
    monkeypatch.setattr("fpg_zoo.structures.fonts._font_folders", lambda: [tmp_path])
    yield tmp_path
    fpg_zoo.structures.fonts._letterings.cache_clear()


def _drawn(name: str) -> np.ndarray:
    found = Detections(
        boxes=torch.tensor([[20.0, 60, 300, 150]]),
        scores=torch.tensor([0.9]),
        labels=torch.tensor([0]),
        masks=None,
        class_names=(name,),
        size=(200, 640),
    )
    return np.array(found.draw(Image.new("RGB", (640, 200), "gray")))


def test_no_font_is_looked_for_where_none_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    def looked_for() -> list[Path]:
        raise AssertionError("looked for")

    monkeypatch.setattr("fpg_zoo.structures.fonts.font_files", looked_for)
    assert lettering("tennis racket", ("tennis racket", "自行车")) == ("tennis racket", None)
    assert lettering(ASCII, (ASCII,)) == (ASCII, None)


@pytest.mark.parametrize(
    ("name", "escaped"),
    [
        ("自行车", r"\u81ea\u884c\u8f66"),
        ("собака 🐶", r"\u0441\u043e\u0431\u0430\u043a\u0430 \U0001f436"),
        ("naïve", r"na\xefve"),
        ("ประเทศ", r"\u0e1b\u0e23\u0e30\u0e40\u0e17\u0e28"),
        ("e\u0301", r"e\u0301"),  # the accent is a character of its own
    ],
)
@pytest.mark.usefixtures("folder")
def test_without_a_font_characters_are_escaped(name: str, escaped: str) -> None:
    assert lettering(name, (name,)) == (escaped, None)
    assert np.array_equal(_drawn(name), _drawn(escaped))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a\nb\tc", "a b c"),
        ("wide\u3000space", "wide space"),
        ("\x1b[2J", r"\x1b[2J"),
        ("a\u202eb", r"a\u202eb"),
        ("x" * 500, "x" * 197 + "..."),
        ("", ""),
    ],
)
@pytest.mark.usefixtures("folder")
def test_a_name_is_one_line_of_bounded_length(name: str, text: str) -> None:
    assert lettering(name, (name,)).text == text
    assert np.array_equal(_drawn(name), _drawn(text))


def test_each_name_gets_a_font_that_has_all_of_it(folder: Path) -> None:
    chinese = write_font(folder / "chinese.ttf", ASCII + "自行车")
    russian = write_font(folder / "russian.ttf", ASCII + "собак")
    names = ("自行车", "собака", "cat")
    assert [lettering(name, names) for name in names] == [
        ("自行车", chinese),
        ("собака", russian),
        ("cat", None),
    ]
    assert not np.array_equal(_drawn("自"), _drawn("行"))


def test_of_a_name_that_no_font_has_whole_the_fewest_characters_are_escaped(folder: Path) -> None:
    write_font(folder / "a.ttf", ASCII + "собак"[:2])
    most = write_font(folder / "b.ttf", ASCII + "собак")
    assert lettering("собака 🐶", ("собака 🐶",)) == (r"собака \U0001f436", most)


def test_fonts_that_would_draw_boxes_are_passed_over(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "a.ttf").write_bytes(b"no font")
    (folder / "b.ttf").write_bytes(write_font(folder / "b.ttf", ASCII + "自").read_bytes()[:300])
    (folder / "c.ttf").mkdir()
    write_font(folder / "d.ttf", "自")  # cannot write the score
    write_font(folder / "e.ttf", ASCII, missing=[])  # draws nothing in place of what it lacks
    assert lettering("自", ("自",)) == (r"\u81ea", None)
    # One that has even what is not assigned: its characters are images of blocks of characters.
    write_font(folder / "f.ttf", ASCII + "自")
    monkeypatch.setattr("fpg_zoo.structures.fonts._UNASSIGNED", "~")
    assert lettering("自", ("自", "another tuple, so that it is not remembered")) == (r"\u81ea", None)


def test_plain_styles_and_whole_families_come_first(folder: Path) -> None:
    (folder / "sub").mkdir()
    for name in ("Sans-Bold.ttf", "Sans.TTF", "Sans-Oblique.otf", "SansMono.ttf", "sub/SansSerif.ttc", "notes.txt"):
        (folder / name).touch()
    names = [file.name for file in fpg_zoo.structures.fonts.font_files()]
    assert names == ["Sans.TTF", "SansSerif.ttc", "SansMono.ttf", "Sans-Bold.ttf", "Sans-Oblique.otf"]
