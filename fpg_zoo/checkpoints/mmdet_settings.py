"""The test settings that mmdetection's checkpoints carry in their `meta`: read as data, never executed.

The text is a dumped config: assignments of literals and `dict(...)`. 2.x keeps it under `config`, 3.x under `cfg`.
"""

from __future__ import annotations

import ast
import dataclasses
import io
import tokenize
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from fpg_zoo.config import (
    DetectorConfig,
    PreprocessConfig,
    RetinaNetConfig,
    SoftNMSConfig,
    TwoStageConfig,
)
from fpg_zoo.errors import CheckpointError
from fpg_zoo.text import quoted

_MAX_CHARACTERS = 1 << 20
_MAX_LINE = 50_000  # characters; tokenize takes the square of it
_MAX_DEPTH = 100
_KEYS = ("cfg", "config")
_OPERATORS = "()[]{},:=-+"
# Steps of a test pipeline that leave the network's input as it is.
_NEUTRAL = (
    "LoadImageFromFile",
    "LoadImageFromWebcam",
    "LoadImageFromNDArray",
    "LoadAnnotations",
    "PackDetInputs",
    "ImageToTensor",
    "DefaultFormatBundle",
    "Collect",
)


@dataclass
class InferenceSettings:
    """What a checkpoint says of how its model is tested.

    Attributes:
        preprocess, selection: fields of `PreprocessConfig` and of the head that chooses detections.
        proposals: fields of `RPNConfig`.
        anchors: fields of `AnchorConfig`.
        unsupported: what this package cannot do, each in words with its value.
    """

    preprocess: dict[str, Any] = field(default_factory=dict)
    selection: dict[str, Any] = field(default_factory=dict)
    proposals: dict[str, Any] = field(default_factory=dict)
    anchors: dict[str, Any] = field(default_factory=dict)
    unsupported: list[str] = field(default_factory=list)


def read_config_text(meta: Mapping[str, Any]) -> dict[str, Any] | None:
    """The config that a checkpoint's meta holds, as plain data; None if it holds none.

    Raises:
        CheckpointError: its text is no dumped config.
    """
    text = next((meta[key] for key in _KEYS if meta.get(key)), None)
    if text is None:
        return None
    if not isinstance(text, str):
        raise CheckpointError(f"its meta's config is of the type {type(text).__name__}, not a text")
    if len(text) > _MAX_CHARACTERS:
        raise CheckpointError(f"its meta's config has {len(text)} characters, at most {_MAX_CHARACTERS} are read")
    try:
        _check_tokens(text)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes in the paths of Windows
            tree = ast.parse(text)
        return {name: _data(value, 0) for name, value in _assignments(tree)}
    except (SyntaxError, tokenize.TokenError, ValueError, RecursionError, MemoryError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"its meta's config cannot be read as data ({reason})") from None


def _check_tokens(text: str) -> None:
    """Refuse what no literal has. Python 3.10 dies of a chain of a million operators, calls or indices.

    Raises:
        ValueError: with the line.
    """
    if max(map(len, text.splitlines()), default=0) > _MAX_LINE:
        raise ValueError(f"a line has more than {_MAX_LINE} characters")
    operand = False  # whether the token before ends a value
    before = ""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.OP:
            wrong = token.string not in _OPERATORS or (operand and token.string in "-+[{")
            wrong |= operand and token.string == "(" and before != "dict"
        else:
            wrong = operand and token.type == tokenize.NAME
        if wrong:
            raise ValueError(f"line {token.start[0]} is neither a literal nor dict(...)")
        if token.type == tokenize.OP:
            operand = token.string in ")]}"
        elif token.type in (tokenize.NAME, tokenize.NUMBER, tokenize.STRING):
            operand = True
        elif token.type == tokenize.NEWLINE:
            operand = False
        before = token.string


def _assignments(tree: ast.Module) -> Iterator[tuple[str, ast.expr]]:
    for statement in tree.body:
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
            continue  # a docstring
        if not (isinstance(statement, ast.Assign) and len(statement.targets) == 1):
            raise ValueError(f"line {statement.lineno} is no assignment")
        (target,) = statement.targets
        if not isinstance(target, ast.Name):
            raise ValueError(f"line {statement.lineno} assigns to no plain name")
        yield target.id, statement.value


