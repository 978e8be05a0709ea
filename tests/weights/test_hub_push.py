"""Models pushed to a hub: a real server on loopback (`hub_server.py`)."""

from __future__ import annotations

import dataclasses
import hashlib
import textwrap
from pathlib import Path

import pytest
import torch
from hub_client import OWNER, Client, Hub, running
from tiny_models import tiny_model

from fpg_zoo.modeling.build import build_detector
from fpg_zoo.weights.hub import push as hub_push
from fpg_zoo.weights.manifest import Manifest, load_manifest
from fpg_zoo.weights.store import Pin, Store, pin_path

PUSHING = f"""
import warnings
import torch, fpg_zoo
from fpg_zoo.weights.hub import push as hub_push
os.environ["HF_TOKEN"] = {OWNER!r}

def same(first, second):
    one, other = first.state_dict(), second.state_dict()
    equal = one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    return equal and first.config == second.config and first.name == second.name

def named(count, names=None):
    return fpg_zoo.create_model("retinanet_nano_fpg", num_classes=count, class_names=names)

def push(*arguments, **options):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        told.setdefault("commits", []).append(hub_push.push_to_hub(*arguments, **options))
    return [str(warning.message) for warning in caught if warning.category is UserWarning]

def load(spec):
    return fpg_zoo.create_model("hf-hub:" + spec)
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory):
    with running(tmp_path_factory.mktemp("hub")) as started:
        yield started


@pytest.fixture
def client(hub: Hub, tmp_path: Path) -> Client:
    hub.forget()
    return Client(hub, tmp_path)


@pytest.mark.slow
def test_a_pushed_model_is_loaded_again(client):
    told = client.run(
        PUSHING
        + textwrap.dedent(f"""
        model, other = fpg_zoo.create_model("mask_rcnn_nano_fpg"), named(3, ["cat", "dog", "größer | \\"quoted\\""])
        told["warned"] = push(model, "owner/pushed", metrics={{"box_ap": 41.5, "recall": 0.25}}, license="mit")
        told["main"] = same(load("owner/pushed"), model)
        push(other, "owner/pushed", message="another one")
        told["moved"] = same(load("owner/pushed"), other)
        told["names"] = load("owner/pushed").class_names[2]
        told["first"] = same(load("owner/pushed@" + told["commits"][0]), model)
        push(model, "owner/pushed", revision="wip/branch", token={OWNER!r})
        told["branch"] = same(load("owner/pushed@wip/branch"), model)
        told["main still"] = same(load("owner/pushed"), other)
        push(model, "owner/hidden", private=True)
        told["private"] = same(load("owner/hidden"), model)
        """)
    )
    first, second, branch, _ = told["commits"]
    assert told["warned"] == []
    assert all(told[name] for name in ("main", "moved", "first", "branch", "main still", "private"))
    assert told["names"] == 'größer | "quoted"'
    state = client.hub.repository("owner/pushed")
    assert state["refs"] == {"main": second, "wip/branch": branch}
    assert [state["commits"][commit]["changed"] for commit in (first, second)] == [
        ["README.md", "config.json", "model.safetensors"]
    ] * 2
    assert state["commits"][second]["summary"] == "another one"
    assert not state["private"]
    assert client.hub.repository("owner/hidden")["private"]
    card = client.hub.content("owner/pushed", "README.md", "wip/branch").decode()
    assert 'create_model("hf-hub:owner/pushed@wip/branch")' in card
    assert "license: mit" not in card


@pytest.mark.slow
def test_what_a_push_leaves_alone_and_what_it_refuses(client):
    client.hub.commit("owner/kept", {"README.md": "# By hand\n", "results/notes.txt": "mine"})
    client.hub.commit("owner/blank", {"README.md": "\n"})
    client.hub.commit("stranger/theirs", {"config.json": "{}"})
    told = client.run(
        PUSHING
        + textwrap.dedent("""
        model = named(2)
        told["kept"] = push(model, "owner/kept")
        told["blank"] = push(model, "owner/blank")
        own = server.content("owner/blank", "README.md").decode()
        told["replaced"] = push(named(3), "owner/blank")
        server.commit("owner/blank", {"README.md": own.replace("Metrics", "Our metrics")})
        told["edited"] = push(model, "owner/blank")
        server.forget()
        refused = told.setdefault("refused", {})
        new = ("owner/new",)
        refused["figure"] = error(hub_push.push_to_hub, model, *new, metrics={"box_ap": float("nan")})
        refused["text"] = error(hub_push.push_to_hub, model, *new, metrics={"box_ap": "41"})
        refused["nameless"] = error(hub_push.push_to_hub, model, *new, metrics={"a\\nb": 1.0})
        refused["licence"] = error(hub_push.push_to_hub, model, *new, license="My own: licence")
        refused["commit"] = error(hub_push.push_to_hub, model, *new, revision="0" * 40)
        refused["form"] = error(hub_push.push_to_hub, model, "new")
        refused["revision"] = error(hub_push.push_to_hub, model, "owner/new@main")
        told["asked"] = asked()
        refused["unknown licence"] = error(hub_push.push_to_hub, model, *new, license="beerware")
        refused["visibility"] = error(hub_push.push_to_hub, model, "owner/kept", private=True)
        refused["theirs"] = error(hub_push.push_to_hub, model, "stranger/new")
        refused["rights"] = error(hub_push.push_to_hub, model, "stranger/theirs")
        refused["mistyped"] = error(hub_push.push_to_hub, model, *new, token="hf_tokenThatIsNone0123456789")
        server.commit("owner/late", {"notes.txt": "one"})
        server.fault("move", "HEAD .*/README.md", repo="owner/late", files={"README.md": "# Just now"})
        refused["meanwhile"] = error(hub_push.push_to_hub, model, "owner/late")
        del os.environ["HF_TOKEN"]
        refused["nobody"] = error(hub_push.push_to_hub, model, "owner/newer")
        """)
    )
    assert "its README.md was written or changed by hand and is kept" in told["kept"][0]
    assert told["blank"] == told["replaced"] == []
    assert len(told["edited"]) == 1
    assert client.hub.content("owner/kept", "README.md") == b"# By hand\n"
    assert client.hub.content("owner/kept", "results/notes.txt") == b"mine"
    assert b"Our metrics" in client.hub.content("owner/blank", "README.md")
    refused = told["refused"]
    assert told["asked"] == []
    for name in (
        "figure",
        "text",
        "nameless",
        "licence",
        "commit",
        "form",
        "revision",
        "unknown licence",
        "visibility",
    ):
        assert refused[name].startswith("ConfigError: "), refused[name]
    assert "box_ap=nan is no finite number" in refused["figure"]
    assert '"license" must be one of' in refused["unknown licence"]
    assert "owner/kept is there and is public" in refused["visibility"]
    for name in ("theirs", "rights"):
        assert "the hub answered 403" in refused[name]
    assert "401 (Invalid credentials" in refused["mistyped"]
    assert "the hub answered 412 (a commit has happened since." in refused["meanwhile"]
    assert client.hub.content("owner/late", "README.md") == b"# Just now"
    assert "you sent none: check the name, or log in" in refused["nobody"]
    assert len(client.hub.repository("owner/new")["commits"]) == 1  # that which made it


def _publish(model, entry, *, pinned=True):
    """Put a model into the zoo's cache as if it had been fetched."""
    path = Store().path(entry)
    model.save_pretrained(path)
    if pinned:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        pin_path(path).write_text(str(Pin(source_url=entry.url, source_sha256="0" * 64, sha256=digest)))
    return path


