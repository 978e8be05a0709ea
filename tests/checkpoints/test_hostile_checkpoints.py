"""No hostile file is read, run, or allowed more memory than twice its size; and damage never gives another error."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import hostile
import numpy as np
import pytest
import torch
from hostile import HOSTILE, MEASURED, write_all
from hostile_making import MEGABYTE, checkpoint, legacy_checkpoint, name, tensor, text, write_legacy, write_zip

import fpg_zoo
from fpg_zoo.checkpoints.mmdet_files import read_checkpoint
from fpg_zoo.errors import CheckpointError

MOST_MEMORY = 16 * MEGABYTE  # beyond twice the file
MOST_SECONDS = 30.0  # or it hangs


class Outcome(NamedTuple):
    """What came of reading one hostile file in the other process."""

    error: str
    message: str
    growth: int
    seconds: float


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    write_all(folder, folder / "trap")
    return folder


@pytest.fixture(scope="module")
def outcomes(folder: Path) -> dict[str, Outcome]:
    """They are read in another process, which nothing has made to take memory before."""
    paths = [str(Path(fpg_zoo.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, hostile.__file__, folder],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return {row[0]: Outcome(*row[1:]) for row in map(json.loads, done.stdout.splitlines())}


def _size(folder: Path, label: str) -> int:
    return (folder / f"{label}.pth").stat().st_size


def _refusal(path: Path) -> str:
    """The message of the one error that reading may give, or nothing."""
    try:
        read_checkpoint(path)
    except CheckpointError as error:
        return str(error)
    return ""


@pytest.mark.slow
def test_none_is_read_and_none_executed(folder: Path, outcomes: dict[str, Outcome]) -> None:
    refused = [label for label, outcome in outcomes.items() if outcome.error != "none"]
    executed = (folder / "trap").exists()
    beyond, where = max((row.growth - 2 * _size(folder, label), label) for label, row in outcomes.items())
    slowest = max(row.seconds for row in outcomes.values())
    print(
        f"{len(HOSTILE)} hostile files: {len(refused)} refused, {int(executed)} executed, {slowest:.2f} s at most, "
        f"peak memory at most twice the file and {beyond / MEGABYTE:.1f} MB ({where})"
    )
    assert len(HOSTILE) >= 90
    assert sorted(refused) == sorted(HOSTILE)
    assert not executed
    assert {path.name for path in folder.iterdir()} == {f"{label}.pth" for label in [*HOSTILE, "good"]}


@pytest.mark.parametrize("label", HOSTILE)
def test_it_is_refused_with_its_cause_and_path(label: str, folder: Path, outcomes: dict[str, Outcome]) -> None:
    error, message, growth, seconds = outcomes[label]
    assert message.startswith(f"{folder / f'{label}.pth'}: ")
    assert re.search(HOSTILE[label].cause, message)
    assert error == ("UnsafeCheckpointError" if HOSTILE[label].unsafe else "CheckpointError")
    assert "\n" not in message
    assert len(message) < 1000
    assert seconds < MOST_SECONDS
    if MEASURED:
        assert growth <= 2 * _size(folder, label) + MOST_MEMORY


@pytest.mark.parametrize("zip_file", [True, False], ids=["zip", "legacy"])
def test_the_files_are_good_but_for_what_makes_them_hostile(zip_file: bool, tmp_path: Path) -> None:
    file = tmp_path / "good.pth"
    if zip_file:
        write_zip(file, checkpoint())
    else:
        write_legacy(file, legacy_checkpoint())
    assert read_checkpoint(file).state_dict["weight"].tolist() == [1, 1, 1, 1]


def test_views_within_a_storage_are_read(tmp_path: Path) -> None:
    write_zip(tmp_path / "view.pth", checkpoint(weight=tensor((2, 1), (1, 9), 2)))
    assert read_checkpoint(tmp_path / "view.pth").state_dict["weight"].tolist() == [[1], [1]]


@pytest.mark.parametrize("zip_file", [True, False], ids=["zip", "legacy"])
def test_damage_to_files_with_foreign_names_gives_one_error_and_no_other(zip_file: bool, tmp_path: Path) -> None:
    content = {
        "meta": {"CLASSES": ("a", "b"), "best": np.float64(0.5)},
        "state_dict": {"a": torch.ones(3), "b": torch.zeros(2, 2), "c": torch.nn.Parameter(torch.ones(1))},
        "message_hub": {"losses": np.arange(4.0), "where": Path("here"), "kind": np.dtype("int32")},
        "optimizer": {"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": [{"params": [0, 1]}]},
    }
    file = tmp_path / "damaged.pth"
    torch.save(content, file, _use_new_zipfile_serialization=zip_file)
    assert list(read_checkpoint(file).state_dict) == ["a", "b", "c"]
    whole = file.read_bytes()
    random = np.random.default_rng(0)
    refused = 0
    for round_ in range(600):
        damaged = bytearray(whole)
        for place in random.integers(len(damaged), size=1 + round_ % 3):
            damaged[place] = random.integers(256)
        if round_ % 5 == 0:  # bytes moved along
            begin, end = sorted(random.integers(len(damaged), size=2))
            damaged[begin:end] = damaged[begin : end + int(random.integers(1, 9))]
        file.write_bytes(damaged)
        message = _refusal(file)
        assert re.fullmatch(rf"({re.escape(str(file))}: .+)?", message)
        refused += message != ""
    assert refused >= 200


def test_a_pickle_of_random_opcodes_gives_one_error_and_no_other(tmp_path: Path) -> None:
    words = [
        *(b"(", b")", b"N", b"]", b"}", b"a", b"e", b"s", b"u", b"t", b"\x85", b"\x86", b"R", b"\x81", b"b", b"Q"),
        *(b"q\x00", b"q\x01", b"h\x00", b"h\x01", b"K\x05", text("storage"), text("latin1"), text("state_dict")),
        *(name("torch._utils._rebuild_tensor_v2"), name("collections.OrderedDict"), name("_codecs.encode")),
        *(name("builtins.set"), name("collections.Counter"), name("torch.Size"), name("torch.device")),
        *(name("some.Class"), tensor(), b"\x8f", b"\x88", b"G" + bytes(8)),
    ]
    random = np.random.default_rng(1)
    file = tmp_path / "random.pth"
    read = 0
    for _ in range(600):
        chosen = b"".join(words[index] for index in random.integers(len(words), size=random.integers(1, 12)))
        write_zip(file, checkpoint(meta=chosen))
        message = _refusal(file)
        assert re.fullmatch(rf"({re.escape(str(file))}: .+)?", message)
        read += message == ""
    assert 10 < read < 500