def _data(node: ast.expr, depth: int) -> Any:
    """A literal, or a call of `dict` with keywords, as data."""
    if depth > _MAX_DEPTH:
        raise ValueError(f"line {node.lineno} is nested more than {_MAX_DEPTH} deep")
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_data(item, depth + 1) for item in node.elts]
    if isinstance(node, ast.Dict):
        if any(key is None for key in node.keys):
            raise ValueError(f"line {node.lineno} unpacks a dict")
        keys = [_data(key, depth + 1) for key in node.keys if key is not None]
        if not all(isinstance(key, (str, int, float, bool, type(None))) for key in keys):
            raise ValueError(f"line {node.lineno} has a key that is no plain value")
        return dict(zip(keys, (_data(value, depth + 1) for value in node.values), strict=True))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict" and not node.args:
        if any(keyword.arg is None for keyword in node.keywords):
            raise ValueError(f"line {node.lineno} unpacks a dict")
        return {keyword.arg: _data(keyword.value, depth + 1) for keyword in node.keywords}
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
        value = _data(node.operand, depth + 1)
        if type(value) in (int, float):
            return -value if isinstance(node.op, ast.USub) else value
    raise ValueError(f"line {node.lineno} is neither a literal nor dict(...)")


def inference_settings_of(content: Mapping[str, Any]) -> InferenceSettings:
    """What a config says of testing; what it does not say stays as it is.

    Args:
        content: of `read_config_text`.

    Raises:
        ConfigError: a value is out of range.
    """
    settings = InferenceSettings()
    model = _dict(content.get("model"))
    _read_pipeline(content, model, settings)
    _read_parts(model, settings)
    test = _dict(model.get("test_cfg"))
    rcnn = test.get("rcnn")
    _read_selection(_dict(rcnn) if isinstance(rcnn, dict) else test, settings, dense=not isinstance(rcnn, dict))
    if isinstance(test.get("rpn"), dict):
        _read_proposals(test["rpn"], settings)
    return settings


def with_inference_settings(config: DetectorConfig, settings: InferenceSettings) -> DetectorConfig:
    """A detector with the settings of a file.

    Raises:
        ConfigError: a value is out of range.
    """
    preprocess = dataclasses.replace(config.preprocess, **settings.preprocess)
    if isinstance(config, TwoStageConfig):
        anchors = dataclasses.replace(config.rpn.anchors, **settings.anchors)
        return dataclasses.replace(
            config,
            preprocess=preprocess,
            box=dataclasses.replace(config.box, **settings.selection),
            rpn=dataclasses.replace(config.rpn, anchors=anchors, **settings.proposals),
        )
    anchors = dataclasses.replace(config.head.anchors, **settings.anchors)
    head = dataclasses.replace(config.head, anchors=anchors, **settings.selection)  # type: ignore[type-var]
    return dataclasses.replace(config, preprocess=preprocess, head=head)


def differing_settings(before: DetectorConfig, after: DetectorConfig) -> list[str]:
    """In words, the test settings of `after` that are not those of `before`."""
    pairs: list[tuple[Any, Any]] = [(before.preprocess, after.preprocess)]
    if isinstance(before, TwoStageConfig) and isinstance(after, TwoStageConfig):
        pairs += [(before.box, after.box), (before.rpn, after.rpn)]
    elif isinstance(before, RetinaNetConfig) and isinstance(after, RetinaNetConfig):
        pairs += [(before.head, after.head)]
    return [
        f"{one.name}={getattr(new, one.name)!r}"
        for old, new in pairs
        for one in dataclasses.fields(new)
        if one.name in _SETTINGS and getattr(old, one.name) != getattr(new, one.name)
    ]


_SETTINGS = {
    *(one.name for one in dataclasses.fields(PreprocessConfig)),
    *(
        "score_threshold",
        "nms_iou",
        "detections",
        "soft_nms",
        "class_agnostic_nms",
        "candidates_per_level",
        "proposals",
    ),
}


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


# Of a backbone, what no tensor tells, and what ours has.
_BACKBONE = {
    "style": "pytorch",
    "deep_stem": False,
    "avg_down": False,
    "dcn": None,
    "plugins": None,
    "conv_cfg": None,
    "strides": [1, 2, 2, 2],
    "dilations": [1, 1, 1, 1],
    "out_indices": [0, 1, 2, 3],
}
_EPSILON = 1e-5  # of a BatchNorm


