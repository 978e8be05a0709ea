"""Files of the reference's family are read as data, or refused; the real ones come from FPG_ZOO_DATA.

Hostile files have their own tests, in test_hostile_checkpoints.py.
"""

from __future__ import annotations

import collections
import datetime
import gc
import os
import re
import sys
import threading
import types
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fpg_zoo.checkpoints.mmdet_files import Checkpoint, read_checkpoint
from fpg_zoo.cli import main
from fpg_zoo.errors import CheckpointError, UnsafeCheckpointError

# Number of tensors, and a fact of each file's meta, read off the files with torch's own loader.
MMENGINE = "selfmade_mmengine_0.10.7_epoch_2.pth"
REAL = {"yunet_n.pth": 208, "yunet_s.pth": 181, "mmcls_lenet5_epoch_1.pth": 10, MMENGINE: 9}


@pytest.mark.parametrize("file", REAL)
def test_real_checkpoints_are_read_safely(file: str, data_folder: Path) -> None:
    content = read_checkpoint(data_folder / "checkpoints" / file)
    assert len(content.state_dict) == REAL[file]


def test_a_real_checkpoint_of_mmengine_tells_its_classes_and_keeps_no_foreign_object(data_folder: Path) -> None:
    content = read_checkpoint(data_folder / "checkpoints" / MMENGINE)
    assert content.class_names == ("a", "b")
    assert (content.meta["epoch"], content.meta["mmengine_version"]) == (2, "0.10.7")
    assert content.state_dict["backbone.0.weight"].shape == (8, 3, 3, 3)
    assert not any(name.startswith(("mmengine", "mmcv")) for name in sys.modules)
    assert torch.serialization.get_unsafe_globals_in_checkpoint(data_folder / "checkpoints" / MMENGINE)


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


def _read(content: object, folder: Path, *, zip_file: bool = True) -> Checkpoint:
    torch.save(content, folder / "own.pth", _use_new_zipfile_serialization=zip_file)
    return read_checkpoint(folder / "own.pth")


def _values(content: Checkpoint) -> dict[str, float]:
    return {name: tensor.item() for name, tensor in content.state_dict.items()}


# Classes that torch does not know


@pytest.fixture
def project(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """Somebody's own package, there while a file is written and gone when it is read."""
    module = types.ModuleType("somebodys_project")
    monkeypatch.setitem(sys.modules, "somebodys_project", module)
    for name, bases in (("Thing", ()), ("ListOfThings", (list,)), ("TableOfThings", (dict,)), ("Weight", ())):
        setattr(module, name, type(name, bases, {"__module__": "somebodys_project"}))
    return module


@pytest.mark.parametrize("zip_file", [True, False], ids=["zip", "legacy"])
def test_objects_of_foreign_classes_beside_the_tensors_are_passed_over(
    zip_file: bool, tmp_path: Path, project: types.ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    thing = project.Thing()
    thing.inside = [np.arange(3), {"deeper": project.Thing()}]
    content = {
        "state_dict": {"a": torch.tensor(1.0)},
        "meta": {"epoch": 3, "best": np.float32(0.5), "where": Path("work"), "when": datetime.timedelta(1)},
        "message_hub": {"things": [thing, project.Thing], "kinds": {np.dtype("int8"), 3}, "method": {}.get},
        "param_schedulers": [{"milestones": collections.Counter({8: 1, 11: 1}), "slice": slice(1, 2)}],
    }
    torch.save(content, tmp_path / "own.pth", _use_new_zipfile_serialization=zip_file)
    monkeypatch.delitem(sys.modules, "somebodys_project")
    read = read_checkpoint(tmp_path / "own.pth")
    assert _values(read) == {"a": 1.0}
    assert read.meta == {"epoch": 3}
    assert "somebodys_project" not in sys.modules


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda project: project.ListOfThings([1]), r"somebodys_project\.ListOfThings returned like a list"),
        (
            lambda project: project.TableOfThings(a=1),
            r"somebodys_project\.TableOfThings returned like a dict",
        ),
        (lambda project: collections.defaultdict(list, a=[]), r"collections\.defaultdict returned like a dict"),
    ],
    ids=["list", "dict", "defaultdict"],
)
def test_foreign_lists_and_dicts_are_refused_with_their_names(
    make: Any, reason: str, tmp_path: Path, project: types.ModuleType
) -> None:
    with pytest.raises(UnsafeCheckpointError, match=rf"own\.pth: refused, its pickle fills what {reason}"):
        _read({"state_dict": {"a": torch.ones(1)}, "meta": make(project)}, tmp_path)


