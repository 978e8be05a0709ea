"""Detections kept as they come: torn lines, lines that cannot be read, other files of the name, and the end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fpg_zoo.errors import ConfigError, StorageError
from fpg_zoo.evaluation_parts import Parts

SETTINGS: dict[str, Any] = {"model": "one", "number of pictures": 4}
# 0.1 is not a float32, and 1/3 has no short decimal: both come back as they were.
ROWS = [{"image_id": 1, "score": 0.1}, {"image_id": 1, "score": 1 / 3}]


def _parts(folder: Path, **changes: Any) -> Parts:
    return Parts(folder / "sub" / "r.json", SETTINGS | changes)


def _written(folder: Path, rank: int, *batches: list[Any]) -> Path:
    with _parts(folder).writing(rank) as write:
        for batch in batches:
            write(batch)
    return folder / "sub" / f"r.json.part-{rank}.jsonl"


def test_what_every_process_wrote_is_there_again(tmp_path: Path) -> None:
    assert _parts(tmp_path).done() == {}
    _written(tmp_path, 0, [(1, ROWS), (2, [])], [("a", [])])
    _written(tmp_path, 11, [(3, ROWS[:1])])
    assert _parts(tmp_path).done() == {1: ROWS, 2: [], "a": [], 3: ROWS[:1]}
    _parts(tmp_path).finish(ROWS)
    assert json.loads((tmp_path / "sub" / "r.json").read_text()) == ROWS
    assert [path.name for path in (tmp_path / "sub").iterdir()] == ["r.json"]
    _parts(tmp_path).finish([])
    assert json.loads((tmp_path / "sub" / "r.json").read_text()) == []


def test_a_file_cut_at_any_byte_has_its_whole_lines_and_is_written_on(tmp_path: Path) -> None:
    file = _written(tmp_path, 0, [(1, [])], [(2, [])])
    whole = file.read_bytes()
    ends = [place + 1 for place, byte in enumerate(whole) if byte == ord("\n")]
    for length in range(len(whole)):
        file.write_bytes(whole[:length])
        expected = {image_id: [] for image_id, end in ((1, ends[1]), (2, ends[2])) if end <= length}
        assert _parts(tmp_path).done() == expected
        _written(tmp_path, 0, [(3, [])])
        assert _parts(tmp_path).done() == {**expected, 3: []}


def test_a_line_that_cannot_be_read_counts_for_nothing(tmp_path: Path) -> None:
    file = _written(tmp_path, 0, [(1, [])])
    for line in (b"\0\0\0\n", b"5\n", b"[[1]]\n", b"[[[], []]]\n", b"\xff\n"):
        file.write_bytes(file.read_bytes() + line)
    _written(tmp_path, 0, [(2, [])])
    assert _parts(tmp_path).done() == {1: [], 2: []}


def test_other_settings_are_refused_with_the_difference(tmp_path: Path) -> None:
    file = _written(tmp_path, 3, [(1, [])])
    with pytest.raises(ConfigError, match=r"part-3\.jsonl: begun with another model one, now two; give what it was"):
        _parts(tmp_path, model="two").done()
    with pytest.raises(ConfigError, match="begun with another precision None, now bfloat16"):
        _parts(tmp_path, precision="bfloat16").done()
    assert file.is_file()


@pytest.mark.parametrize("line", [b"hello\n", b"{}\n", b'{"fpg_zoo_evaluation": 5}\n', b"[]\n"])
def test_a_file_of_another_origin_is_refused_and_kept(line: bytes, tmp_path: Path) -> None:
    file = _written(tmp_path, 0)
    file.write_bytes(line)
    with pytest.raises(ConfigError, match=r"part-0\.jsonl: not begun by an evaluation; move it away"):
        _parts(tmp_path).done()
    assert file.read_bytes() == line


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a folder; name the file to write"):
        Parts(tmp_path, SETTINGS)
    (tmp_path / "sub").write_text("a file")
    with pytest.raises(StorageError, match="cannot write in"), _parts(tmp_path).writing(0):
        pass