def test_only_equal_weights_count_as_published(monkeypatch):
    model = tiny_model("retinanet_nano_fpg")
    rows = [
        dataclasses.replace(row, architecture="retinanet_nano_fpg") for row in load_manifest().of("mask_rcnn_r50_fpg")
    ]
    manifest = Manifest(host="", recipes={}, checkpoints=tuple(rows))
    monkeypatch.setattr(hub_push, "load_manifest", lambda: manifest)
    other = build_detector(model.config, model.name).eval()
    assert hub_push.published_as(model) is None  # nothing in the cache
    _publish(other, rows[0])
    assert hub_push.published_as(model) is None  # other weights
    path = _publish(model, rows[1])
    assert hub_push.published_as(model) == rows[1]
    assert hub_push.published_as(other) == rows[0]

    renamed = dataclasses.replace(model.config, class_names=tuple(f"thing {i}" for i in range(80)))
    resized = dataclasses.replace(
        model.config, preprocess=dataclasses.replace(model.config.preprocess, longest_side=256)
    )
    for config in (renamed, resized):
        changed = build_detector(config, model.name).eval()
        changed.load_state_dict(model.state_dict())
        assert hub_push.published_as(changed) is None
    nudged = build_detector(model.config, model.name).eval()
    nudged.load_state_dict(model.state_dict())
    assert hub_push.published_as(nudged) == rows[1]
    with torch.no_grad():
        nudged.head.classes.bias[-1] += 1e-6
    assert hub_push.published_as(nudged) is None
    assert hub_push.published_as(nudged.half()) is None

    pin_path(path).unlink()
    assert hub_push.published_as(model) is None  # nobody knows where the file is from
    path.write_bytes(b"short")
    assert hub_push.published_as(model) is None
