"""State dicts of the published files and ours, one into the other, with every tensor on either side accounted for."""

from __future__ import annotations

from collections.abc import Mapping, Set

import torch
from torch import Tensor

from fpg_zoo.checkpoints.fit import some
from fpg_zoo.errors import CheckpointError

# Of each tensor of ours, the reference's names; several where it repeats a tensor that levels share.
Names = Mapping[str, tuple[str, ...]]


def from_reference(state_dict: Mapping[str, Tensor], mapped: Names) -> dict[str, Tensor]:
    """Tensors of a published file under our names.

    Args:
        state_dict: under the reference's names.
        mapped: the names of the architecture that they are of.

    Returns:
        The same tensors, not copied; what the reference repeats per level is there once.

    Raises:
        CheckpointError: a tensor is missing or left over, or copies of a shared tensor differ.
    """
    expected = all_names(mapped)
    refuse_differences(missing=expected - state_dict.keys(), unexpected=state_dict.keys() - expected)
    return under_our_names(state_dict, mapped)


def names_in(stored: Set[str], mapped: Names) -> Names:
    """Under which names a file has each tensor of a detector: ours, or the reference's.

    Args:
        stored: the names in the file.
        mapped: the names of the architecture that its tensors are of.

    Returns:
        Per name of ours, the one in the file; several where the reference repeats a shared tensor.

    Raises:
        CheckpointError: a name is missing or left over, or some are ours and others the reference's.
    """
    names = names_used(stored, mapped)
    refuse_both(stored, mapped)
    expected = all_names(names)
    refuse_differences(missing=expected - stored, unexpected=stored - expected)
    return names


def under_our_names(state_dict: Mapping[str, Tensor], names: Names) -> dict[str, Tensor]:
    """Tensors of a file under our names, not copied.

    Args:
        state_dict: under the names in the file.
        names: as `names_in` gives them.

    Raises:
        CheckpointError: copies of a shared tensor differ.
    """
    tensors = {}
    for ours, (first, *copies) in names.items():
        tensor = state_dict[first]
        for copy in copies:
            if state_dict[copy].dtype != tensor.dtype or not torch.equal(state_dict[copy], tensor):
                raise CheckpointError(f"{copy} differs from {first}, but the levels share this convolution")
        tensors[ours] = tensor
    return tensors


def all_names(mapped: Names) -> set[str]:
    """All of the reference's names."""
    return {name for names in mapped.values() for name in names}


def names_used(stored: Set[str], mapped: Names) -> Names:
    """Our names for a detector's tensors if a file has any that is ours alone, else the reference's."""
    return {name: (name,) for name in mapped} if stored & (mapped.keys() - all_names(mapped)) else mapped


def refuse_both(stored: Set[str], mapped: Names) -> None:
    """Refuse a file in which some of a detector's tensors have our names and others the reference's.

    Raises:
        CheckpointError: with some of the names.
    """
    ours, theirs = mapped.keys() - all_names(mapped), all_names(mapped) - mapped.keys()
    if stored & ours and stored & theirs:
        raise CheckpointError(
            f"it names some tensors as the zoo does ({some(sorted(stored & ours))}) and others as the reference does "
            f"({some(sorted(stored & theirs))}): save the state dict of one model alone"
        )


def to_reference(tensors: Mapping[str, Tensor], mapped: Names) -> dict[str, Tensor]:
    """Our tensors under the reference's names, not copied; a shared tensor appears once per level."""
    return {theirs: tensors[ours] for ours, names in mapped.items() for theirs in names}


def differences(*, missing: Set[str], unexpected: Set[str]) -> str:
    """In words, which names are missing and which are left over."""
    groups = (("missing", missing), ("too many", unexpected))
    return "; ".join(
        f"{len(names)} tensor{'s' if len(names) > 1 else ''} {group}: {some(sorted(names))}"
        for group, names in groups
        if names
    )


def refuse_differences(*, missing: Set[str], unexpected: Set[str]) -> None:
    """Raise if any name is missing or left over.

    Raises:
        CheckpointError: with the names.
    """
    if missing or unexpected:
        message = differences(missing=missing, unexpected=unexpected)
        raise CheckpointError(f"the file does not fit the architecture, {message}. Is it of another model?")
