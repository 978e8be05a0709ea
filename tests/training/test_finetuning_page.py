"""The commands of `docs/finetuning.md`, one after the other, on a few images and for an epoch."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from command import run
from conftest import ROOT
from PIL import Image

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]
PAGE = ROOT / "docs" / "finetuning.md"
# What follows them in a command counts in place of what the page says.
SHORT = ("--epochs", "1", "--evaluate-every", "1", "--batch-size", "2", "--workers", "0")
PHOTOGRAPHS = (
    "2019_YELL_2_528000_4978000_image_crop2",
    "2019_YELL_2_541000_4977000_image_crop",
    "OSBS_029",
    "SOAP_061",
)


def commands(heading: str) -> Iterator[list[str]]:
    """Those of a section, without variables before them."""
    sections = re.split(r"^#+ ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    (section,) = (one for one in sections if one.startswith(heading))
    for block in re.findall(r"```sh\n(.*?)```", section, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            while words and re.fullmatch(r"\w+=\S+", words[0]):
                del words[0]
            if words:
                yield words


def done(words: list[str]) -> None:
    """Run it; of the repository's files the paths are whole."""
    words = [str(ROOT / word) if word.startswith(("examples/", "benchmarks/")) else word for word in words]
    if words[0] == "python":
        subprocess.run([sys.executable, *words[1:]], check=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
        return
    assert words[0] == "fpg-zoo"
    ended = run(*words[1:], *(SHORT if words[1] == "train" else ()))
    assert ended.code in (0, 1 if words[1] == "convert-data" else 0), ended.err


def blood_cells(data: Path, out: Path, each: int) -> None:
    """The first images of each list."""
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (out / folder).mkdir(parents=True)
    for part in ("train", "val", "test"):
        names = (data / "ImageSets" / "Main" / f"{part}.txt").read_text().split()[:each]
        (out / "ImageSets" / "Main" / f"{part}.txt").write_text("\n".join(names))
        for name in names:
            shutil.copy(data / "Annotations" / f"{name}.xml", out / "Annotations")
            shutil.copy(data / "JPEGImages" / f"{name}.jpg", out / "JPEGImages")


def photographs(out: Path) -> None:
    """Two dark blocks in each: one in either half."""
    out.mkdir(parents=True)
    for name in PHOTOGRAPHS:
        pixels = np.full((410, 820, 3), 200, np.uint8)
        root = ElementTree.Element("annotation")
        for x1, y1, x2, y2 in ((100, 50, 160, 120), (500, 200, 580, 260)):
            pixels[y1:y2, x1:x2] = 40
            box = ElementTree.SubElement(ElementTree.SubElement(root, "object"), "bndbox")
            for side, value in zip(("xmin", "ymin", "xmax", "ymax"), (x1, y1, x2, y2), strict=True):
                ElementTree.SubElement(box, side).text = str(value)
        Image.fromarray(pixels).save(out / f"{name}.png")
        ElementTree.ElementTree(root).write(out / f"{name}.xml")


def test_blood_cells(data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blood_cells(data_folder / "BCCD", tmp_path / "BCCD_Dataset" / "BCCD", each=3)
    ran = [words for words in commands("Fine-tuning") if words[0] != "git" and "bccd_r50" not in " ".join(words)]
    assert [words[1] for words in ran] == ["convert-data", "train", "eval"]
    for words in ran:
        done(words)


def test_from_a_backbone(data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("timm")
    monkeypatch.chdir(tmp_path)
    blood_cells(data_folder / "BCCD", tmp_path / "BCCD", each=3)
    assert run("convert-data", "BCCD", "bccd").code == 0
    ran = [words for words in commands("From a backbone") if words[0] != "pip"]
    assert [words[1] for words in ran] == ["train", "eval"]
    done([*ran[0], "--backbone-checkpoint", str(data_folder / "backbones" / "tf_efficientnet_lite0.in1k.safetensors")])
    done(ran[1])


def test_trees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    photographs(tmp_path / "deepforest" / "data")
    ran = [words for words in commands("Trees from the air") if words[0] != "pip"]
    assert [words[1] for words in ran] == [str(Path("examples", "trees", "prepare.py")), "train", "eval", "predict"]
    done(ran[0])
    for words in ran[1:]:
        done(words)
    assert list((tmp_path / "found").iterdir())
    # By hand: each half of the photograph that is judged by has one block, in one tile.
    for split, box in (("val", [100, 50, 60, 70]), ("test", [90, 200, 80, 60])):
        content = json.loads((tmp_path / "trees" / "annotations" / f"instances_{split}.json").read_text())
        assert [row["bbox"] for row in content["annotations"]] == [box]
