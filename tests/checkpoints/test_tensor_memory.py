"""Tensors that share memory in a file are tensors of their own in the model: training one changes no other."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_model
from tiny_models import tiny_model

import fpg_zoo
from fpg_zoo.checkpoints.tensor_memory import with_own_memory
from fpg_zoo.modeling.detectors import Detector

RETINA = "retinanet_nano_fpg"
FIRST, SECOND = "head.box_tower.0.norms.0.weight", "head.box_tower.0.norms.1.weight"
State = dict[str, torch.Tensor]


def _state() -> State:
    return {name: tensor.clone() for name, tensor in tiny_model(RETINA).state_dict().items()}


def _one(state: State) -> None:
    state[FIRST] = state[SECOND]


def _halves(state: State) -> None:
    base = torch.arange(2.0 * len(state[FIRST]))
    state[FIRST], state[SECOND] = base[: len(base) // 2], base[len(base) // 2 :]


def _interleaved(state: State) -> None:
    base = torch.arange(2.0 * len(state[FIRST]))
    state[FIRST], state[SECOND] = base[::2], base[1::2]


def _overlapping(state: State) -> None:
    base = torch.arange(1.0 + len(state[FIRST]))
    state[FIRST], state[SECOND] = base[:-1], base[1:]


def _expanded(state: State) -> None:
    state[FIRST] = torch.tensor(0.5).expand(len(state[FIRST]))


def _expanded_in_a_large_storage(state: State) -> None:
    state[FIRST] = torch.ones(len(state[FIRST]))[:1].expand(len(state[FIRST]))


def _all_from_one(state: State) -> None:
    """As of a flat buffer that holds a whole model."""
    floats = {name: value for name, value in state.items() if value.is_floating_point()}
    flat = torch.cat([value.flatten() for value in floats.values()])
    ends = itertools.accumulate(value.numel() for value in floats.values())
    for (name, value), end in zip(floats.items(), ends, strict=True):
        state[name] = flat[end - value.numel() : end].view(value.shape)


def assert_apart(model: Detector) -> None:
    """Each tensor changes alone, and in every place by itself."""
    state = model.state_dict()
    before = {name: tensor.clone() for name, tensor in state.items()}
    for name in (FIRST, SECOND):
        tensor = state[name].flatten()
        assert tensor.data_ptr() == state[name].data_ptr()
        tensor[0] += 1
        changed = [key for key in state if not torch.equal(state[key], before[key])]
        assert changed == [name]
        assert (state[name] != before[name]).sum() == 1
        state[name].copy_(before[name])
    spans = sorted((tensor.data_ptr(), tensor.nbytes) for tensor in state.values())
    assert all(begin + size <= following for (begin, size), (following, _) in itertools.pairwise(spans))
    assert all(tensor.is_contiguous() for tensor in state.values())


@pytest.mark.parametrize("zip_file", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    "share",
    [_one, _halves, _interleaved, _overlapping, _expanded, _expanded_in_a_large_storage, _all_from_one],
)
@pytest.mark.slow
def test_tensors_of_a_pth_are_apart(share: Callable[[State], None], zip_file: bool, tmp_path: Path) -> None:
    state = _state()
    share(state)
    torch.save({"state_dict": state}, tmp_path / "own.pth", _use_new_zipfile_serialization=zip_file)
    model = fpg_zoo.create_model(checkpoint=tmp_path / "own.pth")
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert_apart(model)


def test_tensors_of_a_file_in_the_references_format_are_apart(tmp_path: Path) -> None:
    state = fpg_zoo.reference_state_dict(tiny_model(RETINA))  # whose levels share the towers' convolutions
    state["bbox_head.reg_convs.0.0.bn.weight"] = state["bbox_head.reg_convs.1.0.bn.weight"]
    torch.save({"state_dict": state}, tmp_path / "theirs.pth")
    assert_apart(fpg_zoo.create_model(checkpoint=tmp_path / "theirs.pth"))


@pytest.mark.slow
def test_a_model_that_is_tied_is_saved_and_read_apart(tmp_path: Path) -> None:
    tied = fpg_zoo.create_model(RETINA)
    norms = tied.head.box_tower[0].norms
    norms[0].weight = norms[1].weight
    tied.save_pretrained(tmp_path / "ours.safetensors")
    save_model(tied, str(tmp_path / "bare.safetensors"))
    torch.save(tied.state_dict(), tmp_path / "ours.pth")
    assert len(load_file(tmp_path / "bare.safetensors")) == len(tied.state_dict()) - 1
    for name in ("ours.safetensors", "bare.safetensors", "ours.pth"):
        model = fpg_zoo.create_model(checkpoint=tmp_path / name)
        assert_apart(model)
        assert all(torch.equal(tensor, tied.state_dict()[key]) for key, tensor in model.state_dict().items())


def test_training_one_of_two_that_were_one_leaves_the_other(tmp_path: Path) -> None:
    state = _state()
    _one(state)
    torch.save(state, tmp_path / "tied.pth")
    model = fpg_zoo.create_model(checkpoint=tmp_path / "tied.pth")
    first, second = model.get_parameter(FIRST), model.get_parameter(SECOND)
    before = second.detach().clone()
    first.grad = torch.ones_like(first)
    torch.optim.SGD([first, second], lr=0.5).step()
    assert torch.equal(second, before)
    assert torch.equal(first, before - 0.5)


def test_what_is_apart_is_not_copied() -> None:
    base = torch.arange(12.0)
    given = {
        "alone": torch.ones(3),
        "transposed": torch.ones(2, 3).T,
        "channels last": torch.ones(2, 3, 4, 4).to(memory_format=torch.channels_last),
        "empty": torch.empty(0, 5),
        "scalar": torch.tensor(1),
        "first half": base[:6],
        "second half": base[6:].view(2, 3),
    }
    own = with_own_memory(given)
    assert list(own) == list(given)
    assert all(own[name] is given[name] for name in given)


def test_what_is_copied_has_the_same_values() -> None:
    base = torch.arange(12.0)
    given = {
        "whole": base,
        "part": base[3:6],
        "again": base,
        "turned": base.view(3, 4).T,
        "stepped": base[::5],
        "expanded": torch.tensor([[1.0], [2.0]]).expand(2, 3),
        "other kind": base.view(torch.int32)[2:4],
    }
    own = with_own_memory(given)
    assert all(torch.equal(own[name], given[name]) for name in given)
    assert [name for name in given if own[name] is given[name]] == ["whole"]
    assert len({tensor.untyped_storage().data_ptr() for tensor in own.values()}) == len(given)
