"""Configs that describe no detector are refused where they are written, with the value and the remedy."""

from __future__ import annotations

import copy
import dataclasses
import json
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_models import tiny_model

import fpg_zoo
from fpg_zoo.config import (
    AnchorConfig,
    BoxHeadConfig,
    FPGConfig,
    FPGGrid,
    FPNConfig,
    MaskHeadConfig,
    NASFPNConfig,
    PreprocessConfig,
    ResNetConfig,
    RetinaHeadConfig,
    RPNConfig,
)
from fpg_zoo.config.serialization import from_dict, to_dict
from fpg_zoo.errors import ConfigError
from fpg_zoo.modeling.necks.fpn import FPN
from fpg_zoo.modeling.necks.nasfpn import NASFPN

TWO_STAGE = fpg_zoo.model_info("faster_rcnn_r50_fpn").config
RETINANET = fpg_zoo.model_info("retinanet_r50_fpn").config
NAN, INFINITE = float("nan"), float("inf")
RPN_ANCHORS = AnchorConfig(strides=(4, 8, 16, 32, 64), scales=(8.0,))


def _grid(**changes: Any) -> FPGGrid:
    return FPGGrid(**{"directions": ("up", "down"), "skipped": ((), ()), **changes})


def _with_strides(config: Any, *strides: int) -> object:
    anchors = AnchorConfig(strides=strides, scales=(8.0,))
    part = "rpn" if config is TWO_STAGE else "head"
    return dataclasses.replace(config, **{part: dataclasses.replace(getattr(config, part), anchors=anchors)})


