"""Every tensor of every published checkpoint, by the reference's name, shape and dtype; there and back."""

from __future__ import annotations

import json

import pytest
import torch
from conftest import GOLDEN, PUBLISHED

import fpg_zoo
from fpg_zoo.checkpoints.mmdet_convert import from_reference, to_reference
from fpg_zoo.checkpoints.mmdet_names import FPG, reference_names
from fpg_zoo.errors import CheckpointError
from fpg_zoo.modeling.build import build_on_meta
from fpg_zoo.models.loading import architecture_of, names_of

SCHEMAS = {
    name: {tensor: (tuple(shape), getattr(torch, dtype)) for tensor, shape, dtype in rows}
    for name, rows in json.loads((GOLDEN / "schemas.json").read_text()).items()
}


def test_schemas_are_of_the_published_ten() -> None:
    assert sorted(SCHEMAS) == sorted(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_reference_state_dict_is_the_published_schema(name: str) -> None:
    model = build_on_meta(fpg_zoo.model_info(name).config, name)
    found = fpg_zoo.reference_state_dict(model)
    assert {key: (tuple(tensor.shape), tensor.dtype) for key, tensor in found.items()} == SCHEMAS[name]


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.slow
def test_loading_and_reading_back_is_the_identity(name: str) -> None:
    given = _numbered(name)
    config = fpg_zoo.model_info(name).config
    ours = from_reference(given, names_of(config))
    back = to_reference(ours, names_of(config))
    assert list(ours) == list(build_on_meta(config, name).state_dict())
    assert back.keys() == given.keys()
    assert all(torch.equal(back[key], given[key]) for key in given)


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.slow
def test_architecture_is_recognised_from_its_tensors(name: str) -> None:
    assert architecture_of(_numbered(name)) == name


def test_architecture_is_recognised_whatever_the_classes_and_the_tower_width() -> None:
    other = {name: tensor.shape for name, tensor in _numbered("retinanet_r50_fpg_chn128").items()}
    tower = {name: torch.Size(128 if side == 256 else side for side in shape) for name, shape in other.items()}
    narrow = {name: tower[name] if name.startswith("bbox_head") else shape for name, shape in other.items()}
    narrow |= {"bbox_head.retina_cls.weight": (9 * 3, 128, 3, 3), "bbox_head.retina_cls.bias": (9 * 3,)}
    assert architecture_of({name: torch.empty(shape, device="meta") for name, shape in narrow.items()}) == RETINA


def _numbered(name: str) -> dict[str, torch.Tensor]:
    """Tensors of the schema, each filled with a number of its own; copies of a shared convolution alike."""
    tensors: dict[str, torch.Tensor] = {}
    for number, (key, (shape, dtype)) in enumerate(SCHEMAS[name].items()):
        parts = key.split(".")
        shared = parts[0] == "bbox_head" and parts[1] in ("cls_convs", "reg_convs") and parts[4] == "conv"
        first = ".".join([*parts[:2], "0", *parts[3:]]) if shared else key
        # expand: the memory of one number, the shape of the tensor
        tensors[key] = tensors[first] if first in tensors else torch.tensor(number, dtype=dtype).expand(shape)
    return tensors


RETINA = "retinanet_r50_fpg_chn128"


def test_a_missing_tensor_is_named() -> None:
    tensors = _numbered(RETINA)
    del tensors["bbox_head.retina_cls.bias"]
    with pytest.raises(CheckpointError, match=r"1 tensor missing: bbox_head\.retina_cls\.bias"):
        from_reference(tensors, names_of(fpg_zoo.model_info(RETINA).config))


def test_a_tensor_too_many_is_named() -> None:
    tensors = _numbered(RETINA) | {"bbox_head.centerness.weight": torch.zeros(1)}
    with pytest.raises(CheckpointError, match=r"1 tensor too many: bbox_head\.centerness\.weight"):
        from_reference(tensors, names_of(fpg_zoo.model_info(RETINA).config))


def test_unequal_copies_of_a_shared_convolution_are_refused() -> None:
    tensors = _numbered(RETINA)
    tensors["bbox_head.cls_convs.3.1.conv.weight"] = torch.zeros(256, 256, 3, 3)
    with pytest.raises(CheckpointError, match=r"cls_convs\.3\.1\.conv\.weight differs from .*cls_convs\.0\.1"):
        from_reference(tensors, names_of(fpg_zoo.model_info(RETINA).config))


def test_another_shape_is_refused_and_the_model_left_alone() -> None:
    model = fpg_zoo.create_model("retinanet_nano_fpg")
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    tensors = {key: tensor + 1 for key, tensor in fpg_zoo.reference_state_dict(model).items()}
    tensors["backbone.conv1.weight"] = torch.zeros(64, 3, 7, 7)
    with pytest.raises(CheckpointError, match=r"backbone\.conv1\.weight is \(64, 3, 7, 7\), not \(24, 3, 7, 7\)"):
        fpg_zoo.load_reference_state_dict(model, tensors)
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())


def test_an_unpublished_grid_has_no_reference_names() -> None:
    with pytest.raises(CheckpointError, match=r"across_from_finer.*only published architectures"):
        reference_names(["neck.pathways.0.nodes.1.across_from_finer.conv.weight"], {"neck": FPG}, levels=5)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"rpn_head.rpn_conv.weight": None}, r"nearest, faster_rcnn_r50_fpg, 1 tensor missing: rpn_head\.rpn_conv"),
        ({"backbone.layer3.6.conv1.weight": (256, 1024, 1, 1)}, r"1 tensor too many: backbone\.layer3\.6\.conv1"),
        (
            {"neck.lateral_convs.0.weight": (96, 256, 1, 1)},
            r"inputs\.project\.0\.weight is \(96, 256, 1, 1\), not \(256",
        ),
        ({"roi_head.bbox_head.fc_cls.weight": ()}, r"box_head\.classes\.weight is \(\), not \(81, 1024\)"),
        ({"roi_head.bbox_head.fc_cls.weight": (0, 1024)}, r"box_head\.classes\.weight is \(0, 1024\)"),
    ],
)
def test_what_is_not_of_the_zoo_is_refused_with_the_reason(
    change: dict[str, tuple[int, ...] | None], reason: str
) -> None:
    shapes = {key: shape for key, (shape, _) in SCHEMAS["faster_rcnn_r50_fpg"].items()} | change
    tensors = {key: torch.empty(shape, device="meta") for key, shape in shapes.items() if shape is not None}
    with pytest.raises(CheckpointError, match=f"^no model of the zoo: .*{reason}"):
        architecture_of(tensors)


def test_an_inference_form_has_no_reference_names() -> None:
    form = fpg_zoo.optimize(fpg_zoo.create_model("retinanet_nano_fpg"))
    with pytest.raises(CheckpointError, match="the published files have no such tensor"):
        fpg_zoo.reference_state_dict(form)
