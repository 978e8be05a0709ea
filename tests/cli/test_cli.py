"""The command: what it lists and tells, its exit codes, and that it never ends in a traceback."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from command import environment, python, run

from fpg_zoo.config.catalog import ARCHITECTURES

# Of the published table, by hand, in natural order.
NAMES = [
    "faster_rcnn_nano_fpg",
    "faster_rcnn_r50_fpg",
    "faster_rcnn_r50_fpg_chn128",
    "faster_rcnn_r50_fpn",
    "mask_rcnn_nano_fpg",
    "mask_rcnn_r50_fpg",
    "mask_rcnn_r50_fpg_chn128",
    "mask_rcnn_r50_fpn",
    "retinanet_nano_fpg",
    "retinanet_r50_fpg",
    "retinanet_r50_fpg_chn128",
    "retinanet_r50_fpn",
    "retinanet_r50_nasfpn",
]


def _listed(out: str) -> list[str]:
    return [line.split()[0] for line in out.splitlines()[1:]]


# list


def test_list_shows_every_model_in_natural_order() -> None:
    code, out, err = run("list")
    assert (code, err) == (0, "")
    assert _listed(out) == NAMES
    header, *rows = out.splitlines()
    assert header.split("  ")[0] == "name"
    row = next(row for row in rows if row.startswith("mask_rcnn_r50_fpg_chn128 "))
    # The published metrics: box AP 41.7, mask AP 37.1, 15.3 GB. Nothing of it is of the drawn shapes.
    assert row.split() == [
        "mask_rcnn_r50_fpg_chn128",
        "Mask",
        "R-CNN",
        "FPG-chn128",
        "41.7",
        "37.1",
        "-",
        "-",
        "15.3",
        "coco_2022",
    ]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["mask*"], NAMES[4:8]),
        (["retinanet_r50_fpn"], ["retinanet_r50_fpn"]),
        (["*nano*", "mask_rcnn_r50_fp?"], [NAMES[0], NAMES[4], NAMES[5], NAMES[7], NAMES[8]]),
        (["--pretrained"], NAMES),
        (["--pretrained", "faster*"], NAMES[0:4]),
        (["faster*", "--pretrained"], NAMES[0:4]),
    ],
)
def test_list_follows_patterns(arguments: list[str], expected: list[str]) -> None:
    code, out, err = run("list", *arguments)
    assert (code, err) == (0, "")
    assert _listed(out) == expected


def test_ap_of_each_data_set_has_a_column_of_its_own() -> None:
    head, nano, large = (
        re.split(r"\s{2,}", line) for line in run("list", "retinanet_*_fpg", "--columns", "ap")[1].splitlines()
    )
    assert head == ["name", "COCO box AP", "shapes box AP"]
    assert (nano[:2], large[1:]) == (["retinanet_nano_fpg", "-"], ["40.5", "-"])
    assert run("list", "retinanet_r50_fpn", "--columns", "ap")[1].split("\n")[0] == "name               COCO box AP"


def test_list_has_the_columns_that_are_asked_for() -> None:
    code, out, err = run("list", "mask_rcnn_r50_fpn", "--columns", "parameters, flops,memory,image_size")
    assert (code, err) == (0, "")
    assert [line.split() for line in out.splitlines()] == [
        ["name", "params", "M", "GFLOPs", "memory", "MB", "size"],
        ["mask_rcnn_r50_fpn", "44.40", "288.2", "476", "640x640"],
    ]
    (row,) = json.loads(run("list", "retinanet_r50_fpn", "--columns", "ap,parameters", "--json")[1])
    ap = {"COCO val2017": {"box_ap": 37.9, "mask_ap": None}}
    assert row == {"name": "retinanet_r50_fpn", "ap": ap, "parameters": 37_988_404}


def test_a_column_that_is_not_known_is_refused_with_those_that_are() -> None:
    assert run("list", "--columns", "ap,speed") == (
        2,
        "",
        "fpg-zoo: --columns: no column 'speed': known are ap, method, neck, backbone, image_size, parameters, flops, "
        "activations, memory, training_memory, tags\n",
    )


def test_list_as_json() -> None:
    code, out, err = run("list", "--json")
    assert (code, err) == (0, "")
    rows = {row["name"]: row for row in json.loads(out)}
    assert list(rows) == NAMES
    assert [row["tag"] for row in rows["faster_rcnn_nano_fpg"]["checkpoints"]] == ["shapes"]
    assert rows["faster_rcnn_r50_fpg"]["method"] == "Faster R-CNN"
    best = rows["mask_rcnn_r50_fpg"]["checkpoints"][0]
    assert best == {"tag": "coco_2022", "box_ap": 43.0, "mask_ap": 38.1, "memory_gb": 23.2}


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["mask_rcnn_r50_fpgg"], "did you mean mask_rcnn_r50_fpg"),
        (["retinanet_r50_nasfpm"], "did you mean retinanet_r50_nasfpn"),
        (["qqqq"], "known are faster_rcnn_nano_fpg"),
    ],
)
def test_list_without_a_match_names_the_nearest(arguments: list[str], hint: str) -> None:
    code, out, err = run("list", *arguments)
    assert (code, out) == (2, "")
    assert f"no model matches {arguments[0]}" in err
    assert hint in err
    assert err.count("\n") == 1


# info


def test_info_tells_all_of_a_model() -> None:
    code, out, err = run("info", "faster_rcnn_r50_fpg")
    assert (code, err) == (0, "")
    for fact in ("faster_rcnn_r50_fpg.coco_2022", "box AP 42.3", "20.0 GB", "74109f42", "Apache-2.0", "80: person"):
        assert fact in out
    assert "faster_rcnn_r50_fpg.coco_2021" in out


def test_info_of_a_tag_tells_that_one_alone() -> None:
    code, out, _ = run("info", "faster_rcnn_r50_fpg.coco_2021")
    assert code == 0
    assert "box AP 42.2" in out
    assert "76220505" in out
    assert "coco_2022" not in out


def test_info_tells_the_cost() -> None:
    _, out, _ = run("info", "retinanet_r50_fpn")
    assert "parameters    37,988,404\n" in out
    assert "FLOPs         190.7 G for an image of 640x640\n" in out
    assert "activations   119.0 M\n" in out
    assert "memory        242 MB of weights and tensors" in out


def test_info_tells_the_cost_at_another_size() -> None:
    # Of a network of convolutions alone, whose input is padded to multiples of 128, half the pixels cost half.
    whole, half = (
        json.loads(run("info", "retinanet_nano_fpg", "--image-size", size, "--json")[1]) for size in ("512", "250x512")
    )
    assert (whole["image_size"], half["image_size"]) == ([512, 512], [250, 512])
    for cost in ("flops", "activations"):
        assert whole[cost] == 2 * half[cost]
    assert half["parameters"] == 1_839_372
    assert (
        "argument --image-size: 0: it takes N or HxW in pixels"
        in run("info", "retinanet_nano_fpg", "--image-size", 0).err
    )


def test_an_architecture_without_published_weights_has_its_row(monkeypatch: pytest.MonkeyPatch) -> None:
    named = dataclasses.replace(ARCHITECTURES["retinanet_nano_fpg"], name="retinanet_new_fpg")
    monkeypatch.setitem(ARCHITECTURES, named.name, named)
    assert run("list", "*_new_*")[1].splitlines()[1].split() == [named.name, "RetinaNet", "FPG-nano", "-", "-"]
    _, out, _ = run("info", named.name)
    assert "parameters    1,839,372\n" in out
    assert "checkpoints   none published\n" in out
    assert json.loads(run("info", named.name, "--json")[1])["checkpoints"] == []


def test_info_as_json() -> None:
    code, out, err = run("info", "faster_rcnn_r50_fpg.coco_2021", "--json")
    content = json.loads(out)
    assert (code, err) == (0, "")
    assert content["config"]["neck"]["type"] == "FPGConfig"
    assert (content["parameters"], content["flops"]) == (80_025_312, 506_601_625_600)
    (checkpoint,) = content["checkpoints"]
    assert (checkpoint["name"], checkpoint["box_ap"]) == ("faster_rcnn_r50_fpg.coco_2021", 42.2)


@pytest.mark.parametrize(
    ("name", "hints"),
    [
        ("mask_rcnn_r50_fgp", ["no model 'mask_rcnn_r50_fgp'", "did you mean", "mask_rcnn_r50_fpg"]),
        ("faster_rcnn_r50_fpg.coco_2023", ["no tag 'coco_2023'", "coco_2022", "coco_2021"]),
        ("mask_rcnn_nano_fpg.coco", ["mask_rcnn_nano_fpg has no tag 'coco'", "known are shapes"]),
    ],
)
def test_unknown_names_and_tags_are_refused_with_the_nearest(name: str, hints: list[str]) -> None:
    code, out, err = run("info", name)
    assert (code, out) == (2, "")
    assert err.startswith("fpg-zoo: ")
    for hint in hints:
        assert hint in err


# The command itself


def test_version_is_the_installed_one() -> None:
    assert run("--version") == (0, f"fpg-zoo {importlib.metadata.version('fpg-zoo')}\n", "")


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["list", "--nonsense"], ["convert", "a.pth"]])
def test_wrong_usage_is_refused(arguments: list[str]) -> None:
    code, _, err = run(*arguments)
    assert code == 2
    assert err.startswith("usage: fpg-zoo")


@pytest.mark.parametrize("arguments", [[], ["list"], ["list", "--json"], ["list", "--columns", "ap,flops"]])
def test_importing_and_listing_do_without_torch(arguments: list[str]) -> None:
    statements = [
        "import sys, fpg_zoo",
        "from fpg_zoo.cli import main",
        f"{arguments} and main({arguments})",
        "heavy = {'torch', 'torchvision', 'numpy', 'PIL'} & set(sys.modules)",
        "print(heavy, file=sys.stderr)",
    ]
    found = python("-c", "; ".join(statements))
    assert (found.returncode, found.stderr) == (0, "set()\n")
    assert bool(found.stdout) == bool(arguments)


def test_head_of_the_list_ends_quietly() -> None:
    command = f"'{sys.executable}' -m fpg_zoo.cli list | head -1"
    found = subprocess.run(
        command, shell=True, check=False, capture_output=True, text=True, timeout=60, env=environment()
    )
    assert found.stdout.split()[:2] == ["name", "method"]
    assert found.stdout.count("\n") == 1
    assert found.stderr == ""


@pytest.mark.parametrize("changes", [{}, {"PYTHONUNBUFFERED": "1"}], ids=["buffered", "unbuffered"])
def test_a_reader_that_has_gone_ends_it_quietly(changes: dict[str, str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    found = python("-m", "fpg_zoo.cli", "list", stdout=writing, env=environment(**changes))
    os.close(writing)
    assert (found.returncode, found.stderr) == (0, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_output_that_cannot_be_written_is_refused_in_one_line() -> None:
    with open("/dev/full", "w") as full:
        found = python("-m", "fpg_zoo.cli", "list", stdout=full)
    assert found.returncode == 2
    assert found.stderr.startswith("fpg-zoo: ")
    assert "No space left" in found.stderr
    assert found.stderr.count("\n") == 1