def _with_classes(names: object) -> object:
    return dataclasses.replace(TWO_STAGE, class_names=names)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: ResNetConfig(block="wide"), r"block='wide': use one of 'basic', 'bottleneck'"),  # type: ignore[arg-type]
        (lambda: ResNetConfig(width=0), "width=0: it takes a whole number of at least 1"),
        (lambda: ResNetConfig(depths=(1, 2, 0, 1)), r"depths\[2\]=0"),
        (lambda: ResNetConfig(depths=(1, 2)), r"depths=\(1, 2\): it takes 4 of them"),  # type: ignore[arg-type]
        (lambda: FPNConfig(start_level=0, extra_levels="poool"), "extra_levels='poool': use one of 'pool', 'conv'"),  # type: ignore[arg-type]
        (lambda: FPGConfig(start_level=0, extra_levels="poool"), "extra_levels='poool'"),  # type: ignore[arg-type]
        (lambda: FPGConfig(start_level=0, out_channels=-1), "out_channels=-1"),
        (lambda: NASFPNConfig(stacks=0), "stacks=0"),
        (lambda: FPN(FPNConfig(start_level=0, levels=3), (8, 8, 8, 8)), "3 levels from backbone stage 0 of 4"),
        # A neck of five levels from C2 has strides 4, 8, 16, 32, 64; from C3, twice those.
        (lambda: _with_strides(TWO_STAGE, 4, 8), r"have strides \(4, 8\): .* have \(4, 8, 16, 32, 64\)"),
        (lambda: _with_strides(TWO_STAGE, 8, 16, 32, 64, 128), r"stage 0 have \(4, 8, 16, 32, 64\), give the anchors"),
        (lambda: _with_strides(TWO_STAGE, 4, 8, 16, 64, 32), r"\(4, 8, 16, 64, 32\): .* have \(4, 8, 16, 32, 64\)"),
        (lambda: _with_strides(RETINANET, 4, 8, 16, 32, 64), r"stage 1 have \(8, 16, 32, 64, 128\), give the anchors"),
        (
            lambda: dataclasses.replace(TWO_STAGE, neck=NASFPNConfig()),
            r"5 levels .* stage 1 have \(8, 16, 32, 64, 128\)",
        ),
        (
            lambda: dataclasses.replace(RETINANET, neck=FPNConfig(start_level=1, levels=4)),
            r"the neck's 4 levels from backbone stage 1 have \(8, 16, 32, 64\)",
        ),
        (
            lambda: dataclasses.replace(TWO_STAGE, neck=FPNConfig(start_level=4)),
            r"neck\.start_level=4: use one of 0, 1, 2, 3",
        ),
        (lambda: dataclasses.replace(TWO_STAGE, neck=FPNConfig(start_level=-1)), r"neck\.start_level=-1: use one of 0"),
        (lambda: dataclasses.replace(TWO_STAGE, neck=FPNConfig(start_level=True)), r"neck\.start_level=True: use one"),
        (lambda: dataclasses.replace(TWO_STAGE, roi_levels=6), "roi_levels=6"),
        (lambda: dataclasses.replace(TWO_STAGE, roi_levels=True), "roi_levels=True: use one of 1, 2, 3, 4, 5"),
        (lambda: _with_classes(["cat", "dog"]), r"class_names=\['cat', 'dog'\]: give a tuple"),
        (lambda: _with_classes("cat"), "class_names='cat': give a tuple"),
        (lambda: _with_classes(()), r"class_names=\(\): it takes at least one of them"),
        (lambda: _with_classes(("cat", 3)), r"class_names\[1\]=3: it takes a text that is not blank"),
        (lambda: _with_classes(("cat", " ")), r"class_names\[1\]=' ': it takes a text that is not blank"),
        (
            lambda: _with_classes(("cat", "dog", "cat")),
            r"class_names\[2\]='cat' is there twice: give each class a name",
        ),
        (lambda: dataclasses.replace(RETINANET, class_names=("a", "a")), r"class_names\[1\]='a' is there twice"),
        (lambda: PreprocessConfig(longest_side=0), "longest_side=0: it takes a whole number of at least 1"),
        (lambda: PreprocessConfig(longest_side=True), "longest_side=True: it takes a whole number of at least 1"),
        (lambda: PreprocessConfig(longest_side=2**20 + 1), "longest_side=1048577: it takes at most 1048576"),
        (lambda: PreprocessConfig(pad_divisor=64.0), r"pad_divisor=64\.0: it takes a whole number"),  # type: ignore[arg-type]
        (lambda: PreprocessConfig(std=(1.0, 0.0, 1.0)), r"std\[1\]=0\.0: it takes a number above 0"),
        (lambda: PreprocessConfig(std=(1.0, INFINITE, 1.0)), r"std\[1\]=inf: it takes a number above 0"),
        (lambda: PreprocessConfig(std=(1.0, 1.0)), r"std=\(1\.0, 1\.0\): it takes 3 of them"),  # type: ignore[arg-type]
        (lambda: PreprocessConfig(mean=(1.0,) * 4), "mean=.*: it takes 3 of them"),  # type: ignore[arg-type]
        (lambda: PreprocessConfig(mean=(NAN, 0.0, 0.0)), r"mean\[0\]=nan: it takes a number$"),
        (lambda: PreprocessConfig(mean=[1.0, 2.0, 3.0]), r"mean=\[1\.0, 2\.0, 3\.0\]: give a tuple"),  # type: ignore[arg-type]
        (lambda: ResNetConfig(width=True), "width=True: it takes a whole number of at least 1"),
        (lambda: ResNetConfig(depths=(3, 4, 257, 3)), r"depths\[2\]=257: it takes at most 256"),
        (lambda: FPNConfig(start_level=0, levels=17), "levels=17: it takes at most 16"),
        (lambda: NASFPNConfig(stacks=257), "stacks=257: it takes at most 256"),
        (lambda: _grid(skipped=((), (0.5,))), r"skipped\[1\] names level 0\.5: levels are 0\.\.4"),
        (lambda: _grid(skipped=((), (True,))), r"skipped\[1\] names level True: levels are 0\.\.4"),
        (lambda: _grid(skipped=[(), ()]), r"skipped=\[\(\), \(\)\]: give a tuple"),
        (lambda: _grid(directions=["up", "down"]), r"directions=\['up', 'down'\]: give a tuple"),
        (lambda: _grid(directions=("up",) * 257, skipped=((),) * 257), "pathways=257: it takes at most 256"),
        (lambda: _grid(levels=10**9), "levels=1000000000: it takes at most 16"),
        (lambda: _grid(along=1), "along=1: use one of True, False"),
        (lambda: _grid(across_from_finer="no"), "across_from_finer='no': use one of True, False"),
        (lambda: AnchorConfig(strides=(), scales=(8.0,)), r"strides=\(\): it takes at least one of them"),
        (lambda: AnchorConfig(strides=(4, 0), scales=(8.0,)), r"strides\[1\]=0: it takes a whole number"),
        (lambda: AnchorConfig(strides=(4,), scales=(0,)), r"scales\[0\]=0: it takes a number above 0"),
        (lambda: AnchorConfig(strides=(4,), scales=(8.0,), ratios=(1.0, -1.0)), r"ratios\[1\]=-1\.0: .* above 0"),
        (lambda: AnchorConfig(strides=(4,), scales=(8.0,) * 100), "per_cell=300: it takes at most 256"),
        (lambda: RPNConfig(anchors=RPN_ANCHORS, proposals=0), "proposals=0: it takes a whole number"),
        (lambda: RPNConfig(anchors=RPN_ANCHORS, candidates_per_level=-5), "candidates_per_level=-5"),
        (lambda: RPNConfig(anchors=RPN_ANCHORS, nms_iou=1.5), r"nms_iou=1\.5: it takes a number from 0 to 1"),
        (lambda: RPNConfig(anchors=RPN_ANCHORS, width=0), "width=0"),
        (lambda: BoxHeadConfig(score_threshold=NAN), "score_threshold=nan: it takes a number from 0 to 1"),
        (lambda: BoxHeadConfig(score_threshold=-0.1), r"score_threshold=-0\.1: it takes a number from 0 to 1"),
        (lambda: BoxHeadConfig(nms_iou=True), "nms_iou=True: it takes a number from 0 to 1"),
        (lambda: BoxHeadConfig(delta_std=(0.1, 0.1, 0.2, 0.0)), r"delta_std\[3\]=0\.0: it takes a number above 0"),
        (lambda: BoxHeadConfig(delta_std=(0.1, 0.2)), r"delta_std=\(0\.1, 0\.2\): it takes 4 of them"),  # type: ignore[arg-type]
        (lambda: BoxHeadConfig(detections=0), "detections=0"),
        (lambda: BoxHeadConfig(pool=0), "pool=0"),
        (lambda: MaskHeadConfig(depth=0), "depth=0: it takes a whole number of at least 1"),
        (lambda: MaskHeadConfig(pool=257), "pool=257: it takes at most 256"),
        (lambda: RetinaHeadConfig(anchors=RPN_ANCHORS, depth=0), "depth=0"),
        (lambda: RetinaHeadConfig(anchors=RPN_ANCHORS, detections=0), "detections=0"),
        (lambda: RetinaHeadConfig(anchors=RPN_ANCHORS, score_threshold=2), "score_threshold=2: .* from 0 to 1"),
    ],
)
def test_what_describes_no_detector_is_refused(make: Callable[[], object], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        make()


def test_limits_belong_to_what_is_allowed() -> None:
    BoxHeadConfig(score_threshold=0, nms_iou=1.0)
    FPNConfig(start_level=0, levels=16)
    PreprocessConfig(std=(1, 2, 3), mean=(0, 0, -1))
    _with_strides(TWO_STAGE, 4, 8, 16, 32, 64)


# --- configs read from JSON --------------------------------------------------------------------------------------

FPG_MASK = fpg_zoo.model_info("mask_rcnn_r50_fpg").config


def _changed(config: object, path: tuple[str | int, ...], value: object) -> Any:
    """The JSON of a config with the value at `path` replaced."""
    data = json.loads(json.dumps(to_dict(config)))
    place = data
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return data


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        (("neck", "grid", "skipped", 2), [0, "1"], r"^neck\.grid\.skipped\[2\]\[1\]='1': it takes a whole number$"),
        (("neck", "grid", "skipped", 2), 0, r"^neck\.grid\.skipped\[2\]=0: it takes a list$"),
        (("neck", "grid", "skipped", 2), [True], r"^neck\.grid\.skipped\[2\]\[0\]=True: it takes a whole number$"),
        (("neck", "grid", "skipped", 2), [9], r"^neck\.grid: skipped\[2\] names level 9: levels are 0\.\.4$"),
        (("neck", "grid", "directions", 1), "left", r"^neck\.grid\.directions\[1\]='left': it takes 'up' or 'down'$"),
        (("neck", "grid", "lateral"), "x", r"^neck\.grid\.lateral='x': it takes 'conv' or 'identity' or None$"),
        (("neck", "grid", "along"), 1, r"^neck\.grid\.along=1: it takes True or False$"),
        (("neck", "grid"), None, r"^neck\.grid=None: it takes an object of type FPGGrid$"),
        (("neck", "width"), 256.0, r"^neck\.width=256\.0: it takes a whole number$"),
        (("neck", "width"), 2**63, r"^neck\.width=9223372036854775808: it takes a whole number$"),
        (("neck", "width"), 0, r"^neck: width=0: it takes a whole number of at least 1$"),
        (
            ("neck", "heigth"),
            1,
            r"^neck\.'heigth' is no field of FPGConfig, which has start, width, grid, extra_levels$",
        ),
        (("neck",), 3, r"^neck=3: it takes an object of type FPNConfig or an object of type FPGConfig or"),
        (
            ("neck", "type"),
            "MaskHeadConfig",
            r"^neck\.type='MaskHeadConfig': this version takes FPNConfig or FPGConfig",
        ),
        (("mask",), {"type": "FPNConfig", "start": 0}, r"^mask\.type='FPNConfig': this version takes MaskHeadConfig$"),
        (("mask",), "no", r"^mask='no': it takes an object of type MaskHeadConfig or None$"),
        (("backbone", "block"), "wide", r"^backbone\.block='wide': it takes 'basic' or 'bottleneck'$"),
        (("backbone", "depths"), [3, 4, 6], r"^backbone\.depths=\[3, 4, 6\]: it takes a list of 4$"),
        (("backbone", "depths"), {"0": 3}, r"^backbone\.depths=\{'0': 3\}: it takes a list of 4$"),
        (("preprocess", "mean", 1), NAN, r"^preprocess\.mean\[1\]=nan: it takes a number$"),
        (("preprocess", "mean", 1), -INFINITE, r"^preprocess\.mean\[1\]=-inf: it takes a number$"),
        (("preprocess", "mean", 1), 10**400, r"^preprocess\.mean\[1\]=10+\.\.\.0+: it takes a number$"),
        (("preprocess", "std", 0), False, r"^preprocess\.std\[0\]=False: it takes a number$"),
        (("preprocess", "std", 0), -1, r"^preprocess: std\[0\]=-1\.0: it takes a number above 0$"),
        (("class_names",), "person", r"^class_names='person': it takes a list$"),
        (("class_names", 3), None, r"^class_names\[3\]=None: it takes a text$"),
        (("class_names", 1), "person", r"^class_names\[1\]='person' is there twice"),
        (("rpn", "anchors", "scales", 0), "8", r"^rpn\.anchors\.scales\[0\]='8': it takes a number$"),
        (("rpn", "anchors", "strides", 0), 8, r"^anchors have strides \(8, 8, 16, 32, 64\): "),
        (("box", "nms_iou"), 7, r"^box: nms_iou=7\.0: it takes a number from 0 to 1$"),
    ],
)
def test_json_that_is_no_config_is_refused_by_the_path_of_its_field(
    path: tuple[str | int, ...], value: object, reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason):
        from_dict(_changed(FPG_MASK, path, value))


