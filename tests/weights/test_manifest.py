"""The manifest against the published table, copied here by hand."""

from __future__ import annotations

import re

import pytest
from conftest import PUBLISHED

from fpg_zoo.config.catalog import ARCHITECTURES
from fpg_zoo.config.coco_classes import COCO_CLASSES
from fpg_zoo.errors import UnknownNameError
from fpg_zoo.weights.manifest import load_manifest, nearest

# name: (box AP, mask AP, memory in GB, first digits of the SHA-256)
TABLE = {
    "faster_rcnn_r50_fpg.coco_2022": (42.3, None, 20.0, "74109f42"),
    "faster_rcnn_r50_fpg_chn128.coco_2022": (41.2, None, 11.9, "9376aa9d"),
    "faster_rcnn_r50_fpn.coco_2022": (38.9, None, 20.0, "be7c9f42"),
    "mask_rcnn_r50_fpg.coco_2022": (43.0, 38.1, 23.2, "233b8334"),
    "mask_rcnn_r50_fpg_chn128.coco_2022": (41.7, 37.1, 15.3, "043c9b4e"),
    "mask_rcnn_r50_fpn.coco_2022": (39.6, 35.6, 23.2, "a756664a"),
    "retinanet_r50_fpg.coco_2022": (40.5, None, 20.8, "b0bcf5f4"),
    "retinanet_r50_fpg_chn128.coco_2022": (39.9, None, 19.9, "ee99a686"),
    "retinanet_r50_fpn.coco": (37.9, None, 12.9, "9b953d76"),
    "retinanet_r50_nasfpn.coco": (40.5, None, 13.2, "0ad1f644"),
    "faster_rcnn_r50_fpg.coco_2021": (42.2, None, None, "76220505"),
    "faster_rcnn_r50_fpg_chn128.coco_2021": (41.2, None, None, "24257de9"),
    "mask_rcnn_r50_fpg.coco_2021": (42.7, 37.8, None, "c5860453"),
}


def test_every_row_is_the_published_one() -> None:
    rows = {
        entry.name: (entry.box_ap, entry.mask_ap, entry.memory_gb, entry.sha256)
        for entry in load_manifest().checkpoints
        if not entry.packaged
    }
    assert rows == TABLE


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_newest_release_is_the_default(name: str) -> None:
    tags = [entry.tag for entry in load_manifest().of(name)]
    assert tags in (["coco_2022"], ["coco_2022", "coco_2021"], ["coco"])


def test_rows_hang_together() -> None:
    manifest = load_manifest()
    for entry in manifest.checkpoints:
        assert entry.architecture in ARCHITECTURES
        assert entry.recipe in manifest.recipes
        assert entry.license == "Apache-2.0"
        if not entry.packaged:
            assert entry.url.startswith(manifest.host + "/")
            assert re.search(rf"-{entry.sha256}\.pth$", entry.url)
            assert entry.class_names == COCO_CLASSES
    assert len({entry.url for entry in manifest.checkpoints}) == len(manifest.checkpoints)


def test_finding() -> None:
    manifest = load_manifest()
    assert manifest.find("mask_rcnn_r50_fpg", None).tag == "coco_2022"
    assert manifest.find("mask_rcnn_r50_fpg", "coco_2021").sha256 == "c5860453"
    with pytest.raises(UnknownNameError, match="retinanet_tiny_fpg has no published checkpoint"):
        manifest.find("retinanet_tiny_fpg", None)


def test_nearest_names() -> None:
    assert nearest("appel", ["apple", "pear"]) == "did you mean apple?"
    assert nearest("zzz", ["apple", "pear"]) == "known are apple, pear"
