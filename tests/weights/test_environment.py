"""What the environment lacks or has late: a home folder, an entry for the user, a mirror of another kind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from command import environment, run
from serving import HOST

from fpg_zoo.errors import DownloadError, StorageError
from fpg_zoo.weights.environment import cache_folder, mirrored

# As a user number without an entry in the system's list has it.
WITHOUT_HOME = """
import os, pwd, sys

def unknown(*_):
    raise KeyError("no such user")

pwd.getpwuid = pwd.getpwnam = unknown
for name in ("HOME", "XDG_CACHE_HOME", "FPG_ZOO_CACHE", "HF_HOME", "HF_HUB_CACHE"):
    os.environ.pop(name, None)
os.environ.update(one.split("=", 1) for one in sys.argv.pop(1).split())
from fpg_zoo.cli import main
sys.exit(main())
"""


def without_home(variables: str, *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_HOME, variables, *arguments],
        check=False,
        capture_output=True,
        text=True,
        cwd=folder,
        env=environment(),
        timeout=120,
    )


@pytest.mark.parametrize(
    ("variables", "arguments", "remedy"),
    [
        ("", ("cache", "path"), "set FPG_ZOO_CACHE to"),
        ("", ("cache", "list"), "set FPG_ZOO_CACHE to"),
        ("", ("cache", "prune"), "set FPG_ZOO_CACHE to"),
        ("", ("verify",), "set FPG_ZOO_CACHE to"),
        ("", ("download", "mask_rcnn_r50_fpg"), "set FPG_ZOO_CACHE to"),
        ("", ("download", "hf-hub:owner/repository"), "set FPG_ZOO_CACHE to"),
        ("FPG_ZOO_CACHE=~/weights", ("cache", "path"), "FPG_ZOO_CACHE=~/weights: no home folder"),
        ("FPG_ZOO_CACHE=~somebody/weights", ("cache", "list"), "FPG_ZOO_CACHE=~somebody/weights: no home folder"),
        ("XDG_CACHE_HOME=~/cache", ("verify",), "set FPG_ZOO_CACHE to"),
        ("FPG_ZOO_CACHE=zoo", ("download", "hf-hub:owner/repository"), "set HF_HOME to"),
    ],
)
@pytest.mark.slow
def test_without_a_home_it_is_told_what_to_set(
    variables: str, arguments: tuple[str, ...], remedy: str, tmp_path: Path
) -> None:
    ended = without_home(variables, *arguments, folder=tmp_path)
    assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (2, "", 1), ended.stderr
    assert remedy in ended.stderr
    assert os.listdir(tmp_path) == []  # and no folder named "~"


@pytest.mark.parametrize(
    ("variables", "arguments", "output"),
    [
        ("FPG_ZOO_CACHE=zoo", ("cache", "path"), "zoo\n"),
        ("FPG_ZOO_CACHE=zoo", ("cache",), "0 files, 0.0 MB in zoo\n"),
        ("FPG_ZOO_CACHE=zoo", ("verify",), "nothing in the cache zoo\n"),
        ("XDG_CACHE_HOME=/cache", ("cache", "path"), "/cache/fpg_zoo\n"),
        ("HOME=/home/somebody", ("cache", "path"), "/home/somebody/.cache/fpg_zoo\n"),
    ],
)
def test_without_a_home_it_works_where_it_is_told(
    variables: str, arguments: tuple[str, ...], output: str, tmp_path: Path
) -> None:
    ended = without_home(variables, *arguments, folder=tmp_path)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, output, "")


@pytest.mark.slow
def test_a_model_in_the_package_needs_no_home(tmp_path: Path) -> None:
    ended = without_home(
        "", "eval", "--model", "retinanet_nano_fpg", "--data", "shapes", "--limit", "1", folder=tmp_path
    )
    assert ended.returncode == 0, ended.stderr
    assert os.listdir(tmp_path) == []


def test_a_cache_folder_is_found_in_the_environment_of_the_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FPG_ZOO_CACHE", "/somewhere")
    assert cache_folder() == Path("/somewhere")
    monkeypatch.setenv("FPG_ZOO_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert cache_folder() == Path("/caches/fpg_zoo")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert cache_folder() == Path("/home/somebody/.cache/fpg_zoo")
    monkeypatch.setenv("FPG_ZOO_CACHE", "~no-such-user/x")
    with pytest.raises(StorageError, match="FPG_ZOO_CACHE=~no-such-user/x: no home folder is known"):
        cache_folder()


@pytest.mark.parametrize(
    "mirror",
    [
        "ftp://host/x",
        "FTP://user:secret@host/x",
        "data:,x",
        "s3://bucket",
        "javascript:x",
        "ssh://u:secret@h",
        "fileX:x",
    ],
)
def test_a_mirror_is_http_or_a_folder(mirror: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FPG_ZOO_MIRROR", mirror)
    with pytest.raises(DownloadError, match="a mirror is one of http:, https: or file:") as caught:
        mirrored(f"{HOST}/x.pth")
    assert "secret" not in str(caught.value)
    told = run("download", "mask_rcnn_r50_fpg")
    assert told == (2, "", f"fpg-zoo: {caught.value}\n")