def test_a_field_that_is_missing_is_named_or_takes_its_default() -> None:
    data = to_dict(FPG_MASK)
    del data["neck"]["width"]  # 256, as in the catalog
    assert from_dict(data) == FPG_MASK
    del data["rpn"]["anchors"]["strides"]
    with pytest.raises(ConfigError, match=r"^rpn\.anchors\.strides is missing: it takes a list$"):
        from_dict(data)


@pytest.mark.parametrize("data", [None, 3, "TwoStageConfig", [], [to_dict(RETINANET)]])
def test_json_that_is_no_object_is_refused(data: object) -> None:
    with pytest.raises(ConfigError, match=r"^config=.*: it takes an object with a type$"):
        from_dict(data)


def test_whole_numbers_are_fine_where_numbers_are_wanted() -> None:
    config = from_dict(_changed(FPG_MASK, ("preprocess", "mean"), [1, 2, 3]))
    assert config.preprocess.mean == (1.0, 2.0, 3.0)
    assert {type(value) for value in config.preprocess.mean} == {float}


def _deep(depth: int, of_dicts: bool) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = {"type": value, "neck": value} if of_dicts else [value]
    return value


STRANGE = (
    None, True, False, 0, 1, 2, 3, -1, 5, 17, 300, 10**9, 2**63, 10**4000, 10**5000, 0.5, 1.0, -0.5, 1e308, NAN,
    INFINITE, -INFINITE, "", " ", "up", "conv", "identity", "type", "FPNConfig", "NASFPNConfig", "\ud800", "x" * 10**5,
    [], {}, [[]], [0.5] * 3, [1] * 4, ["up"], ["up"] * 9, [[]] * 9, ["a", "a"], [0] * 10**4, {"type": "NASFPNConfig"},
    {"type": "MaskHeadConfig"}, {"type": ["x"]}, {"type": None}, {"type": {}}, {str(i): i for i in range(1000)},
    _deep(100_000, of_dicts=False), _deep(100_000, of_dicts=True),
)  # fmt: skip
FIELDS = ("type", "start", "width", "levels", "stacks", "mask", "self", "cls", "__class__", "", "x" * 10**5, "\ud800")


