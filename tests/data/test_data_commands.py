"""`eval`, `train` and `convert-data` on files of other systems: the metrics are those of the clean file."""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command import run
from voc_folders import GOOD, voc_xml, write_voc

from fpg_zoo.data.shapes import write_coco


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three scenes as a folder of COCO's layout, each split the same."""
    folder = tmp_path_factory.mktemp("scenes")
    write_coco(folder, "val", 3)
    text = (folder / "annotations" / "instances_val.json").read_text()
    (folder / "annotations" / "instances_train.json").write_text(text)
    (folder / "train").symlink_to("val")
    return folder


def _copy(scenes: Path, folder: Path, change: Callable[[dict[str, Any]], Any], encoding: str) -> Path:
    """The scenes with other entries of images, in another encoding."""
    (folder / "annotations").mkdir(parents=True)
    for split in ("train", "val"):
        content = json.loads((scenes / "annotations" / f"instances_{split}.json").read_text())
        for image in content["images"]:
            change(image)
        (folder / "annotations" / f"instances_{split}.json").write_bytes(json.dumps(content).encode(encoding))
    (folder / "val").symlink_to(scenes / "val")
    (folder / "train").symlink_to(scenes / "val")
    return folder


def _figures(data: Path, file: Path) -> Any:
    ended = run(
        "eval", "--model", "retinanet_nano_fpg", "--data", data, "--workers", 0, "--device", "cpu", "--json", file
    )
    assert ended.code == 0, ended.err
    return json.loads(file.read_text())


@pytest.fixture(scope="module")
def clean(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    figures = _figures(scenes, tmp_path_factory.mktemp("clean") / "f.json")
    assert figures["box"]["figures"]["AP"] > 0.5  # something to lose
    return figures


@pytest.mark.parametrize(
    ("change", "encoding"),
    [
        (lambda image: None, "utf-8-sig"),
        (lambda image: None, "utf-16"),
        (lambda image: None, "utf-32-be"),
        (lambda image: image.update(width=320.0, height=240.0), "utf-8"),
        (lambda image: (image.pop("width"), image.pop("height")), "utf-8"),
        (lambda image: image.update(width=-1, height=None), "utf-16-le"),
        (lambda image: image.update(file_name=f".\\{image['file_name']}"), "utf-8"),
        (lambda image: image.update(file_name=f"C:\\val\\{image['file_name']}"), "utf-8"),
        (lambda image: image.update(file_name=f"/nowhere/val/{image['file_name']}"), "utf-8-sig"),
        (lambda image: image.update(coco_url=f"http://x.org/{image.pop('file_name')}"), "utf-8"),
    ],
)
@pytest.mark.slow
def test_evaluation(
    change: Callable[[dict[str, Any]], Any], encoding: str, scenes: Path, clean: Any, tmp_path: Path
) -> None:
    assert _figures(_copy(scenes, tmp_path / "d", change, encoding), tmp_path / "f.json") == clean


@pytest.mark.slow
def test_training(scenes: Path, tmp_path: Path) -> None:
    def change(image: dict[str, Any]) -> None:
        image.update(width=None, file_name=f".\\{image['file_name']}")

    logs = []
    for data in (scenes, _copy(scenes, tmp_path / "data", change, "utf-8-sig")):
        output = tmp_path / f"run{len(logs)}"
        options = ["--pretrained", "--recipe", "scratch", "--epochs", 1, "--batch-size", 3, "--workers", 0]
        ended = run("train", "--model", "retinanet_nano_fpg", "--data", data, "--output", output, *options)
        assert ended.code == 0, ended.err
        lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
        kept = ("loss", "grad_norm", "box_")  # not the time and the memory it took
        logs.append([{key: value for key, value in line.items() if key.startswith(kept)} for line in lines])
    assert logs[0] == logs[1]
    assert [next(iter(line)) for line in logs[0]] == ["loss", "box_AP"]


def test_conversion(tmp_path: Path) -> None:
    folder = write_voc(tmp_path / "voc", dict.fromkeys(("000001", "000002"), voc_xml(GOOD)), {"train": []})
    text = "000001\r\n000002\r\n"
    (folder / "ImageSets" / "Main" / "train.txt").write_bytes(codecs.BOM_UTF8 + text.encode())
    (folder / "Annotations" / "000002.xml").write_bytes(voc_xml(GOOD).encode("utf-16"))
    ended = run("convert-data", folder, tmp_path / "out")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.splitlines()[1] == "  train: 2 images with 2 objects and 0 difficult ones"
