"""Our own files, altered: refused with the path and a cause, at little cost, and headers first."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from command import environment, python
from safetensors.torch import save_file
from tiny_models import tiny_model

import fpg_zoo
from fpg_zoo.checkpoints import safetensors_files
from fpg_zoo.checkpoints.safetensors_files import WeightsFile, save, write_safetensors
from fpg_zoo.errors import CheckpointError, ConfigError, StorageError
from fpg_zoo.modeling.build import build_detector
from fpg_zoo.models.loading import assemble, open_source

Header = dict[str, Any]
TENSOR = "backbone.conv1.weight"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("whole") / "nano.safetensors"
    tiny_model("retinanet_nano_fpg").save_pretrained(path)
    return path.read_bytes()


def taken_apart(data: bytes) -> tuple[Header, bytes]:
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def put_together(header: Header | str, body: bytes) -> bytes:
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    return struct.pack("<Q", len(text)) + text + body


def _description(change: Callable[[Any], None]) -> Callable[[Header, bytes], bytes]:
    def altered(header: Header, body: bytes) -> bytes:
        description = json.loads(header["__metadata__"]["description"])
        change(description)
        header["__metadata__"]["description"] = json.dumps(description)
        return put_together(header, body)

    return altered


def _entry(**changes: Any) -> Callable[[Header, bytes], bytes]:
    def altered(header: Header, body: bytes) -> bytes:
        header[TENSOR] |= changes
        return put_together(header, body)

    return altered


def _nested(header: Header, body: bytes) -> bytes:
    header["__metadata__"]["description"] = "[" * 500_000
    return put_together(header, body)


def _overlapping(header: Header, body: bytes) -> bytes:
    header["backbone.bn1.bias"]["data_offsets"] = header["backbone.bn1.weight"]["data_offsets"]
    return put_together(header, body)


def _depths(depth: int) -> Callable[[Any], None]:
    return lambda description: description["config"]["backbone"].update(depths=[depth] * 4)


# How the file is altered, and what must be said of it.
BY_HAND: dict[str, tuple[Callable[[Header, bytes], bytes], str]] = {
    "a header longer than the file": (lambda header, body: b"\xff\xff\x0f\0\0\0\0\0" + body, "not a whole safetensors"),
    "a header of exabytes": (lambda header, body: b"\xff" * 7 + b"\x0f" + body, "its header would take"),
    "a header of 100 MB": (lambda header, body: struct.pack("<Q", 100_000_000) + body, "its header would take"),
    "no header": (lambda header, body: struct.pack("<Q", 0) + body, "not a whole safetensors"),
    "a header that is no JSON": (lambda header, body: put_together("{hello", body), "not a whole safetensors"),
    "a header that is a list": (lambda header, body: put_together("[]", body), "not a whole safetensors"),
    "brackets without end": (_nested, "does not describe a model"),
    "two tensors in one place": (_overlapping, "not a whole safetensors"),
    "offsets beyond the end": (_entry(data_offsets=[0, 10**15]), "not a whole safetensors"),
    "offsets backwards": (_entry(data_offsets=[100, 0]), "not a whole safetensors"),
    "a shape of 2^80": (_entry(shape=[2**20] * 4), "not a whole safetensors"),
    "a shape below zero": (_entry(shape=[-1, 3, 7, 7]), "not a whole safetensors"),
    "another shape of equal size": (_entry(shape=[3, 24, 7, 7]), "tensors of other shapes"),
    "whole numbers for fractions": (_entry(dtype="I32"), "a kind that weights are not"),
    "numbers of another kind": (_entry(dtype="U32"), "U32 numbers, which weights are not"),
    "numbers of no kind": (_entry(dtype="F13"), "not a whole safetensors"),
    "cut in the middle": (lambda header, body: put_together(header, body[: len(body) // 2]), "not a whole safetensors"),
    "one byte more": (lambda header, body: put_together(header, body + b"\0"), "not a whole safetensors"),
    "another schema": (_description(lambda it: it.update(schema_version=2)), "schema_version 2"),
    "no config": (_description(lambda it: it.pop("config")), "does not describe a model"),
    "another architecture's name": (
        _description(lambda it: it.update(architecture=7)),
        "does not describe a model",
    ),
    "a backbone of a thousand million blocks": (_description(_depths(10**9)), "does not describe a model"),
    "a backbone of other depth": (_description(_depths(2)), "does not fit the architecture"),
    "fewer class names": (_description(lambda it: it["config"]["class_names"].pop()), "its description is not that"),
}


@pytest.mark.parametrize("what", BY_HAND)
def test_an_altered_file_is_refused_with_its_path_and_the_cause(what: str, whole: bytes, tmp_path: Path) -> None:
    alter, cause = BY_HAND[what]
    path = tmp_path / "altered.safetensors"
    path.write_bytes(alter(*taken_apart(whole)))
    with pytest.raises(CheckpointError) as caught:
        fpg_zoo.create_model(checkpoint=path)
    assert str(caught.value).startswith(str(path))
    assert cause in str(caught.value)
    assert "\n" not in str(caught.value)


def test_only_the_header_is_read_of_a_file_that_does_not_fit(whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "altered.safetensors"
    path.write_bytes(_entry(shape=[3, 24, 7, 7])(*taken_apart(whole)))

    def read() -> NoReturn:
        raise AssertionError("read before the header was compared")

    with pytest.raises(CheckpointError, match="other shapes"):
        assemble(dataclasses.replace(open_source(path, None, named=False), read=read), None)


CHILD = """
import sys, resource, pathlib
import torch, fpg_zoo
from fpg_zoo.errors import CheckpointError
import fpg_zoo.models.loading, fpg_zoo.checkpoints.fit
folder = pathlib.Path(sys.argv[1])
fpg_zoo.create_model(checkpoint=folder / "whole.safetensors")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
refused = opened = 0
for path in sorted(folder.glob("mutated*.safetensors")):
    try:
        fpg_zoo.create_model(checkpoint=path)
        opened += 1
    except CheckpointError as error:
        assert str(error).startswith(str(path)), error
        assert "\\n" not in str(error), error
        refused += 1