def _containers(data: Any) -> list[Any]:
    """Every list and object within a config's JSON that is not empty, the outermost first."""
    found = [data] if isinstance(data, (list, dict)) and data else []
    for value in found[:1] and (data.values() if isinstance(data, dict) else data):
        found += _containers(value)
    return found


def test_the_names_of_types_in_files_stay() -> None:
    # Files out there hold them; they do not follow a class that is renamed.
    written = [to_dict(config) for config in (FPG_MASK, RETINANET, NASFPNConfig())]
    assert {part["type"] for part in _containers(written) if isinstance(part, dict)} == {
        "TwoStageConfig", "RetinaNetConfig", "ResNetConfig", "FPNConfig", "FPGConfig", "FPGGrid", "NASFPNConfig",
        "RPNConfig", "AnchorConfig", "BoxHeadConfig", "MaskHeadConfig", "RetinaHeadConfig", "PreprocessConfig",
    }  # fmt: skip


def _retyped(value: Any) -> Any:
    if isinstance(value, bool) or value is None:
        return str(value)
    if isinstance(value, int) and abs(value) < 2**64:
        return float(value)
    if isinstance(value, (int, float)):
        return int(value) if abs(value) < 1e9 else [value]
    if isinstance(value, str):
        return list(value)
    return list(value.values()) if isinstance(value, dict) else dict(zip(map(str, range(99)), value, strict=False))


