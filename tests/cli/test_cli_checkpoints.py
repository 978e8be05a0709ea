"""Checkpoints at the command line: converted whole or not at all, verified by their digests."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from command import run
from safetensors import safe_open
from tiny_models import tiny_model

import fpg_zoo
from fpg_zoo.modeling.build import build_detector

# convert


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in the format of the published ones."""
    path = tmp_path_factory.mktemp("published") / "nano.pth"
    content = {"meta": {}, "state_dict": fpg_zoo.reference_state_dict(tiny_model())}
    torch.save(content, path, _use_new_zipfile_serialization=False)
    return path


@pytest.mark.parametrize("out", ["nano.safetensors", "made/for/it/nano.safetensors", "folder", "made/for/a/folder"])
def test_a_converted_checkpoint_holds_equal_tensors(out: str, published: Path, tmp_path: Path) -> None:
    target = tmp_path / out
    code, told, err = run("convert", published, target)
    assert (code, err) == (0, "")
    digest = hashlib.sha256(published.read_bytes()).hexdigest()
    expected = tiny_model().state_dict()
    for fact in (str(target), "mask_rcnn_nano_fpg", "80 classes", f"{len(expected)} tensors", digest):
        assert fact in told
    if target.suffix:
        model = fpg_zoo.create_model(checkpoint=target)
        file = target
    else:
        model = fpg_zoo.create_model(f"local-dir:{target}")
        file = target / "model.safetensors"
        assert sorted(path.name for path in target.iterdir()) == ["config.json", "model.safetensors"]
    assert not model.training
    assert model.name == "mask_rcnn_nano_fpg"
    found = model.state_dict()
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    with safe_open(file, framework="pt") as stream:
        metadata = stream.metadata()
    assert (metadata["source_file"], metadata["source_sha256"]) == ("nano.pth", digest)


def test_a_converted_checkpoint_keeps_its_class_names(tmp_path: Path) -> None:
    names = tuple(f"thing {index}" for index in range(80))
    content = {"meta": {"CLASSES": names}, "state_dict": fpg_zoo.reference_state_dict(tiny_model())}
    torch.save(content, tmp_path / "things.pth")
    assert run("convert", tmp_path / "things.pth", tmp_path / "things.safetensors")[0] == 0
    assert fpg_zoo.create_model(checkpoint=tmp_path / "things.safetensors").class_names == names


def _write_text(path: Path) -> None:
    path.write_text("This is no checkpoint.\n" * 100)


def _write_other_model(path: Path) -> None:
    torch.save({"state_dict": {"fc.weight": torch.zeros(3, 3)}}, path)


