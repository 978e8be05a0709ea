"""Files of the reference's family are read as data, or refused; the real ones come from FPG_ZOO_DATA."""

from __future__ import annotations

import collections
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from fpg_zoo.cli import main
from fpg_zoo.errors import CheckpointError, UnsafeCheckpointError
from fpg_zoo.weights.checkpoint import read_checkpoint

# Number of tensors, and a fact of each file's meta, read off the files with torch's own loader.
REAL = {"yunet_n.pth": 208, "yunet_s.pth": 181, "mmcls_lenet5_epoch_1.pth": 10}


@pytest.mark.parametrize("file", REAL)
def test_real_checkpoints_are_read_safely(file: str, data_folder: Path) -> None:
    content = read_checkpoint(data_folder / "checkpoints" / file)
    assert len(content.state_dict) == REAL[file]


def test_a_real_checkpoint_that_asks_for_classes_is_refused_with_their_names(data_folder: Path) -> None:
    with pytest.raises(UnsafeCheckpointError) as caught:
        read_checkpoint(data_folder / "checkpoints" / "selfmade_mmengine_0.10.7_epoch_2.pth")
    for name in ("mmengine.logging.history_buffer.HistoryBuffer", "getattr", "numpy.ndarray"):
        assert name in str(caught.value)


@pytest.mark.parametrize("file", REAL)
def test_convert_says_in_one_line_that_they_are_no_model_of_the_zoo(
    file: str, data_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.safetensors"
    assert main(["convert", str(data_folder / "checkpoints" / file), str(out)]) == 2
    told = capsys.readouterr()
    assert re.fullmatch(rf"fpg-zoo: .*{file}: no model of the zoo: .*\n", told.err)
    assert told.out == ""
    assert list(tmp_path.iterdir()) == []


class Payload:
    """Unpickled, it would make a folder."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (self.folder,)


@pytest.mark.parametrize("zip_file", [True, False], ids=["zip", "legacy"])
def test_code_in_a_pickle_is_named_and_never_run(zip_file: bool, tmp_path: Path) -> None:
    trap = tmp_path / "ran"
    file = tmp_path / "hostile.pth"
    torch.save({"state_dict": {}, "meta": Payload(str(trap))}, file, _use_new_zipfile_serialization=zip_file)
    with pytest.raises(UnsafeCheckpointError, match=r"refused, its pickle asks for (posix|nt)\.mkdir"):
        read_checkpoint(file)
    assert not trap.exists()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ([1, 2], "holds a list, not a checkpoint's dict"),
        ({"state_dict": {}}, "no tensors under state_dict"),
        ({"meta": {}}, "'meta' is a dict, a checkpoint holds named tensors"),
        ({"state_dict": {"a": 3}}, "'a' is a int, a checkpoint holds named tensors"),
    ],
)
def test_what_is_no_checkpoint_is_told(content: object, reason: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "odd.pth")
    with pytest.raises(CheckpointError, match=reason):
        read_checkpoint(tmp_path / "odd.pth")


def test_a_plain_dict_of_tensors_is_a_checkpoint(tmp_path: Path) -> None:
    tensors = collections.OrderedDict(a=torch.arange(3), b=torch.zeros(2, 2))
    torch.save(tensors, tmp_path / "plain.pth")
    content = read_checkpoint(tmp_path / "plain.pth")
    assert {name: tuple(tensor.shape) for name, tensor in content.state_dict.items()} == {"a": (3,), "b": (2, 2)}
    assert content.meta == {}
    assert content.class_names is None


@pytest.mark.parametrize(
    "data", [b"", b"hello, this is text", b"<html></html>", b"PK\x03\x04" + bytes(50), bytes(1000)]
)
def test_other_files_are_refused_with_their_path(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "other.pth").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"other\.pth: no "):
        read_checkpoint(tmp_path / "other.pth")


@pytest.mark.parametrize("zip_file", [True, False], ids=["zip", "legacy"])
def test_a_cut_checkpoint_is_refused(zip_file: bool, tmp_path: Path) -> None:
    file = tmp_path / "cut.pth"
    torch.save({"state_dict": {"a": torch.ones(10_000)}}, file, _use_new_zipfile_serialization=zip_file)
    whole = file.read_bytes()
    for kept in (10, len(whole) // 2, len(whole) - 10):
        file.write_bytes(whole[:kept])
        with pytest.raises(CheckpointError, match=r"cut\.pth: no "):
            read_checkpoint(file)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"gone\.pth: no such file"):
        read_checkpoint(tmp_path / "gone.pth")


@pytest.mark.parametrize("zip_file", [True, False], ids=["zip", "legacy"])
def test_damage_anywhere_gives_one_error_and_no_other(zip_file: bool, tmp_path: Path) -> None:
    file = tmp_path / "damaged.pth"
    content = {"meta": {"CLASSES": ("a", "b"), "epoch": 50}, "state_dict": {"a": torch.ones(3), "b": torch.zeros(2)}}
    torch.save(content, file, _use_new_zipfile_serialization=zip_file)
    whole = file.read_bytes()
    random = np.random.default_rng(0)
    damaged = [whole[:cut] for cut in range(0, len(whole), max(len(whole) // 150, 1))]
    for _ in range(400):
        bytes_ = bytearray(whole)
        bytes_[random.integers(len(bytes_))] ^= int(random.integers(1, 256))
        damaged.append(bytes(bytes_))
    refused = 0
    for data in damaged:
        file.write_bytes(data)
        try:
            read_checkpoint(file)
        except CheckpointError:
            refused += 1
    assert refused >= 100  # damage to a tensor's values goes unseen, which is what digests are for