print(refused, opened, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
def test_200_mutated_files_are_refused_or_read_whole_at_little_cost(whole: bytes, tmp_path: Path) -> None:
    # Mostly of the header: the values carry no check of their own, which is what digests are for.
    (tmp_path / "whole.safetensors").write_bytes(whole)
    generator = random.Random(0)
    header_length = 8 + int.from_bytes(whole[:8], "little")
    for index in range(200):
        data = bytearray(whole)
        kind = index % 5
        if kind == 0:  # one byte of the header
            data[generator.randrange(header_length)] ^= generator.randrange(1, 256)
        elif kind == 1:  # cut anywhere
            del data[generator.randrange(len(data)) :]
        elif kind == 2:  # a run of the header overwritten by a run from elsewhere
            start, length = generator.randrange(header_length), generator.randrange(1, 60)
            place = generator.randrange(len(data) - length)
            data[start : start + length] = data[place : place + length]
        else:  # a metric made another one: of the description, or of anything in the header
            end = whole.index(b'"}') if kind == 3 else header_length
            digits = [place for place in range(8, end) if chr(data[place]).isdigit()]
            place = generator.choice(digits)
            data[place] = ord("0") + (data[place] - ord("0") + generator.randrange(1, 10)) % 10
        (tmp_path / f"mutated{index:03}.safetensors").write_bytes(data)
    done = python("-c", CHILD, str(tmp_path), env=environment(PYTHONPATH=str(Path(fpg_zoo.__file__).parents[1])))
    assert done.returncode == 0, done.stderr
    refused, opened, grown_kb = map(int, done.stdout.split())
    print(
        f"200 mutated files: {refused} refused, {opened} still whole, {grown_kb / 1000:.0f} MB more memory",
    )
    assert refused + opened == 200
    assert refused >= 150  # what is left has another digit in a config's value, say
    assert grown_kb * 1000 <= 2 * len(whole)


@pytest.mark.parametrize("tensors", [{"a": torch.zeros(3)}, {}])
def test_a_file_of_another_library_is_no_model(tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    save_file(tensors, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match=r"other\.safetensors: no model of the zoo: against the nearest, "):
        fpg_zoo.create_model(checkpoint=tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match=r"other\.safetensors: its metadata describes no model of the zoo"):
        WeightsFile(tmp_path / "other.safetensors").described()


def test_a_model_written_twice_gives_the_same_bytes(whole: bytes, tmp_path: Path) -> None:
    for attempt in range(4):
        tiny_model("retinanet_nano_fpg").save_pretrained(tmp_path / f"{attempt}.safetensors")
        assert (tmp_path / f"{attempt}.safetensors").read_bytes() == whole


def test_class_names_of_any_letters_survive(tmp_path: Path) -> None:
    names = ('a "quoted" one', "back\\slash", "\u00fcber", "\u706b\u661f", "\U0001f680", "tab\there", "a\x1fb")
    config = dataclasses.replace(fpg_zoo.model_info("retinanet_nano_fpg").config, class_names=names)
    model = build_detector(config, "retinanet_nano_fpg")
    model.save_pretrained(tmp_path / "odd.safetensors")
    assert fpg_zoo.create_model(checkpoint=tmp_path / "odd.safetensors").class_names == names


@pytest.mark.parametrize("there", [True, False])
def test_permissions_are_kept_or_the_users(there: bool, tmp_path: Path) -> None:
    path = tmp_path / "new.safetensors"
    mask = os.umask(0o027)
    try:
        if there:
            path.touch()
            path.chmod(0o604)
        write_safetensors({"a": torch.ones(1)}, path, {"format": "pt"})
        assert path.stat().st_mode & 0o777 == (0o604 if there else 0o640)
        tiny_model("retinanet_nano_fpg").save_pretrained(tmp_path / "folder")
        assert {file.stat().st_mode & 0o777 for file in (tmp_path / "folder").iterdir()} == {0o640}
    finally:
        os.umask(mask)


def test_safetensors_own_temporary_files_lie_in_a_folder_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places: list[list[str]] = []

    def watched(tensors: object, path: Path, metadata: object) -> None:
        places.append([path.parent.name, *(file.name for file in path.parent.parent.iterdir())])
        raise OSError("the disk is full")

    monkeypatch.setattr(safetensors_files, "save_file", watched)
    for target in (tmp_path / "one.safetensors", tmp_path / "folder"):
        with pytest.raises(StorageError, match="the disk is full"):
            tiny_model("retinanet_nano_fpg").save_pretrained(target)
    for inner, *around in places:
        assert re.fullmatch(r"\.tmp-[0-9a-f]{32}\.d", inner)
        assert around == [inner]
    assert list(tmp_path.rglob("*")) == [tmp_path / "folder"]


def test_a_model_without_values_is_told_before_anything_is_made(tmp_path: Path) -> None:
    config = fpg_zoo.model_info("retinanet_nano_fpg").config
    with torch.device("meta"):
        model = build_detector(config, "retinanet_nano_fpg")
    for target in (tmp_path / "folder", tmp_path / "deep" / "one.safetensors"):
        with pytest.raises(ConfigError, match=r"the model is on the meta device and has no values; load weights"):
            model.save_pretrained(target)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("target", ["folder", "one.safetensors"])
def test_a_description_that_could_not_be_read_again_is_not_written(target: str, tmp_path: Path) -> None:
    tensors = {"a": torch.ones(1)}
    config = fpg_zoo.model_info("retinanet_nano_fpg").config
    names = tuple(f"{'x' * 100_000}{index}" for index in range(43))
    longest = dataclasses.replace(config, class_names=names)
    with pytest.raises(
        ConfigError, match=r"description takes 43\d{5} bytes, of which no more than 4194304 .*class_names"
    ):
        save(tensors, longest, "retinanet_nano_fpg", tmp_path / target, {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16, torch.bool])
def test_the_header_is_at_most_as_long_as_what_is_compared_with_the_limit(
    kind: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "some.safetensors"
    for count in range(1, 40, 3):
        tensors = {f"n\u00e4me.{index}": torch.zeros(count, dtype=kind) for index in range(count)}
        write_safetensors(tensors, path, {"format": "pt", "told": 'a "\u706b"\n'})
        length = int.from_bytes(path.read_bytes()[:8], "little")
        monkeypatch.setattr(safetensors_files, "_MOST_HEADER_BYTES", length - 1)
        with pytest.raises(ConfigError, match="the model's description takes"):
            write_safetensors(tensors, path, {"format": "pt", "told": 'a "\u706b"\n'})
        monkeypatch.undo()
        assert WeightsFile(path).forms.keys() == tensors.keys()


@pytest.mark.parametrize(
    ("target", "told"),
    [
        ("", "no target is named; name a file ending in .safetensors, or a folder"),
        *(
            (f"x{suffix}", f"x{suffix}: pickles are not written here; name a file ending in .safetensors, or a folder")
            for suffix in (".pth", ".PT", ".ckpt", ".bin")
        ),
        ("x.safetensor", "x.safetensor: ends in '.safetensor'; name a file ending in .safetensors, or a folder"),
        ("x.safetensors ", "x.safetensors : ends in '.safetensors '; name a file"),
    ],
)
def test_targets_that_are_a_slip_are_refused(
    target: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = fpg_zoo.model_info("retinanet_nano_fpg").config
    with pytest.raises(StorageError) as caught:
        save({"a": torch.ones(1)}, config, "retinanet_nano_fpg", target, {})
    assert str(caught.value).startswith(told)
    assert list(tmp_path.iterdir()) == []


def test_targets_in_capitals_and_folders_with_odd_names_are_written(tmp_path: Path) -> None:
    model = tiny_model("retinanet_nano_fpg")
    model.save_pretrained(tmp_path / "OUT.SAFETENSORS")
    assert WeightsFile(tmp_path / "OUT.SAFETENSORS").described()[1] == "retinanet_nano_fpg"
    (tmp_path / "run.pt").mkdir()
    model.save_pretrained(tmp_path / "run.pt")
    assert sorted(os.listdir(tmp_path / "run.pt")) == ["config.json", "model.safetensors"]
