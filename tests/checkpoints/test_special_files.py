"""What is no regular file of a plausible size is refused at once, in whatever place a model's file stands."""

from __future__ import annotations

import errno
import itertools
import json
import os
import shutil
import socket
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from command import python, run
from tiny_models import tiny_model

import fpg_zoo
from fpg_zoo import cli
from fpg_zoo.checkpoints.safetensors_files import WeightsFile
from fpg_zoo.errors import CheckpointError

TERABYTE = 1 << 40
RETINA = "retinanet_nano_fpg"


def _socket(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # an address takes some 100 bytes
    try:
        with socket.socket(socket.AF_UNIX) as opened:
            opened.bind(path.name)
    finally:
        os.chdir(here)


def _grown(path: Path) -> None:
    """What was there, and zeros to the end of a terabyte."""
    path.with_name(f"{path.name}.good").rename(path)
    os.truncate(path, TERABYTE)


def _sparse(path: Path) -> None:
    path.touch()
    os.truncate(path, TERABYTE)


# How to make it, and what is said of it.
IOU_TYPES: dict[str, tuple[Callable[[Path], None], str]] = {
    "pipe": (os.mkfifo, "not a regular file"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "not a regular file"),
    "terminal": (lambda path: path.symlink_to("/dev/tty"), ""),  # there may be none
    "folder": (Path.mkdir, os.strerror(errno.EISDIR)),
    "socket": (_socket, ""),  # each system has its own words
    "sparse": (_sparse, f"{TERABYTE} bytes, more than the "),
    "grown": (_grown, f"{TERABYTE} bytes, more than the "),
    "endless link": (lambda path: path.symlink_to(path.name), os.strerror(errno.ELOOP)),
}
PLACES = ("one.pth", "one.safetensors", "folder/config.json", "folder/model.safetensors")
CHILD = """
import json, resource, sys, time
import fpg_zoo
from fpg_zoo.errors import CheckpointError
fpg_zoo.create_model(checkpoint=sys.argv.pop())
before, told = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, {}
for path in sys.argv[1:]:
    begun = time.monotonic()
    try:
        fpg_zoo.create_model(checkpoint=path)
    except CheckpointError as error:
        told[path] = str(error), time.monotonic() - begun
print(json.dumps([told, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before]))
"""


@pytest.mark.slow
def test_it_is_refused_at_once_in_every_place(tmp_path: Path) -> None:
    model, cases = tiny_model(RETINA), {}
    model.save_pretrained(tmp_path / "good")
    torch.save(model.state_dict(), tmp_path / "good.pth")
    for kind, place in itertools.product(IOU_TYPES, PLACES):
        folder = tmp_path / kind / place.replace("/", " in ")
        shutil.copytree(tmp_path / "good", folder / "folder")
        path = folder / place
        good = tmp_path / {"one.pth": "good.pth", "one.safetensors": "good/model.safetensors"}.get(place, "")
        shutil.copy(good if good.is_file() else path, path.with_name(f"{path.name}.good"))
        path.unlink(missing_ok=True)
        if kind == "folder" and path.name in ("one.pth", "one.safetensors"):
            continue  # is a model's folder, or has no config.json
        IOU_TYPES[kind][0](path)
        cases[str(path.parent if path.parent.name == "folder" else path)] = path, IOU_TYPES[kind][1]
    done = python("-c", CHILD, *cases, str(tmp_path / "good"))
    assert done.returncode == 0, done.stderr
    told, grown_kb = json.loads(done.stdout)
    assert told.keys() == cases.keys()
    for given, (path, cause) in cases.items():
        message, seconds = told[given]
        assert message.startswith(f"{path}: ")
        assert cause in message
        assert message.isprintable()
        assert seconds < 5
    assert grown_kb < 100_000


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_large_file_that_claims_its_size_is_refused_by_its_header(suffix: str, tmp_path: Path) -> None:
    """Of 7 GB of zeros that are no disk's, within the limit: none is read."""
    path, length = tmp_path / f"large{suffix}", 7 << 30
    if suffix == ".pth":
        torch.save({"a": torch.zeros(4)}, path)
    else:
        header = json.dumps({"a": {"dtype": "F32", "shape": [length // 4], "data_offsets": [0, length]}}).encode()
        path.write_bytes(struct.pack("<Q", len(header)) + header)
        length += 8 + len(header)
    os.truncate(path, length)
    with pytest.raises(CheckpointError, match=rf"large{suffix}: (no|cannot be mapped)"):
        fpg_zoo.create_model(checkpoint=path)


def test_a_tensor_of_no_elements_but_an_impossible_shape_is_refused(tmp_path: Path) -> None:
    for shape in ([0, 2**63], [2**64 - 1, 0]):
        header = json.dumps({"a\x1b": {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}}).encode()
        (tmp_path / "odd.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
        with pytest.raises(CheckpointError, match=r"odd\.safetensors: ") as caught:
            WeightsFile(tmp_path / "odd.safetensors")
        assert str(caught.value).isprintable()


# What the command makes of memory that does not suffice


class OutOfMemoryError(RuntimeError):
    """Named as torch's."""


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:118] . DefaultCPUAllocator: can't allocate memory: you tried to"),
        RuntimeError("unable to mmap 99 bytes from file <x>: Cannot allocate memory (12)"),
        OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    ],
    ids=["Python", "CPU", "mapping", "CUDA"],
)
@pytest.mark.parametrize("command", [("list",), ("convert", "a.pth", "b.safetensors"), ("cache", "path")])
def test_memory_that_does_not_suffice_is_one_line(
    command: tuple[str, ...], error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(options: object) -> int:
        raise error

    for part in (cli.models, cli.weights):
        for name in ("_list", "_convert", "_cache"):
            if hasattr(part, name):
                monkeypatch.setattr(part, name, fail)
    assert run(*command) == (
        2,
        "",
        "fpg-zoo: not enough memory; give it less at a time, end other programs, or use a larger machine\n",
    )


def test_another_error_stays_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(options: object) -> int:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(cli.models, "_list", fail)
    with pytest.raises(RuntimeError, match="a fault of ours"):
        run("list")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.slow
def test_a_process_of_little_memory_says_so(suffix: str, tmp_path: Path) -> None:
    """In a model of 400 MB, whose tensors are of its file's size."""
    model = fpg_zoo.create_model("faster_rcnn_nano_fpg", num_classes=65536)
    path = tmp_path / f"large{suffix}"
    if suffix == ".pth":
        torch.save(model.half().state_dict(), path)
    else:
        model.half().save_pretrained(path)
    code = (
        "import resource, sys; import torch, fpg_zoo.cli, fpg_zoo.models.loading, fpg_zoo.inference.predict_files;"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize();"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 300_000_000,) * 2);"
        "sys.exit(fpg_zoo.cli.main(sys.argv[1:]))"
    )
    done = python("-c", code, "convert", str(path), str(tmp_path / "out.safetensors"))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("fpg-zoo: ")
    assert done.stderr.count("\n") == 1
    assert "memory" in done.stderr
    assert not (tmp_path / "out.safetensors").exists()
