"""Models pushed to the Hugging Face hub, with a card."""

from __future__ import annotations

import contextlib
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from fpg_zoo.errors import CheckpointError, ConfigError
from fpg_zoo.text import quoted
from fpg_zoo.weights.hub.card import check_license, checked_metrics, is_own_card, model_card
from fpg_zoo.weights.hub.errors import check_online, hub_errors, one_line
from fpg_zoo.weights.hub.fetch import CONFIG, PREFIX, WEIGHTS, hub_api, is_branch, is_repository
from fpg_zoo.weights.manifest import Published, load_manifest
from fpg_zoo.weights.store import Store, verify_file

if TYPE_CHECKING:
    from huggingface_hub import HfApi

    from fpg_zoo.modeling.detectors import Detector

_CARD = "README.md"


def push_to_hub(
    model: Detector,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    message: str | None = None,
    metrics: Mapping[str, float] | None = None,
    license: str | None = None,
    token: str | None = None,
) -> str:
    """Upload a model with a card, in one commit or not at all; other files of the repository are left alone.

    A `README.md` that is there is replaced only if an earlier push made it and nobody has changed it since; otherwise
    it is kept, with a warning.

    Args:
        model: not on the meta device.
        repo_id: OWNER/REPO, made if need be (and left empty if the hub then refuses the content).
        private: whether only its owner may see a repository that is made now; None for the hub's default. A repository
            that is there already must be so.
        revision: the branch, made from the default one if need be; None for the default one.
        message: of the commit.
        metrics: measured ones for the card, by name, as `{"box_ap": 41.9}`. Published ones are there by themselves
            where the weights are the published ones.
        license: of the weights, by the hub's identifier; None for the published checkpoint's, or to state none.
        token: of the hub; None for the one huggingface_hub finds (HF_TOKEN, or `hf auth login`).

    Returns:
        The commit's hash: `create_model(f"hf-hub:{repo_id}@{hash}")` is this model from now on.

    Raises:
        ConfigError: an argument the hub or the card cannot have, or a repository of the other visibility.
        DownloadError: the hub refuses or cannot be reached.
        StorageError: no room for a temporary copy.
    """
    repo, measured = check_push(repo_id, revision=revision, metrics=metrics, license=license)
    check_online(f"push to {PREFIX}{repo}")
    card = model_card(model, repo, revision=revision, published=published_as(model), metrics=measured, license=license)
    from huggingface_hub import CommitOperationAdd

    api = hub_api(token)
    title = message or f"{model.name} for {len(model.class_names)} classes"
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        model.save_pretrained(folder)
        (folder / _CARD).write_text(card, encoding="utf-8", newline="\n")
        with hub_errors(f"push to {PREFIX}{repo}", repo, token):
            commit = _prepared(api, repo, private, revision)
            kept = _has_card_of_its_own(api, repo, commit, Path(temporary) / "there")
            names = (CONFIG, WEIGHTS) if kept else (CONFIG, WEIGHTS, _CARD)
            operations = [CommitOperationAdd(name, folder / name) for name in names]
            try:
                # Naming the parent has the hub refuse if a card, or anything, was committed since.
                pushed = api.create_commit(
                    repo, operations, commit_message=title, revision=revision, parent_commit=commit
                ).oid
            except ValueError as error:
                if not str(error).startswith("Invalid metadata"):
                    raise
                raise ConfigError(
                    f"{repo}: the hub refuses the card ({one_line(error, token)}); licenses are named as in "
                    "https://huggingface.co/docs/hub/repositories-licenses; nothing was uploaded"
                ) from None
    if kept:
        warnings.warn(
            f"{repo}: its {_CARD} was written or changed by hand and is kept, so that it shows no figures given here; "
            "delete it and push again for a new card",
            stacklevel=2,
        )
    return pushed


def _prepared(api: HfApi, repo: str, private: bool | None, revision: str | None) -> str | None:
    """Make the repository and the branch, if need be; returns the commit at the branch's head."""
    api.create_repo(repo, private=private, exist_ok=True)
    there = api.model_info(repo)
    if private is not None and there.private != private:
        raise ConfigError(
            f"{repo} is there and is {'public' if private else 'private'}, and private={private} was asked for: "
            "change it in its settings, or leave private out; nothing was uploaded"
        )
    if revision is None:
        return there.sha
    api.create_branch(repo, branch=revision, exist_ok=True)
    return api.model_info(repo, revision=revision).sha


def check_push(
    repo_id: str, *, revision: str | None, metrics: Mapping[str, float] | None, license: str | None
) -> tuple[str, dict[str, float]]:
    """Look at what is given to `push_to_hub` but the model; returns the repository and the metrics by the card's names.

    Raises:
        ConfigError: one of them will not do.
    """
    repo, at, other = repo_id.removeprefix(PREFIX).partition("@")
    if at:
        raise ConfigError(
            f"{quoted(repo_id)}: name the repository alone, and the branch {quoted(other)} as the revision"
        )
    if not is_repository(repo):
        raise ConfigError(f"{quoted(repo_id)}: name the repository as OWNER/REPO")
    if revision is not None and not is_branch(revision):
        raise ConfigError(f"revision {quoted(revision)}: a push needs a branch; give its name, or leave it out")
    check_license(license)
    return repo, checked_metrics(metrics or {})


def published_as(model: Detector) -> Published | None:
    """The published checkpoint that `model` is: with its config, class names and every tensor.

    Only checkpoints in the package or the zoo's cache, whole and as they were published or pinned, can be compared;
    None if it is none of them.
    """
    store = Store()
    for entry in load_manifest().of(model.name):
        path = entry.packaged or store.path(entry)
        with contextlib.suppress(FileNotFoundError):  # removed meanwhile
            if path.is_file() and _is_saved_as(model, path):
                verdict = verify_file(path) if entry.packaged else store.judge(path)
                if verdict.state == "good":
                    return entry
    return None


def _is_saved_as(model: Detector, path: Path) -> bool:
    import torch

    from fpg_zoo.checkpoints.safetensors_files import WeightsFile

    try:
        file = WeightsFile(path)
        if file.described() != (model.config, model.name):
            return False
    except CheckpointError:
        return False
    tensors, saved = model.state_dict(), file.tensors()
    return tensors.keys() == saved.keys() and all(
        # As they are loaded: in float32, whatever they are kept in.
        tensor.dtype == (torch.float32 if saved[name].is_floating_point() else saved[name].dtype)
        and torch.equal(tensor.cpu(), saved[name].to(tensor.dtype))
        for name, tensor in tensors.items()
    )


def _has_card_of_its_own(api: HfApi, repo: str, commit: str | None, folder: Path) -> bool:
    """Whether the repository has a card that no push made, or that was changed since."""
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        text = Path(api.hf_hub_download(repo, _CARD, revision=commit, local_dir=folder)).read_bytes()
    except LocalEntryNotFoundError:
        raise  # the hub could not be reached
    except EntryNotFoundError:
        return False
    return bool(text.strip()) and not is_own_card(text.decode(errors="replace"))