def _read_parts(model: dict[str, Any], settings: InferenceSettings) -> None:
    """What the parts compute and no tensor tells: anchors, deltas, where strides sit, BatchNorms, RoIAlign."""
    backbone, rois = _dict(model.get("backbone")), _dict(model.get("roi_head"))
    boxes = _dict(rois.get("bbox_head"))
    for key, usual in _BACKBONE.items():
        if backbone.get(key, usual) != usual:
            settings.unsupported.append(f"backbone.{key}={quoted(backbone[key])}")
    parts = {"backbone": backbone, "neck": _dict(model.get("neck")), "bbox_head": _dict(model.get("bbox_head"))}
    for name, part in parts.items():
        epsilon = _dict(part.get("norm_cfg")).get("eps", _EPSILON)
        if epsilon != _EPSILON:
            settings.unsupported.append(f"{name}.norm_cfg.eps={quoted(epsilon)}")
    for name in ("bbox_roi_extractor", "mask_roi_extractor"):
        extractor = _dict(rois.get(name))
        layer = _dict(extractor.get("roi_layer"))
        for key, value, usual in (
            ("type", layer.get("type"), "RoIAlign"),
            ("sampling_ratio", layer.get("sampling_ratio"), 0),
            ("aligned", layer.get("aligned"), True),
            ("finest_scale", extractor.get("finest_scale"), 56),
        ):
            if value not in (None, usual):
                settings.unsupported.append(f"{name}.{key}={quoted(value)}")
    first = _dict(model.get("rpn_head")) or parts["bbox_head"]
    _read_anchors(_dict(first.get("anchor_generator")), settings)
    for head, name in ((first, "rpn_head" if rois else "bbox_head"), (boxes, "roi_head.bbox_head")):
        coder = _dict(head.get("bbox_coder"))
        means, stds = coder.get("target_means"), coder.get("target_stds")
        if means is not None and means != [0, 0, 0, 0]:
            settings.unsupported.append(f"{name}.bbox_coder.target_means={quoted(means)}")
        if stds is not None and head is boxes:
            settings.selection["delta_std"] = tuple(stds) if isinstance(stds, list) else stds
        elif stds is not None and stds != [1, 1, 1, 1]:
            settings.unsupported.append(f"{name}.bbox_coder.target_stds={quoted(stds)}")


def _read_anchors(generator: dict[str, Any], settings: InferenceSettings) -> None:
    if not generator:
        return
    base, octaves = generator.get("octave_base_scale"), generator.get("scales_per_octave")
    scales = generator.get("scales")
    if scales is None and isinstance(base, (int, float)) and type(octaves) is int and 0 < octaves < 100:
        scales = [base * 2 ** (step / octaves) for step in range(octaves)]
    strides = generator.get("strides")
    values = {"scales": scales, "ratios": generator.get("ratios"), "strides": strides}
    for key, value in values.items():
        if value is None:
            continue
        if not isinstance(value, list) or not all(type(one) in (int, float) for one in value):
            settings.unsupported.append(f"anchor_generator.{key}={quoted(value)}")
            continue
        settings.anchors[key] = tuple(value) if key == "strides" else tuple(map(float, value))
    for key, usual in (("center_offset", 0), ("base_sizes", None), ("scale_major", True), ("centers", None)):
        if generator.get(key, usual) != usual:
            settings.unsupported.append(f"anchor_generator.{key}={quoted(generator[key])}")


def _read_pipeline(content: Mapping[str, Any], model: dict[str, Any], settings: InferenceSettings) -> None:
    """Resizing, normalization and padding, of the steps of the test data set's pipeline and 3.x's data_preprocessor."""
    loader = _dict(_dict(content.get("test_dataloader")).get("dataset"))
    data = _dict(_dict(content.get("data")).get("test"))
    while isinstance(loader.get("dataset"), dict):  # wrapped data sets
        loader = loader["dataset"]
    pipeline: Any = next(
        (one for one in (loader.get("pipeline"), data.get("pipeline"), content.get("test_pipeline")) if one), []
    )
    for step in pipeline if isinstance(pipeline, list) else []:
        _read_step(_dict(step), settings)
    before = _dict(model.get("data_preprocessor"))
    if before:
        _read_normalization(before, "bgr_to_rgb", settings)
        if before.get("rgb_to_bgr"):
            settings.unsupported.append("data_preprocessor.rgb_to_bgr=True")
        if "pad_size_divisor" in before:
            settings.preprocess["pad_divisor"] = before["pad_size_divisor"]
        if before.get("pad_value"):
            settings.unsupported.append(f"data_preprocessor.pad_value={quoted(before['pad_value'])}")