def _mutate(places: list[Any], parts: list[Any], chance: random.Random) -> None:
    place = chance.choice(places)
    key = chance.choice(list(place) if isinstance(place, dict) else range(len(place))) if place else None
    value = chance.choice([*STRANGE, *parts])
    action = chance.choice(("replace", "replace", "retype", "delete", "add"))
    if action == "add" or key is None:
        if isinstance(place, dict):
            place[chance.choice(FIELDS)] = value
        else:
            place.insert(chance.randrange(len(place) + 1), value)
    elif action == "delete":
        del place[key]
    else:
        place[key] = _retyped(place[key]) if action == "retype" else value


@pytest.mark.parametrize("name", ["mask_rcnn_nano_fpg", "faster_rcnn_r50_fpn", "retinanet_r50_nasfpn"])
def test_whatever_the_json_it_is_a_config_or_refused(name: str) -> None:
    config = dataclasses.replace(fpg_zoo.model_info(name).config, class_names=("cat", "dog", "owl"))
    written = json.dumps(to_dict(config))
    chance = random.Random(name)
    accepted = longest = 0
    for _ in range(2000):
        data = json.loads(written)
        places, parts = _containers(data), _containers(json.loads(written))
        for _ in range(chance.choice((1, 1, 1, 2, 3))):
            _mutate(places, parts, chance)
        try:
            found = from_dict(data)
        except ConfigError as error:
            longest = max(longest, len(str(error)))
            continue
        accepted += 1
        assert type(found) is type(config)
        again = json.dumps(to_dict(found), allow_nan=False)
        assert from_dict(json.loads(again)) == found
    # Most changes make nonsense; some are other configs, as a deleted field that has a default.
    assert 100 < accepted < 1000
    assert longest < 600


