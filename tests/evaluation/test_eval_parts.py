"""Detections kept as they come: torn lines, lines that cannot be read, other files of the name, and the end."""

from __future__ import annotations

import errno
import json
import math
import os
import random
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command import run
from small_disks import fill, small_disk
from training_runs import make_data, small_model

from fpg_zoo import locks
from fpg_zoo.distributed import Processes
from fpg_zoo.errors import ConfigError, StorageError
from fpg_zoo.evaluation.partial_results import Parts
from fpg_zoo.locks import file_lock

SETTINGS: dict[str, Any] = {"model": "one", "number of images": 4}
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
    with pytest.warns(UserWarning, match=rf"^{file}: 5 damaged lines; their images are looked at again$"):
        assert _parts(tmp_path).done() == {1: [], 2: []}


ROW: dict[str, Any] = {"image_id": 7, "category_id": 3, "bbox": [1, 2.5, 3, 4], "score": 0.5}
MASK = {"size": [4, 5], "counts": "<8"}
DAMAGED = {
    "a number": 7,
    "a text": "7",
    "no pairs": [7, []],
    "one of a pair": [[7]],
    "three": [[7, [], []]],
    "nested": [[[7, []]]],
    "an object": {"7": []},
    "rows that are none": [[7, {}]],
    "rows that are null": [[7, None]],
    "a row that is a number": [[7, [5]]],
    "a row that is a list": [[7, [[1, 2, 3, 4]]]],
    "an empty row": [[7, [{}]]],
    "an id that is a list": [[[7], []]],
    "an id that is a truth value": [[True, []]],
    "an id with a fraction": [[7.0, []]],
    "an id that is null": [[None, []]],
    "a good one before": [[7, [ROW]], [8, [5]]],
    **{
        f"{key} {value!r}": [[7, [{**ROW, key: value}]]]
        for key, value in (
            ("image_id", None),
            ("image_id", [7]),
            ("category_id", "3"),
            ("category_id", 3.5),
            ("score", float("nan")),
            ("score", float("inf")),
            ("score", 10**400),
            ("score", "0.5"),
            ("score", True),
            ("score", None),
            ("bcox", [1, 2, 3, 4]),
            ("bbox", [1, 2, 3]),
            ("bbox", [1, 2, 3, float("nan")]),
            ("bbox", [1, 2, 3, "4"]),
            ("bbox", None),
            ("segmentation", []),
            ("segmentation", {**MASK, "size": [4]}),
            ("segmentation", {**MASK, "size": 20}),
            ("segmentation", {**MASK, "counts": [20]}),
        )
    },
}


@pytest.mark.parametrize("batch", DAMAGED.values(), ids=DAMAGED)
def test_json_of_another_shape_counts_for_nothing(batch: object, tmp_path: Path) -> None:
    good = [(7, [{**ROW, "segmentation": MASK}])]
    file = _written(tmp_path, 0, [(1, [])])
    file.write_bytes(file.read_bytes() + json.dumps(batch).encode() + b"\n")
    _written(tmp_path, 0, good)
    with pytest.warns(UserWarning, match="1 damaged lines"):
        assert _parts(tmp_path).done() == {1: [], **dict(good)}


def test_the_first_of_two_entries_of_a_picture_counts_and_unknown_ones_are_nobodys(tmp_path: Path) -> None:
    _written(tmp_path, 0, [(7, [ROW])], [(7, [])], [("nobody", [])])
    _written(tmp_path, 1, [(7, [ROW, ROW]), (8, [])])
    assert _parts(tmp_path).done() == {7: [ROW], "nobody": [], 8: []}


def test_500_damaged_files_are_read_or_refused_in_one_line(tmp_path: Path) -> None:
    file = _written(tmp_path, 0, [(1, [{**ROW, "segmentation": MASK}])], [(2, [])], [("a", [ROW, ROW])])
    good, chance, read = file.read_bytes(), random.Random(0), 0
    for _ in range(500):
        altered = bytearray(good)
        for _ in range(chance.randrange(1, 4)):
            altered[chance.randrange(len(altered))] ^= chance.randrange(1, 256)
        file.write_bytes(altered[: chance.choice((len(good), chance.randrange(len(good))))])
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = _parts(tmp_path).done()
        except ConfigError as error:
            refusal = str(error)
        else:
            refusal, read = "", read + 1
            for image_id, rows in found.items():
                assert isinstance(image_id, int | str)
                for row in rows:
                    assert type(row["category_id"]) is int
                    assert len(row["bbox"]) == 4
                    assert all(math.isfinite(number) for number in (*row["bbox"], row["score"]))
        assert refusal.isprintable()
    assert 200 < read < 500


def test_a_header_that_was_cut_off_is_written_anew(tmp_path: Path) -> None:
    file = _written(tmp_path, 0, [(1, [])])
    header = file.read_bytes().splitlines(keepends=True)[0]
    for length in range(len(header)):
        file.write_bytes(header[:length])
        assert _parts(tmp_path).done() == {}
        _written(tmp_path, 0, [(2, [])])
        assert file.read_bytes().startswith(header)
        assert _parts(tmp_path).done() == {2: []}