def _kind_of(step: Mapping[str, Any]) -> str:
    """A step's type without the scope that 3.x may put before it, as in `mmdet.Resize`."""
    return str(step.get("type")).rpartition(".")[2]


def _read_step(step: dict[str, Any], settings: InferenceSettings) -> None:
    kind = _kind_of(step)
    if kind == "MultiScaleFlipAug":
        if step.get("flip"):
            settings.unsupported.append("MultiScaleFlipAug.flip=True (test-time augmentation)")
        scale = step.get("img_scale")
        if step.get("scale_factor") is not None:
            settings.unsupported.append(f"MultiScaleFlipAug.scale_factor={quoted(step['scale_factor'])}")
        for inner in step.get("transforms") or []:
            one = dict(_dict(inner))
            if _kind_of(one) == "RandomFlip":
                continue  # it does what MultiScaleFlipAug says
            if _kind_of(one) == "Resize":
                one.setdefault("img_scale", scale)
            _read_step(one, settings)
    elif kind in ("Resize", "FixScaleResize"):
        _read_resize(step, settings)
    elif kind == "Normalize":
        _read_normalization(step, "to_rgb", settings)
    elif kind == "Pad":
        if step.get("size") is not None or step.get("pad_to_square"):
            settings.unsupported.append(f"Pad to {quoted(step.get('size') or 'a square')}")
        elif step.get("size_divisor") is not None:
            settings.preprocess["pad_divisor"] = step["size_divisor"]
        value = step.get("pad_val")
        if value not in (None, 0, [0, 0, 0]) and not (isinstance(value, dict) and value.get("img") in (None, 0)):
            settings.unsupported.append(f"Pad.pad_val={quoted(value)}")
    elif kind == "RandomFlip":
        if step.get("prob") or step.get("flip_ratio"):
            settings.unsupported.append(
                f"RandomFlip with a probability of {quoted(step.get('prob', step.get('flip_ratio')))}"
            )
    elif kind == "LoadImageFromFile":
        for key, usual in (("color_type", "color"), ("to_float32", False), ("channel_order", "bgr")):
            if step.get(key, usual) != usual:
                settings.unsupported.append(f"LoadImageFromFile.{key}={quoted(step[key])}")
    elif kind not in _NEUTRAL:
        settings.unsupported.append(f"the step {quoted(kind)} of the test pipeline")


def _read_resize(step: dict[str, Any], settings: InferenceSettings) -> None:
    scale = step.get("scale", step.get("img_scale"))
    if isinstance(scale, list) and len(scale) == 1:
        (scale,) = scale
    if isinstance(scale, int) and not isinstance(scale, bool):
        scale = [scale, scale]
    if not (isinstance(scale, list) and len(scale) == 2 and all(type(side) is int and side > 0 for side in scale)):
        settings.unsupported.append(f"Resize to {quoted(scale)}")
        return
    for key, usual in (("interpolation", "bilinear"), ("backend", "cv2")):
        if step.get(key, usual) != usual:
            settings.unsupported.append(f"Resize.{key}={quoted(step[key])}")
    width, height = scale
    longest, shortest = max(scale), min(scale)
    if step.get("keep_ratio", "img_scale" in step and "scale" not in step):  # 2.x keeps it by default, 3.x does not
        changes = {
            "longest_side": longest,
            "shortest_side": None if shortest == longest else shortest,
            "fixed_size": None,
        }
    else:
        changes = {"longest_side": longest, "shortest_side": None, "fixed_size": (height, width)}
    settings.preprocess.update(changes)