def test_an_object_in_a_tensors_place_is_refused_with_its_class(tmp_path: Path, project: types.ModuleType) -> None:
    with pytest.raises(UnsafeCheckpointError, match=r"its 'a' is no tensor but an object of somebodys_project\.Weight"):
        _read({"state_dict": {"a": project.Weight()}}, tmp_path)


def test_classes_that_the_user_admitted_himself_stay_his(tmp_path: Path, project: types.ModuleType) -> None:
    made = []
    project.Thing.__setstate__ = lambda self, state: made.append(state)
    thing = project.Thing()
    thing.weight = 3
    before = set(torch.serialization.get_safe_globals())
    with torch.serialization.safe_globals([project.Thing]):
        _read({"state_dict": {"a": torch.ones(1)}, "meta": {"thing": thing, "array": np.ones(1)}}, tmp_path)
        assert project.Thing in torch.serialization.get_safe_globals()
    assert made == [{"weight": 3}]
    assert set(torch.serialization.get_safe_globals()) == before


def test_many_threads_read_at_once(tmp_path: Path) -> None:
    content = {"state_dict": {"a": torch.tensor(1.0)}, "meta": {"array": np.ones(1), "where": Path("x")}}
    torch.save(content, tmp_path / "own.pth")
    before = set(torch.serialization.get_safe_globals())
    read: list[dict[str, float]] = []

    def read_often() -> None:
        for _ in range(20):
            read.append(_values(read_checkpoint(tmp_path / "own.pth")))

    threads = [threading.Thread(target=read_often) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read == [{"a": 1.0}] * 80
    assert set(torch.serialization.get_safe_globals()) == before


# Where the tensors are, and what they are called


@pytest.mark.parametrize(
    "names",
    [
        ("module.neck.a", "module.b"),
        ("_orig_mod.neck.a", "_orig_mod.b"),
        ("model.neck.a", "model.b"),
        ("module.model._orig_mod.neck.a", "module.model._orig_mod.b"),
    ],
)
def test_what_wrappers_put_before_every_name_is_dropped(names: tuple[str, str], tmp_path: Path) -> None:
    read = _read({"state_dict": {names[0]: torch.tensor(1.0), names[1]: torch.tensor(2.0)}}, tmp_path)
    assert _values(read) == {"neck.a": 1.0, "b": 2.0}


@pytest.mark.parametrize("names", [("module.a", "b"), ("module.", "module.a")])
def test_what_is_not_before_every_name_stays(names: tuple[str, str], tmp_path: Path) -> None:
    assert tuple(_read({name: torch.ones(1) for name in names}, tmp_path).state_dict) == names


@pytest.mark.parametrize("prefix", ["", "module."])
def test_the_buffers_of_mmcvs_ema_hook_are_dropped(prefix: str, tmp_path: Path) -> None:
    # The hook swaps before it saves: the plain names hold the averages, its buffers the raw weights.
    names = {"neck.conv.weight": 1.0, "bias": 2.0, "ema_neck_conv_weight": 8.0, "ema_bias": 9.0, "ema_other": 5.0}
    read = _read({"state_dict": {prefix + name: torch.tensor(value) for name, value in names.items()}}, tmp_path)
    assert _values(read) == {"neck.conv.weight": 1.0, "bias": 2.0, "ema_other": 5.0}  # no weight is called `other`


def test_the_averages_of_mmengines_ema_hook_are_those_under_state_dict(tmp_path: Path) -> None:
    raw = {"steps": torch.tensor(7), "module.a": torch.tensor(8.0)}
    content = {"state_dict": {"a": torch.tensor(1.0)}, "ema_state_dict": raw}
    assert _values(_read(content, tmp_path)) == {"a": 1.0}
    assert _values(_read({"ema_state_dict": raw}, tmp_path)) == {"a": 8.0}


def test_a_file_with_its_tensors_under_model_is_a_checkpoint(tmp_path: Path) -> None:
    content = {"model": {"a": torch.tensor(1.0)}, "optimizer": {"state": {}}, "epoch": 3, "meta": {"CLASSES": ("x",)}}
    read = _read(content, tmp_path)
    assert (_values(read), read.class_names) == ({"a": 1.0}, ("x",))


@pytest.mark.slow
def test_tensors_of_the_optimiser_do_not_live_on(tmp_path: Path) -> None:
    weight = torch.nn.Parameter(torch.ones(5))
    content = {
        "state_dict": {"a": weight},
        "optimizer": {"state": {0: {"momentum_buffer": torch.ones(5)}}},
        "meta": {"epoch": 3, "last": weight, "both": [weight, 3], "inner": {"weight": weight, "kept": (1, [2])}},
    }
    torch.save(content, tmp_path / "own.pth")
    gc.collect()
    before = sum(issubclass(type(found), torch.Tensor) for found in gc.get_objects())
    read = read_checkpoint(tmp_path / "own.pth")
    gc.collect()
    assert sum(issubclass(type(found), torch.Tensor) for found in gc.get_objects()) == before + 1
    assert read.meta == {"epoch": 3, "inner": {"kept": (1, [2])}}
    assert type(read.state_dict["a"]) is torch.Tensor
    assert not read.state_dict["a"].requires_grad


@pytest.mark.parametrize(
    ("meta", "expected"),
    [
        ({"CLASSES": ("cell", "platelet")}, ("cell", "platelet")),
        ({"CLASSES": ["cell", "platelet"]}, ("cell", "platelet")),
        ({"CLASSES": "cell"}, ("cell",)),  # the slip CLASSES = ("cell")
        ({"dataset_meta": {"classes": ("cell",), "palette": np.zeros((1, 3))}}, ("cell",)),
        ({"dataset_meta": {"CLASSES": ["cell"]}}, ("cell",)),
        ({"dataset_meta": {"classes": "cell"}}, ("cell",)),
        ({"CLASSES": {1: "platelet", 0: "cell"}}, ("cell", "platelet")),
        ({"CLASSES": {"0": "cell", "1": "platelet"}}, ("cell", "platelet")),
        ({"CLASSES": {"platelet": 1, "cell": 0}}, ("cell", "platelet")),
        ({"CLASSES": {"0": 1, "1": 0}}, ("1", "0")),
        ({"dataset_meta": {"CLASSES": None, "classes": ("cell",)}}, ("cell",)),
        ({"CLASSES": None, "dataset_meta": {"classes": ("cell",)}}, ("cell",)),
        ({"CLASSES": None}, None),
        ({"dataset_meta": None}, None),
        ({}, None),
    ],
)
def test_class_names_are_found(meta: dict[str, Any], expected: tuple[str, ...] | None, tmp_path: Path) -> None:
    assert _read({"state_dict": {"a": torch.ones(1)}, "meta": meta}, tmp_path).class_names == expected


@pytest.mark.parametrize(
    ("meta", "told"),
    [
        ({"CLASSES": (1, 2)}, "its CLASSES is no list of names but a tuple that holds int"),
        ({"CLASSES": ["a", ("b", "c")]}, "its CLASSES is no list of names but a list that holds tuple"),
        ({"CLASSES": {"a", "b"}}, "its CLASSES is no list of names but of the type set"),
        ({"CLASSES": b"cell"}, "its CLASSES is no list of names but of the type bytes"),
        ({"CLASSES": 3}, "its CLASSES is no list of names but of the type int"),
        ({"CLASSES": {3: "platelet", 0: "cell"}}, "its CLASSES is no list of names but of the type dict"),
        ({"CLASSES": {"cell": 1, "platelet": 2}}, "its CLASSES is no list of names but of the type dict"),
        ({"CLASSES": torch.ones(2)}, "its CLASSES is no list of names but of the type Tensor"),
        ({"CLASSES": np.array(["a", "b"])}, "its CLASSES is no list of names but an object of 'numpy"),
        ({"CLASSES": [np.str_("a")]}, "its CLASSES is no list of names but a list that holds numpy"),
        ({"dataset_meta": {"CLASSES": 3, "classes": ("a",)}}, "its CLASSES of its dataset_meta is no list of names"),
        ({"dataset_meta": {"classes": {"a"}}}, "its classes of its dataset_meta is no list of names"),
    ],
)
def test_class_names_that_are_none_are_told_when_they_are_asked_for(
    meta: dict[str, Any], told: str, tmp_path: Path
) -> None:
    content = _read({"state_dict": {"a": torch.ones(1)}, "meta": meta}, tmp_path)
    assert _values(content) == {"a": 1.0}
    with pytest.raises(CheckpointError, match=rf"^{re.escape(told)}.*; pass class_names$"):
        _ = content.class_names


@pytest.mark.parametrize("zip_file", [True, False], ids=["zip", "legacy"])
def test_a_file_of_protocol_3_is_read_though_warnings_are_errors(zip_file: bool, tmp_path: Path) -> None:
    content = {"state_dict": {"a": torch.tensor(1.0)}, "meta": {"epoch": 3}}
    torch.save(content, tmp_path / "own.pth", pickle_protocol=3, _use_new_zipfile_serialization=zip_file)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert _values(read_checkpoint(tmp_path / "own.pth")) == {"a": 1.0}


@pytest.mark.parametrize("zip_file", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("protocol", [4, 5])
def test_a_file_of_a_protocol_that_torch_does_not_read_is_told(protocol: int, zip_file: bool, tmp_path: Path) -> None:
    file = tmp_path / "own.pth"
    content = {"state_dict": {"a": torch.tensor(1.0)}}
    torch.save(content, file, pickle_protocol=protocol, _use_new_zipfile_serialization=zip_file)
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(file)
    assert str(caught.value) == (
        f"{file}: is of pickle protocol {protocol}, which torch's safe reader does not know; save it again with "
        "torch.save's default protocol"
    )


def test_bytes_of_protocol_3_are_told(tmp_path: Path) -> None:
    torch.save({"state_dict": {"a": torch.ones(1)}, "meta": {"x": b"y"}}, tmp_path / "own.pth", pickle_protocol=3)
    with pytest.raises(UnsafeCheckpointError, match=r"uses SHORT_BINBYTES, which torch's safe reader does not know\."):
        read_checkpoint(tmp_path / "own.pth")


@pytest.mark.parametrize("zip_file", [True, False], ids=["zip", "legacy"])
def test_a_file_of_1500_tensors_and_their_momenta_is_not_too_much(zip_file: bool, tmp_path: Path) -> None:
    names = [f"backbone.layer{index}.some_module.weight" for index in range(1500)]
    content = {
        "state_dict": collections.OrderedDict((name, torch.zeros(64)) for name in names),
        "optimizer": {"state": {index: {"momentum_buffer": torch.zeros(64)} for index in range(1500)}},
        "meta": {"config": "x" * 50_000, "array": np.zeros(100)},
    }
    torch.save(content, tmp_path / "own.pth", _use_new_zipfile_serialization=zip_file)
    read = read_checkpoint(tmp_path / "own.pth")
    assert list(read.state_dict) == names


# What is no checkpoint


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