def _write_half(path: Path) -> None:
    torch.save({"state_dict": fpg_zoo.reference_state_dict(tiny_model())}, path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


class _MakesFolder:
    """Pickled, it asks for a folder when it is read."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("made_by_reading",)


def _write_dangerous(path: Path) -> None:
    torch.save({"meta": _MakesFolder(), "state_dict": {}}, path)


@pytest.mark.parametrize(
    ("write", "cause"),
    [
        (_write_text, "torch.save wrote"),
        (_write_half, "damaged"),
        (_write_other_model, "no model of the zoo"),
        (_write_dangerous, "posix.mkdir"),
        (lambda path: None, "no such file"),
        (lambda path: path.write_bytes(b""), "nano.pth"),
    ],
    ids=["text", "truncated", "another model", "dangerous", "missing", "empty"],
)
@pytest.mark.parametrize("out", ["out.safetensors", "out"])
def test_what_is_no_checkpoint_is_refused_in_one_line(
    write: Callable[[Path], Any], cause: str, out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "nano.pth"
    write(path)
    before = sorted(tmp_path.iterdir())
    code, told, err = run("convert", path, tmp_path / out)
    assert (code, told) == (2, "")
    assert err.startswith(f"fpg-zoo: {path}: ")
    assert cause in err
    assert err.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("out", ["file/out.safetensors", "file/out", "folder.safetensors"])
def test_a_target_that_cannot_be_written_is_refused(out: str, published: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder.safetensors").mkdir()
    code, told, err = run("convert", published, tmp_path / out)
    assert (code, told) == (2, "")
    folder = f"{tmp_path / out}: there is a folder of this name; choose another\n"
    assert err.startswith(f"fpg-zoo: {folder if out.startswith('folder') else f'cannot write in {tmp_path}'}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.safetensors"]
    assert list((tmp_path / "folder.safetensors").iterdir()) == []


# verify


@pytest.fixture
def digested(tmp_path: Path) -> tuple[Path, str]:
    """A file named by the first digits of its SHA-256, and all of them."""
    digest = hashlib.sha256(b"some weights").hexdigest()
    path = tmp_path / f"nano-{digest[:8]}.pth"
    path.write_bytes(b"some weights")
    return path, digest


def test_verify_finds_the_digits_of_a_name_right(digested: tuple[Path, str]) -> None:
    path, digest = digested
    code, out, err = run("verify", path)
    assert (code, err) == (0, "")
    assert out.split()[:2] == ["good", str(path)]
    assert digest in out


def test_verify_finds_the_digits_of_a_name_wrong(digested: tuple[Path, str]) -> None:
    path, digest = digested
    wrong = digest[:7] + ("0" if digest[7] != "0" else "1")
    path = path.rename(path.with_name(f"nano-{wrong}.pth"))
    code, out, _ = run("verify", path)
    assert code == 1
    assert out.split()[:2] == ["altered", str(path)]
    assert wrong in out
    assert digest in out


@pytest.mark.parametrize(("name", "cause"), [("nano.pth", "nothing to compare it with"), ("gone.pth", "no such file")])
def test_verify_refuses_what_it_cannot_compare(name: str, cause: str, tmp_path: Path) -> None:
    (tmp_path / "nano.pth").write_bytes(b"some weights")
    code, out, err = run("verify", tmp_path / name)
    assert (code, out) == (2, "")
    assert err.startswith(f"fpg-zoo: {tmp_path / name}: {cause}")


def test_verify_of_an_empty_cache_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FPG_ZOO_CACHE", str(tmp_path / "nowhere"))
    assert run("verify") == (0, f"nothing in the cache {tmp_path / 'nowhere'}\n", "")
    assert not (tmp_path / "nowhere").exists()


def test_verify_reports_a_file_of_unknown_origin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FPG_ZOO_CACHE", str(tmp_path))
    tiny_model().save_pretrained(tmp_path / "mine.safetensors")
    code, out, _ = run("verify")
    assert code == 1
    assert out.split()[:2] == ["foreign", str(tmp_path / "mine.safetensors")]


# cache


def test_the_cache_is_listed_pruned_and_told_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "weights"
    monkeypatch.setenv("FPG_ZOO_CACHE", str(cache))
    assert run("cache", "path") == (0, f"{cache}\n", "")
    assert run("cache") == (0, f"0 files, 0.0 MB in {cache}\n", "")
    assert not cache.exists()
    cache.mkdir()
    (cache / "retinanet_r50_fpg.coco_2022-0123abcd.pth.part").write_bytes(bytes(3_000_000))
    (cache / "retinanet_r50_fpg.coco_2022-0123abcd.pth.part.json").write_text("{}")
    (cache / "mine.safetensors").write_bytes(bytes(1_500_000))
    code, told, err = run("cache", "list")
    assert (code, err) == (0, "")
    assert told.splitlines() == [
        "foreign          1.5 MB  mine.safetensors",
        "partial          3.0 MB  retinanet_r50_fpg.coco_2022-0123abcd.pth.part",
        f"2 files, 4.5 MB in {cache}",
    ]
    code, told, err = run("cache", "prune")
    assert (code, err) == (0, "")
    assert told.splitlines()[-1] == f"1 files, 3.0 MB removed from {cache}"
    assert [path.name for path in cache.iterdir() if path.suffix != ".lock"] == ["mine.safetensors"]


@pytest.mark.parametrize("arguments", [(), ("retinanet_r50_fpg", "--all")])
def test_download_takes_names_or_all(arguments: tuple[str, ...]) -> None:
    code, told, err = run("download", *arguments)
    assert (code, told) == (2, "")
    assert err == ("fpg-zoo: download what? Give names (`fpg-zoo list --pretrained` has them), or --all alone\n")


# push


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        (("owner",), "'owner': name the repository as OWNER/REPO"),
        (("owner/repo@main",), "name the repository alone, and the branch 'main' as the revision"),
        (("owner/repo", "--metric", "41.2"), "--metric '41.2': give NAME=VALUE"),
        (("owner/repo", "--metric", "box_ap=nan"), "box_ap=nan is no finite number"),
        (("owner/repo", "--metric", "a=1", "--figure", "a=2"), "a is there twice"),
        (("owner/repo", "--metric", "box_ap=1", "--metric", "box AP=2"), "name one metric twice"),
        (("owner/repo", "--revision", "0" * 40), "a push needs a branch"),
        (("owner/repo", "--licence", "My Own"), "license 'My Own': give the hub's identifier"),
    ],
)
def test_push_looks_at_its_arguments_before_it_loads_a_model(arguments: tuple[str, ...], cause: str) -> None:
    code, told, err = run("push", "no/such/model.safetensors", *arguments)
    assert (code, told) == (2, "")
    assert cause in err
    assert err.count("\n") == 1


def test_a_home_folder_is_found_where_the_shell_leaves_it_to_us(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "in.pth").write_bytes(published.read_bytes())
    assert run("convert", "~/in.pth", "~/out.safetensors")[0] == 0
    assert (tmp_path / "out.safetensors").is_file()


def test_converting_a_file_onto_itself_is_refused(published: Path, tmp_path: Path) -> None:
    file = tmp_path / "in.pth"
    file.write_bytes(published.read_bytes())
    code, told, err = run("convert", file, file, "--to", "reference")
    assert (code, told) == (2, "")
    assert "OUT is FILE itself" in err
    assert file.read_bytes() == published.read_bytes()


@pytest.mark.parametrize("names", [("a", "a"), ("a", " "), ("a", "b", "c")])
def test_class_names_that_cannot_be_used_come_with_a_way_out(names: tuple[str, ...], tmp_path: Path) -> None:
    config = dataclasses.replace(fpg_zoo.model_info("retinanet_nano_fpg").config, class_names=("x", "y"))
    state_dict = fpg_zoo.reference_state_dict(build_detector(config))
    torch.save({"meta": {"CLASSES": names}, "state_dict": state_dict}, tmp_path / "odd.pth")
    code, _, err = run("convert", tmp_path / "odd.pth", tmp_path / "odd.safetensors")
    assert code == 2
    assert "class_names=[...]).save_pretrained(...) in Python" in err
    model = fpg_zoo.create_model(checkpoint=tmp_path / "odd.pth", class_names=["x", "y"])
    assert model.class_names == ("x", "y")