def _read_normalization(step: dict[str, Any], to_rgb: str, settings: InferenceSettings) -> None:
    if "mean" not in step and "std" not in step:
        if step.get(to_rgb) is not None and to_rgb == "bgr_to_rgb":
            settings.preprocess["channel_order"] = "RGB" if step[to_rgb] else "BGR"
        return
    for key in ("mean", "std"):
        values = step.get(key)
        if not (isinstance(values, list) and len(values) == 3 and all(type(one) in (int, float) for one in values)):
            settings.unsupported.append(f"{key}={quoted(values)}")
            return
        settings.preprocess[key] = tuple(map(float, values))
    # 2.x's Normalize turns to RGB by default, 3.x's data_preprocessor does not.
    settings.preprocess["channel_order"] = "RGB" if step.get(to_rgb, to_rgb == "to_rgb") else "BGR"


def _read_nms(nms: Any, settings: InferenceSettings, target: dict[str, Any], *, soft: bool) -> None:
    nms = _dict(nms)
    kind = nms.get("type", "nms")
    known = {"type", "iou_threshold", "iou_thr", "class_agnostic", "split_thr", "max_num", "offset"}
    if kind == "soft_nms" and soft:
        known |= {"sigma", "min_score", "method"}
        method = nms.get("method", "linear")
        if method in ("linear", "gaussian"):
            target["soft_nms"] = SoftNMSConfig(
                method=method, sigma=nms.get("sigma", 0.5), min_score=nms.get("min_score", 0.001)
            )
        elif method == "naive":
            target["soft_nms"] = None
        else:
            settings.unsupported.append(f"nms.method={quoted(method)}")
    elif kind == "nms":
        if soft:
            target["soft_nms"] = None
    else:
        settings.unsupported.append(f"nms.type={quoted(kind)}")
    # mmcv's own default where a soft-NMS gives none.
    iou = nms.get("iou_threshold", nms.get("iou_thr", 0.3 if kind == "soft_nms" else None))
    if iou is not None:
        target["nms_iou"] = float(iou) if type(iou) is int else iou
    if soft:
        target["class_agnostic_nms"] = bool(nms.get("class_agnostic", False))
    elif nms.get("class_agnostic"):
        settings.unsupported.append("rpn.nms.class_agnostic=True")
    if nms.get("offset"):
        settings.unsupported.append(f"nms.offset={quoted(nms['offset'])}")
    settings.unsupported += [f"nms.{key}={quoted(value)}" for key, value in nms.items() if key not in known]


def _read_selection(test: dict[str, Any], settings: InferenceSettings, *, dense: bool) -> None:
    target = settings.selection
    if "score_thr" in test:
        target["score_threshold"] = float(test["score_thr"]) if type(test["score_thr"]) is int else test["score_thr"]
    if "max_per_img" in test:
        target["detections"] = test["max_per_img"]
    if "nms" in test:
        _read_nms(test["nms"], settings, target, soft=True)
    if dense and "nms_pre" in test:
        target["candidates_per_level"] = test["nms_pre"]
    if test.get("min_bbox_size"):
        settings.unsupported.append(f"min_bbox_size={quoted(test['min_bbox_size'])}")
    if test.get("mask_thr_binary", 0.5) != 0.5:
        settings.unsupported.append(f"mask_thr_binary={quoted(test['mask_thr_binary'])}")
    known = {"score_thr", "max_per_img", "nms", "nms_pre", "min_bbox_size", "mask_thr_binary", "rpn", "rcnn"}
    settings.unsupported += [f"test_cfg.{key}={quoted(value)}" for key, value in test.items() if key not in known]


def _read_proposals(rpn: dict[str, Any], settings: InferenceSettings) -> None:
    target = settings.proposals
    if "nms_pre" in rpn:
        target["candidates_per_level"] = rpn["nms_pre"]
    most = rpn.get("max_per_img", rpn.get("max_num"))
    if most is not None:
        target["proposals"] = most
    if "nms" in rpn:
        _read_nms(rpn["nms"], settings, target, soft=False)
    elif "nms_thr" in rpn:
        target["nms_iou"] = rpn["nms_thr"]
    if rpn.get("min_bbox_size"):
        settings.unsupported.append(f"rpn.min_bbox_size={quoted(rpn['min_bbox_size'])}")
    known = {"nms_pre", "nms_post", "max_per_img", "max_num", "nms", "nms_thr", "min_bbox_size", "nms_across_levels"}
    if rpn.get("nms_across_levels"):
        settings.unsupported.append("rpn.nms_across_levels=True")
    settings.unsupported += [f"rpn.{key}={quoted(value)}" for key, value in rpn.items() if key not in known]