def test_strange_values_alone_are_refused() -> None:
    for value in STRANGE:
        if value != {"type": "NASFPNConfig"} and value != {"type": "MaskHeadConfig"}:  # these are whole configs
            with pytest.raises(ConfigError):
                from_dict(value)


# --- what models refuse ------------------------------------------------------------------------------------------


def test_maps_that_cannot_be_pooled_to_each_other_are_refused() -> None:
    # 96 pixels: C3 to P7 are 12, 6, 3, 1 and 0 cells; 3 is no multiple of what it is halved to.
    neck = NASFPN(NASFPNConfig(out_channels=8, stacks=1), (4, 8, 8, 8)).eval()
    sides = (24, 20, 10, 5)
    with pytest.raises(ValueError, match=r"5x5 map cannot be pooled to 2x2 by a whole ratio: pad the images"):
        neck([torch.zeros(1, channels, side, side) for channels, side in zip((4, 8, 8, 8), sides, strict=True)])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["mask_rcnn_nano_fpg", "retinanet_nano_fpg"])
@pytest.mark.slow
def test_models_of_any_precision_give_float32_detections(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    images = torch.randn(1, 3, 128, 128)
    wanted = tiny_model(name).detect(images, [(128, 128)])[0]
    found = copy.deepcopy(tiny_model(name)).to(dtype).detect(images.to(dtype), [(128, 128)])[0]
    assert (found.boxes.dtype, found.scores.dtype) == (torch.float32, torch.float32)
    assert len(found) > 0
    # 8 bits of bfloat16 through a network of a hundred layers; float64 is only rounded at the end.
    tolerance = 1e-4 if dtype == torch.float64 else 0.1
    assert float(found.scores[0]) == pytest.approx(float(wanted.scores[0]), abs=tolerance)


def test_padding_that_leaves_levels_unequal_is_refused() -> None:
    fpg = fpg_zoo.model_info("retinanet_r50_fpg").config
    narrow = dataclasses.replace(fpg.preprocess, pad_divisor=64)
    with pytest.raises(ConfigError, match=r"preprocess\.pad_divisor=64: it takes a multiple of 128"):
        dataclasses.replace(fpg, preprocess=narrow)
    dataclasses.replace(RETINANET, preprocess=narrow)  # FPN takes any