@pytest.mark.parametrize(
    "line", [b"[" * 70_000, b'{"fpg_zoo_evaluation": {"model": "' + b"x" * 70_000, b"[" * 60_000 + b"\n"]
)
def test_a_first_line_that_does_not_end_is_not_ours(line: bytes, tmp_path: Path) -> None:
    file = _written(tmp_path, 0)
    file.write_bytes(line)
    with pytest.raises(ConfigError, match=r"part-0\.jsonl: not begun by an evaluation; move it away"):
        _parts(tmp_path).done()
    assert file.read_bytes() == line


def test_what_a_header_says_is_told_in_one_short_line(tmp_path: Path) -> None:
    file = _written(tmp_path, 0)
    file.write_bytes(
        json.dumps({"fpg_zoo_evaluation": SETTINGS | {"model": "\x1b[2J\n" + "x" * 9_000}}).encode() + b"\n"
    )
    with pytest.raises(ConfigError, match="begun with another model") as caught:
        _parts(tmp_path).done()
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1_000


def _link(file: Path) -> None:
    file.with_name("elsewhere").write_bytes(file.read_bytes())
    file.unlink()
    file.symlink_to("elsewhere")


def _pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def _folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


@pytest.mark.parametrize("replace", [_link, _pipe, _folder], ids=["link", "FIFO", "folder"])
def test_a_part_that_is_no_file_is_refused(replace: Callable[[Path], None], tmp_path: Path) -> None:
    file = _written(tmp_path, 0, [(1, [])])
    replace(file)
    refusal = rf"^{file}: a link, or no regular file; move it away, or save the results under another name$"
    with pytest.raises(ConfigError, match=refusal):
        _parts(tmp_path).done()
    with pytest.raises(ConfigError, match=refusal), _parts(tmp_path).writing(0):
        pass
    assert not file.with_name("elsewhere").exists() or b"[1, []]" in file.with_name("elsewhere").read_bytes()


def test_a_link_to_nowhere_makes_no_file(tmp_path: Path) -> None:
    file = _written(tmp_path, 0)
    file.unlink()
    file.symlink_to(tmp_path / "made")
    with pytest.raises(ConfigError, match="a link, or no regular file"), _parts(tmp_path).writing(0):
        pass
    assert not (tmp_path / "made").exists()


# A full disk


def test_a_full_disk_keeps_what_was_written(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 2) as folder:
        file = _written(folder, 0, [(1, [ROW])])
        filler = fill(folder, 0)
        batch = [(2, [ROW] * 100)]
        with pytest.raises(StorageError, match=rf"^cannot write in {file.parent}: .+; make room"):
            _written(folder, 0, batch)  # longer than the page that the file has
        assert _parts(folder).done() == {1: [ROW]}
        with pytest.raises(StorageError, match=rf"^cannot write in {file.parent}: .+; make room"):
            _parts(folder).finish([ROW] * 100)
        assert [path.name for path in file.parent.iterdir()] == [file.name]
        filler.unlink()
        _written(folder, 0, batch)
        assert _parts(folder).done() == {1: [ROW], 2: [ROW] * 100}


# One run at a time


@pytest.mark.slow
def test_two_runs_into_one_file_are_not_let_in(tmp_path: Path) -> None:
    folder = make_data(tmp_path / "data", pictures=2, split="val")
    small_model().save_pretrained(tmp_path / "tiny.safetensors")
    options = ["eval", "--checkpoint", tmp_path / "tiny.safetensors", "--data", folder, "--device", "cpu"]
    options += ["--workers", 0, "--save"]
    results, lock = tmp_path / "r.json", tmp_path / ".r.json.lock"
    with file_lock(lock, wait=False):  # as a run in another process has it
        ended = run(*options, results)
        assert (ended.code, ended.out) == (2, "")
        assert ended.err.splitlines()[-1] == (
            f"fpg-zoo: {results}: another process writes it and holds {lock}; wait until that has ended, or choose "
            "another place"
        )
        assert not results.exists()
        assert run(*options, tmp_path / "other.json").code == 0
    # What a killed process left of it is in nobody's way.
    lock.write_text("left")
    assert run(*options, results).code == 0
    assert results.is_file()
    assert not lock.exists()


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_without_locks_an_evaluation_goes_on_with_a_warning(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> bool:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(locks, "_taken", refuse)
    cause = re.escape(
        f"{tmp_path / 'sub'}: its file system has no locks ({os.strerror(number)}); see to it that no other"
    )
    with pytest.warns(UserWarning, match=cause), _parts(tmp_path).exclusive(Processes()):
        _written(tmp_path, 0, [(1, [])])
    assert _parts(tmp_path).done() == {1: []}
    assert [path.name for path in (tmp_path / "sub").iterdir()] == ["r.json.part-0.jsonl"]


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
