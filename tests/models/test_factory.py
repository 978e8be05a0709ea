"""Names, tags, sources of weights and numbers of classes, as `create_model` takes them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from conftest import PUBLISHED

import fpg_zoo
from fpg_zoo.checkpoints.safetensors_files import save
from fpg_zoo.errors import CheckpointError, ConfigError, UnknownNameError
from fpg_zoo.modeling.build import build_detector
from fpg_zoo.modeling.detectors import Detector, RetinaNet

NANO = ("faster_rcnn_nano_fpg", "mask_rcnn_nano_fpg", "retinanet_nano_fpg")
NAME = "mask_rcnn_nano_fpg"


def equal(left: Detector, right: Detector) -> bool:
    ours, theirs = left.state_dict(), right.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.fixture(scope="module")
def model() -> Detector:
    torch.manual_seed(0)
    return fpg_zoo.create_model(NAME, class_names=["cell", "platelet"])


def reference_file(model: Detector, path: Path, meta: dict[str, object] | None = None) -> Path:
    torch.save({"meta": meta or {}, "state_dict": fpg_zoo.reference_state_dict(model)}, path)
    return path


def test_all_models_are_listed_in_natural_order() -> None:
    names = fpg_zoo.list_models()
    assert set(names) == {*PUBLISHED, *NANO}
    assert names == sorted(names)  # no name holds numbers of different lengths, so the orders agree


def test_natural_order_puts_2_before_10(monkeypatch: pytest.MonkeyPatch) -> None:
    import fpg_zoo.models.factory as factory

    row = factory.ARCHITECTURES[NAME]
    monkeypatch.setattr(factory, "ARCHITECTURES", {"a10_x": row, "a2_x": row, "a2": row, "b": row})
    assert factory.list_models() == ["a2", "a2_x", "a10_x", "b"]


def test_patterns_and_exclusions() -> None:
    masks = ["mask_rcnn_nano_fpg", *(name for name in PUBLISHED if name.startswith("mask"))]
    assert fpg_zoo.list_models("mask*", pretrained=True) == masks
    assert fpg_zoo.list_models("*nasfpn", "mask*nano*") == ["mask_rcnn_nano_fpg", "retinanet_r50_nasfpn"]
    assert fpg_zoo.list_models("retinanet*", exclude="*nano*") == [n for n in PUBLISHED if n.startswith("retinanet")]
    assert fpg_zoo.list_models("retinanet*", exclude=["*nano*", "*fpg*"]) == [
        "retinanet_r50_fpn",
        "retinanet_r50_nasfpn",
    ]
    assert fpg_zoo.list_models("vgg*") == []


def test_pretrained_lists_the_ten_of_the_table_and_those_that_come_with_the_package() -> None:
    assert fpg_zoo.list_models(pretrained=True) == sorted((*PUBLISHED, *NANO))


def test_model_info_tells_the_published_figures() -> None:
    info = fpg_zoo.model_info("mask_rcnn_r50_fpg")
    assert (info.method, info.neck, info.tags) == ("Mask R-CNN", "FPG", ("coco_2022", "coco_2021"))
    default = info.checkpoints[0]
    assert (default.box_ap, default.mask_ap, default.memory_gb, default.sha256) == (43.0, 38.1, 23.2, "233b8334")
    assert default.license == "Apache-2.0"
    assert fpg_zoo.model_info("mask_rcnn_r50_fpg.coco_2021").tags == ("coco_2021",)


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_counted_as_the_schema_has_them(name: str) -> None:
    # Of the published tensors, the running statistics and counters are no parameters, and RetinaNet's tower
    # convolutions appear once for each of five levels.
    from test_schemas import SCHEMAS

    counted = 0
    for key, (shape, _) in SCHEMAS[name].items():
        parts = key.split(".")
        copy = parts[1] in ("cls_convs", "reg_convs") and parts[2] != "0" and parts[4] == "conv"
        if parts[-1] in ("weight", "bias") and not copy:
            counted += torch.Size(shape).numel()
    assert fpg_zoo.model_info(name).parameters == counted


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(
        UnknownNameError, match=r"no model 'mask_rcnn_r50_fgp' in the zoo: did you mean .*mask_rcnn_r50_fpg"
    ):
        fpg_zoo.create_model("mask_rcnn_r50_fgp")


def test_an_unknown_tag_is_answered_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"has no tag 'coco_2012': did you mean .*coco_2022"):
        fpg_zoo.create_model("faster_rcnn_r50_fpg.coco_2012")


def test_a_model_without_published_weights_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from fpg_zoo.models import names

    new = dataclasses.replace(names.ARCHITECTURES[NAME], name="new")
    monkeypatch.setattr(names, "ARCHITECTURES", {"new": new})
    with pytest.raises(
        UnknownNameError, match=r"no published checkpoint: give a checkpoint of your own, or build it untrained"
    ):
        fpg_zoo.create_model("new", pretrained=True)


def test_an_unknown_keyword_is_an_error() -> None:
    with pytest.raises(TypeError, match="num_clases"):
        fpg_zoo.create_model(NAME, num_clases=3)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({}, "neither a name nor a checkpoint"),
        ({"name": NAME, "num_classes": 0}, "num_classes=0"),
        ({"name": NAME, "num_classes": 2.0}, r"num_classes=2\.0: give a whole number"),
        ({"name": NAME, "num_classes": True}, "num_classes=True"),
        ({"name": NAME, "num_classes": 10**9}, "give a whole number from 1 to 65536"),
        ({"name": NAME, "num_classes": 3, "class_names": ["a"]}, "num_classes=3, but class_names holds 1"),
        ({"name": NAME, "class_names": "cell"}, "is one text: give a list"),
        ({"name": NAME, "pretrained": True, "checkpoint": "x.pth"}, "another source of weights"),
        ({"name": "local-dir:x", "checkpoint": "x.pth"}, "another source of weights"),
        ({"name": "faster_rcnn_r50_fpg.coco_2022", "checkpoint": "x.pth"}, "leave the tag out"),
    ],
)
def test_contradicting_arguments_are_refused(arguments: dict[str, object], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        fpg_zoo.create_model(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", NANO)
def test_models_come_in_eval_mode_and_with_the_classes_asked_for(name: str) -> None:
    model = fpg_zoo.create_model(name, num_classes=3)
    assert not model.training
    assert model.class_names == ("class 0", "class 1", "class 2")
    assert len(fpg_zoo.create_model(name).class_names) == 80


@pytest.mark.parametrize("zip_file", [True, False], ids=["zip", "legacy"])
def test_a_file_in_the_reference_format_decides_classes_and_names(
    zip_file: bool, model: Detector, tmp_path: Path
) -> None:
    path = tmp_path / "mine.pth"
    content = {"meta": {"CLASSES": ("red", "white")}, "state_dict": fpg_zoo.reference_state_dict(model)}
    torch.save(content, path, _use_new_zipfile_serialization=zip_file)
    loaded = fpg_zoo.create_model(NAME, checkpoint=path)
    assert equal(loaded, model)
    assert loaded.class_names == ("red", "white")
    assert not loaded.training
    assert fpg_zoo.create_model(checkpoint=path).name == NAME


def test_class_names_of_newer_files_are_read_too(model: Detector, tmp_path: Path) -> None:
    path = reference_file(model, tmp_path / "new.pth", {"dataset_meta": {"classes": ["x", "y"]}})
    assert fpg_zoo.create_model(NAME, checkpoint=path).class_names == ("x", "y")


@pytest.mark.slow
def test_other_classes_load_all_but_the_layers_that_depend_on_them(model: Detector, tmp_path: Path) -> None:
    path = tmp_path / "two.safetensors"
    model.save_pretrained(path)
    with pytest.warns(UserWarning, match=r"for 5 classes: not loaded.*box_head\.classes\.weight") as told:
        other = fpg_zoo.create_model(NAME, checkpoint=path, num_classes=5)
    fresh = {
        f"{layer}.{leaf}"
        for layer in ("box_head.classes", "box_head.deltas", "mask_head.classes")
        for leaf in ("weight", "bias")
    }
    named = str(told[0].message).split("at random: ")[1].split(", ")
    assert set(named) == fresh
    before, after = model.state_dict(), other.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before if key not in fresh)
    assert after["box_head.classes.weight"].shape == (6, 256)
    assert after["box_head.classes.weight"].std() == pytest.approx(0.01, rel=0.2)
    assert all(not tensor.is_meta for tensor in after.values())
    found = other.detect(torch.zeros(1, 3, 64, 64), [(64, 64)])[0]
    assert found.labels.max() < 5 if len(found) else True


def test_the_same_number_of_classes_only_renames_them(
    model: Detector, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    model.save_pretrained(tmp_path / "two.safetensors")
    other = fpg_zoo.create_model(checkpoint=tmp_path / "two.safetensors", class_names=["a", "b"])
    assert equal(other, model)
    assert other.class_names == ("a", "b")
    assert not recwarn.list


def test_a_folder_is_written_and_read(model: Detector, tmp_path: Path) -> None:
    save(model.state_dict(), model.config, model.name, tmp_path / "mine", {"note": "hello"})
    assert sorted(path.name for path in (tmp_path / "mine").iterdir()) == ["config.json", "model.safetensors"]
    loaded = fpg_zoo.create_model(f"local-dir:{tmp_path / 'mine'}")
    assert equal(loaded, model)
    assert loaded.config == model.config
    assert loaded.class_names == ("cell", "platelet")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda folder: (folder / "config.json").unlink(), r"config\.json: No such file.*fpg-zoo convert"),
        (lambda folder: (folder / "model.safetensors").unlink(), r"model\.safetensors: no such file"),
        (lambda folder: (folder / "config.json").write_text("{"), "does not describe a model"),
        (lambda folder: (folder / "config.json").write_text("[]"), "does not describe a model"),
        (lambda folder: (folder / "config.json").write_text('{"schema_version": 99}'), "schema_version 99.*reads 1"),
    ],
)
def test_a_damaged_folder_is_refused(change, reason: str, model: Detector, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    model.save_pretrained(tmp_path / "mine")
    change(tmp_path / "mine")
    with pytest.raises(CheckpointError, match=reason):
        fpg_zoo.create_model(f"local-dir:{tmp_path / 'mine'}")


def test_a_folder_whose_config_does_not_fit_its_tensors_is_refused(model: Detector, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "mine")
    file = tmp_path / "mine" / "config.json"
    description = json.loads(file.read_text())
    description["config"]["neck"]["width"] = 32
    file.write_text(json.dumps(description))
    with pytest.raises(CheckpointError, match=r"tensors of other shapes: .*, not .*Is it of another model\?"):
        fpg_zoo.create_model(f"local-dir:{tmp_path / 'mine'}")


def test_a_checkpoint_of_another_architecture_is_refused(model: Detector, tmp_path: Path) -> None:
    path = reference_file(model, tmp_path / "mask.pth")
    with pytest.raises(CheckpointError, match=r"mask\.pth: the file does not fit the architecture.*tensors too many"):
        fpg_zoo.create_model("faster_rcnn_nano_fpg", checkpoint=path)
    model.save_pretrained(tmp_path / "mask.safetensors")
    with pytest.raises(CheckpointError, match=r"holds a mask_rcnn_nano_fpg, not a faster_rcnn_nano_fpg"):
        fpg_zoo.create_model("faster_rcnn_nano_fpg", checkpoint=tmp_path / "mask.safetensors")


@pytest.mark.slow
def test_the_tower_width_is_read_from_the_file(tmp_path: Path) -> None:
    config = fpg_zoo.model_info("retinanet_r50_fpg_chn128").config
    narrow = build_detector(dataclasses.replace(config, head=dataclasses.replace(config.head, width=128))).eval()
    assert isinstance(narrow, RetinaNet)
    path = reference_file(narrow, tmp_path / "narrow.pth")
    loaded = fpg_zoo.create_model("retinanet_r50_fpg_chn128", checkpoint=path)
    assert isinstance(loaded, RetinaNet)
    assert loaded.config.head.width == 128
    assert tuple(loaded.head.class_tower[3].conv.weight.shape) == (128, 128, 3, 3)
    assert equal(loaded, narrow)


def test_a_loaded_model_can_be_trained(model: Detector, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "two.safetensors")
    loaded = fpg_zoo.create_model(checkpoint=tmp_path / "two.safetensors")
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    assert all(not parameter.is_inference() for parameter in loaded.parameters())


def test_everything_public_is_there() -> None:
    assert all(hasattr(fpg_zoo, name) for name in fpg_zoo.__all__)
    assert set(fpg_zoo.__all__) == set(dir(fpg_zoo))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        fpg_zoo.nonsense  # noqa: B018


def test_a_number_of_classes_that_is_the_files_own_keeps_the_names(model: Detector, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "two.safetensors")
    assert fpg_zoo.create_model(checkpoint=tmp_path / "two.safetensors", num_classes=2).class_names == model.class_names
    # COCO's category ids have gaps, and go by the names.
    assert fpg_zoo.create_model(NAME, num_classes=80).class_names[11] == "stop sign"


def test_class_names_that_contradict_the_head_are_refused_unless_others_are_given(
    model: Detector, tmp_path: Path
) -> None:
    path = reference_file(model, tmp_path / "odd.pth", {"CLASSES": ("a", "b", "c")})
    with pytest.raises(CheckpointError, match=r"odd\.pth: its meta's .*classes named: 3, of its head: 2.: pass"):
        fpg_zoo.create_model(NAME, checkpoint=path)
    assert fpg_zoo.create_model(NAME, checkpoint=path, class_names=["x", "y"]).class_names == ("x", "y")


def test_class_names_that_cannot_be_used_are_refused_unless_others_are_given(model: Detector, tmp_path: Path) -> None:
    path = reference_file(model, tmp_path / "twice.pth", {"CLASSES": ("a", "a")})
    with pytest.raises(CheckpointError, match=r"twice\.pth: its meta's class names cannot be used .*class_names="):
        fpg_zoo.create_model(NAME, checkpoint=path)
    assert fpg_zoo.create_model(NAME, checkpoint=path, class_names=["x", "y"]).class_names == ("x", "y")


def test_new_class_layers_are_initialised_as_those_of_a_new_model(tmp_path: Path) -> None:
    fpg_zoo.create_model("retinanet_nano_fpg").save_pretrained(tmp_path / "m.safetensors")
    with pytest.warns(UserWarning, match=r"head\.classes\.weight, head\.classes\.bias$"):
        other = fpg_zoo.create_model(checkpoint=tmp_path / "m.safetensors", num_classes=3)
    assert isinstance(other, RetinaNet)
    # The bias gives a score of 0.01: ln(0.01 / 0.99) = -4.595.
    assert other.head.classes.bias.tolist() == pytest.approx([-4.59512] * 27, abs=1e-5)
    assert other.head.classes.weight.detach().std() == pytest.approx(0.01, rel=0.1)
    assert all(parameter.requires_grad for parameter in other.parameters())


def test_half_precision_files_give_float32_models(model: Detector, tmp_path: Path) -> None:
    state_dict = {
        name: tensor.half() if tensor.is_floating_point() else tensor
        for name, tensor in fpg_zoo.reference_state_dict(model).items()
    }
    torch.save({"state_dict": state_dict}, tmp_path / "half.pth")
    loaded = fpg_zoo.create_model(NAME, checkpoint=tmp_path / "half.pth")
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda tensor: tensor.to(torch.int32), r"backbone\.conv1\.weight is torch\.int32"),
        (lambda tensor: tensor.to(torch.complex64), r"is torch\.complex64"),
        (lambda tensor: tensor.to_sparse(), r"asks for torch\._utils\._rebuild_sparse_tensor"),
        (lambda tensor: tensor[0, 0, 0, 0], r"no model of the zoo: .*backbone\.conv1\.weight is \(\)"),
    ],
)
def test_weights_of_another_kind_are_refused(change, reason: str, model: Detector, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    state_dict = fpg_zoo.reference_state_dict(model)
    state_dict["backbone.conv1.weight"] = change(state_dict["backbone.conv1.weight"])
    torch.save({"state_dict": state_dict}, tmp_path / "odd.pth")
    with pytest.raises(CheckpointError, match=reason):
        fpg_zoo.create_model(checkpoint=tmp_path / "odd.pth")


def test_tensors_that_share_memory_are_written(model: Detector, tmp_path: Path) -> None:
    state_dict = fpg_zoo.reference_state_dict(model)
    # Equal tensors, one of them in the other's memory, as torch.save keeps it.
    state_dict["backbone.bn1.bias"] = state_dict["backbone.bn1.weight"]
    torch.save({"state_dict": state_dict}, tmp_path / "shared.pth")
    shared = fpg_zoo.create_model(checkpoint=tmp_path / "shared.pth")
    shared.save_pretrained(tmp_path / "apart.safetensors")
    assert equal(fpg_zoo.create_model(checkpoint=tmp_path / "apart.safetensors"), shared)


def test_a_folder_can_be_given_as_checkpoint(model: Detector, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "mine")
    assert equal(fpg_zoo.create_model(NAME, checkpoint=tmp_path / "mine"), model)


def test_a_name_that_ends_in_a_dot_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="ends in a dot"):
        fpg_zoo.create_model("faster_rcnn_r50_fpg.")


@pytest.mark.parametrize("name", [*NANO, "retinanet_r50_fpg_chn128"])
@pytest.mark.slow
def test_loading_the_reference_state_dict_and_reading_it_back_is_the_identity(name: str) -> None:
    source, target = fpg_zoo.create_model(name), fpg_zoo.create_model(name)
    given = fpg_zoo.reference_state_dict(source)
    fpg_zoo.load_reference_state_dict(target, given)
    back = fpg_zoo.reference_state_dict(target)
    assert back.keys() == given.keys()
    assert all(torch.equal(back[key], given[key]) for key in given)


def test_a_folder_whose_class_names_contradict_its_tensors_is_refused(model: Detector, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "mine")
    file = tmp_path / "mine" / "config.json"
    description = json.loads(file.read_text())
    description["config"]["class_names"] = ["a", "b", "c"]
    file.write_text(json.dumps(description))
    with pytest.raises(CheckpointError, match=r"its tensors, which are of 2 classes \(described: 3\)"):
        fpg_zoo.create_model(f"local-dir:{tmp_path / 'mine'}")


def test_a_head_of_a_billion_rows_is_refused_at_once(model: Detector, tmp_path: Path) -> None:
    state_dict = fpg_zoo.reference_state_dict(model)
    state_dict["roi_head.bbox_head.fc_cls.weight"] = torch.zeros(1, 256).expand(10**9, 256)
    torch.save({"state_dict": state_dict}, tmp_path / "vast.pth")
    with pytest.raises(CheckpointError, match=r"sizes \(1000000000, 256\)"):
        fpg_zoo.create_model(checkpoint=tmp_path / "vast.pth")
