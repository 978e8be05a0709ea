"""State dicts of the zoo's models, as users of PyTorch save them, are read again; and what messages advise works."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from command import run
from safetensors.torch import save_file, save_model
from tiny_models import tiny_model

import fpg_zoo
from fpg_zoo.checkpoints.plain_names import with_plain_names
from fpg_zoo.config.catalog import ARCHITECTURES
from fpg_zoo.errors import CheckpointError, UnsafeCheckpointError
from fpg_zoo.modeling.build import build_detector, build_on_meta
from fpg_zoo.modeling.detectors import Detector
from fpg_zoo.models.loading import architecture_of

RETINA = "retinanet_nano_fpg"
State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def model() -> Detector:
    return tiny_model(RETINA)


@pytest.fixture(scope="module")
def states(model: Detector) -> dict[str, State]:
    """Its tensors under either kind of names."""
    theirs = {name: tensor.clone() for name, tensor in fpg_zoo.reference_state_dict(model).items()}
    return {"ours": dict(model.state_dict()), "the reference's": theirs}


def assert_equal(found: Detector, expected: Detector) -> None:
    tensors, wanted = found.state_dict(), expected.state_dict()
    assert list(tensors) == list(wanted)
    assert all(torch.equal(tensors[name], wanted[name]) for name in wanted)
    assert (found.name, found.class_names, found.training) == (expected.name, expected.class_names, False)


LAYOUTS: dict[str, Callable[[State], object]] = {
    "plain": lambda state: state,
    "state_dict": lambda state: {"state_dict": state},
    "model": lambda state: {"model": state, "optimizer": {"state": {}}, "epoch": 3},
    "model_state_dict": lambda state: {"epoch": 3, "model_state_dict": state, "loss": torch.tensor(0.5)},
    "DataParallel": lambda state: {"state_dict": {f"module.{name}": value for name, value in state.items()}},
    "compiled": lambda state: {f"_orig_mod.{name}": value for name, value in state.items()},
    "Lightning": lambda state: {"state_dict": {f"model.{name}": value for name, value in state.items()}},
    "all three": lambda state: {f"model.module._orig_mod.{name}": value for name, value in state.items()},
    "averaged": lambda state: {
        "n_averaged": torch.tensor(7),
        **{f"module.{name}": value for name, value in state.items()},
    },
    "a compiled part": lambda state: {
        f"backbone._orig_mod.{name[9:]}" if name.startswith("backbone.") else name: value
        for name, value in state.items()
    },
}


@pytest.mark.parametrize("names", ["ours", "the reference's"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.slow
def test_a_saved_state_dict_is_read_with_and_without_the_models_name(
    layout: str, names: str, model: Detector, states: dict[str, State], tmp_path: Path
) -> None:
    torch.save(LAYOUTS[layout](states[names]), tmp_path / "saved.pth")
    assert_equal(fpg_zoo.create_model(RETINA, checkpoint=tmp_path / "saved.pth"), model)
    assert_equal(fpg_zoo.create_model(checkpoint=tmp_path / "saved.pth"), model)


@pytest.mark.parametrize("names", ["ours", "the reference's"])
@pytest.mark.parametrize("prefix", ["", "module.", "model._orig_mod."])
@pytest.mark.slow
def test_safetensors_without_a_description_are_read(
    prefix: str, names: str, model: Detector, states: dict[str, State], tmp_path: Path
) -> None:
    save_file({prefix + name: value for name, value in states[names].items()}, tmp_path / "bare.safetensors")
    assert_equal(fpg_zoo.create_model(RETINA, checkpoint=tmp_path / "bare.safetensors"), model)
    code, out, err = run("convert", tmp_path / "bare.safetensors", tmp_path / "folder")
    assert (code, err) == (0, "")
    assert RETINA in out
    assert_equal(fpg_zoo.create_model(f"local-dir:{tmp_path / 'folder'}"), model)


def test_what_safetensors_save_model_writes_of_a_tied_model_is_read(model: Detector, tmp_path: Path) -> None:
    tied = copy.deepcopy(model)
    first, second = (tied.head.box_tower[0].norms[level] for level in (0, 1))
    second.weight = first.weight
    save_model(tied, str(tmp_path / "tied.safetensors"))
    assert_equal(fpg_zoo.create_model(checkpoint=tmp_path / "tied.safetensors"), tied)


@pytest.mark.slow
def test_masks_and_other_numbers_of_classes_are_told_by_the_tensors(tmp_path: Path) -> None:
    torch.save(fpg_zoo.create_model("mask_rcnn_nano_fpg", num_classes=3).state_dict(), tmp_path / "own.pth")
    found = fpg_zoo.create_model(checkpoint=tmp_path / "own.pth")
    assert (found.name, found.class_names) == ("mask_rcnn_nano_fpg", ("class 0", "class 1", "class 2"))
    named = fpg_zoo.create_model(checkpoint=tmp_path / "own.pth", class_names=["cell", "platelet", "other"])
    assert named.class_names == ("cell", "platelet", "other")
    content = {
        "state_dict": fpg_zoo.create_model("faster_rcnn_nano_fpg", num_classes=2).state_dict(),
        "meta": {"CLASSES": ("cell", "platelet")},
    }
    torch.save(content, tmp_path / "told.pth")
    found = fpg_zoo.create_model("faster_rcnn_nano_fpg", checkpoint=tmp_path / "told.pth")
    assert (found.name, found.class_names) == ("faster_rcnn_nano_fpg", ("cell", "platelet"))


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.slow
def test_every_architecture_is_recognised_under_our_names(name: str) -> None:
    assert architecture_of(build_on_meta(ARCHITECTURES[name].build_config(), name).state_dict()) == name


@pytest.mark.slow
def test_no_name_is_ours_for_one_architecture_and_only_the_references_for_another() -> None:
    ours, theirs = set(), set()
    for name, architecture in ARCHITECTURES.items():
        detector = build_on_meta(architecture.build_config(), name)
        own, other = set(detector.state_dict()), set(fpg_zoo.reference_state_dict(detector))
        ours |= own - other
        theirs |= other - own
    assert ours.isdisjoint(theirs)


@pytest.mark.parametrize("name", [RETINA, None])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_names_of_both_kinds_in_one_file_are_refused(
    name: str | None, suffix: str, states: dict[str, State], tmp_path: Path
) -> None:
    both = {**states["the reference's"], **{name: value.clone() for name, value in states["ours"].items()}}
    file = tmp_path / f"both{suffix}"
    if suffix == ".pth":
        torch.save(both, file)
    else:
        save_file(both, file)
    with pytest.raises(CheckpointError) as caught:
        fpg_zoo.create_model(name, checkpoint=file)
    assert str(caught.value).startswith(f"{file}: it names some tensors as the zoo does (head.box_tower.0.conv.weight,")
    assert "others as the reference does (bbox_head.cls_convs.0.0.bn.bias," in str(caught.value)
    assert str(caught.value).endswith("save the state dict of one model alone")


def test_copies_that_differ_are_told_in_safetensors_too(states: dict[str, State], tmp_path: Path) -> None:
    for changed in (torch.add, lambda tensor, _: tensor.half()):
        tensors = dict(states["the reference's"])
        tensors["bbox_head.cls_convs.3.1.conv.weight"] = changed(tensors["bbox_head.cls_convs.3.1.conv.weight"], 1)
        save_file(tensors, tmp_path / "odd.safetensors")
        with pytest.raises(
            CheckpointError, match=r"odd\.safetensors: bbox_head\.cls_convs\.3\.1\.conv\.weight differs from "
        ):
            fpg_zoo.create_model(checkpoint=tmp_path / "odd.safetensors")


def test_a_whole_model_is_refused_and_the_remedy_works(model: Detector, tmp_path: Path) -> None:
    path = tmp_path / "whole.pth"
    torch.save(model, path)
    with pytest.raises(UnsafeCheckpointError) as caught:
        fpg_zoo.create_model(RETINA, checkpoint=path)
    assert str(caught.value).startswith(
        f"{path}: refused, it is an object of fpg_zoo.modeling.detectors.RetinaNet, not a checkpoint's dict of tensors."
    )
    remedy = str(caught.value)[str(caught.value).index("torch.save(") :]
    exec(remedy, {"torch": torch, "model": model, "path": path})  # the text of our own message
    assert_equal(fpg_zoo.create_model(RETINA, checkpoint=path), model)


def test_a_model_of_ones_own_config_needs_the_description_that_the_message_advises(tmp_path: Path) -> None:
    config = fpg_zoo.model_info(RETINA).config
    deeper = dataclasses.replace(config, head=dataclasses.replace(config.head, depth=3))
    own = build_detector(deeper, "mine").eval()
    torch.save(own.state_dict(), tmp_path / "own.pth")
    code, out, err = run("convert", tmp_path / "own.pth", tmp_path / "own.safetensors")
    assert (code, out) == (2, "")
    assert f"{tmp_path / 'own.pth'}: no model of the zoo: against the nearest, {RETINA}, " in err
    assert err.endswith("model.save_pretrained(...) writes a description\n")
    own.save_pretrained(tmp_path / "own.safetensors")
    assert_equal(fpg_zoo.create_model(checkpoint=tmp_path / "own.safetensors"), own)


@pytest.mark.parametrize(
    ("given", "plain"),
    [
        ({"module.a": 1, "b": 2}, {"module.a": 1, "b": 2}),
        ({"a._orig_mod.b": 1, "a.b": 2}, {"a._orig_mod.b": 1, "a.b": 2}),  # which of the two it is, nobody knows
        ({"n_averaged": 1, "a": 2}, {"n_averaged": 1, "a": 2}),
        ({"n_averaged": 1}, {"n_averaged": 1}),
        ({"steps": 1, "module.module.a": 2}, {"a": 2}),
        ({"a._orig_mod._orig_mod.b": 1}, {"a.b": 1}),
        ({}, {}),
    ],
)
def test_plain_names_lose_nothing(given: dict[str, int], plain: dict[str, int]) -> None:
    assert with_plain_names(given) == plain
