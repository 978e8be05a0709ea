"""Models fetched from a hub: a real server on loopback (`hub_server.py`)."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from hub_client import OWNER, STRANGER, Client, Hub, running

from fpg_zoo.checkpoints import safetensors_files
from fpg_zoo.errors import ConfigError
from fpg_zoo.weights.hub import fetch as hub_module

CONFIG = json.dumps({"schema_version": 1, "architecture": "some_model", "config": {}})
WEIGHTS = bytes(range(256)) * 64
FILES = {"config.json": CONFIG, "model.safetensors": WEIGHTS}


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory):
    with running(tmp_path_factory.mktemp("hub")) as started:
        yield started


@pytest.fixture
def client(hub: Hub, tmp_path: Path) -> Client:
    hub.forget()
    return Client(hub, tmp_path)


def test_importing_and_fetching_need_no_torch(client):
    client.hub.commit("owner/light", FILES)
    told = client.run("""
        told["before"] = sorted({"torch", "huggingface_hub"} & set(sys.modules))
        hub.fetch("owner/light")
        told["after"] = "torch" in sys.modules
    """)
    assert told == {"before": [], "after": False}


def test_the_files_are_named_as_everywhere():
    assert {safetensors_files.CONFIG_FILE, safetensors_files.WEIGHTS_FILE} == set(FILES)


def test_both_files_are_of_one_commit_though_the_branch_moves(client):
    first = client.hub.commit("owner/moving", FILES)
    client.hub.fault("move", "GET /api/models/owner/moving/revision/main", repo="owner/moving", files={"x": "y"})
    told = client.run("""
        folder = hub.fetch("owner/moving")
        told["first"], told["content"] = folder.name, sorted(file.name for file in folder.iterdir())
        told["pinned"] = json.loads(next(pathlib.Path(os.environ["FPG_ZOO_CACHE"]).rglob("*.json")).read_text())
        told["then"] = hub.fetch("owner/moving@main").name
        told["by hash"] = hub.fetch("owner/moving@" + told["first"]).name
    """)
    second = client.hub.repository("owner/moving")["refs"]["main"]
    assert (told["first"], told["then"], told["by hash"]) == (first, second, first)
    assert first != second
    assert told["content"] == ["config.json", "model.safetensors"]
    assert (told["pinned"]["repo"], told["pinned"]["commit"]) == ("owner/moving", first)
    assert sorted(told["pinned"]["files"]) == sorted(FILES)


def test_nothing_is_fetched_twice_and_a_commit_asks_for_nothing(client):
    commit = client.hub.commit("owner/again", FILES)
    client.hub.control(set={"repo": "owner/again", "refs": {"main": commit, "v1.0": commit, "wip/new": commit}})
    told = client.run("""
        told["folders"] = [str(hub.fetch("owner/again"))]
        told["once"] = asked()
        for spec in ("", "@v1.0", "@wip/new"):
            told["folders"].append(str(hub.fetch("owner/again" + spec)))
        told["by name"] = asked()
        told["folders"].append(str(hub.fetch("owner/again@" + hub.fetch("owner/again").name)))
        asked()
        hub.fetch("owner/again@" + hub.fetch("owner/again@v1.0").name)
        told["by hash"] = asked()[1:]
    """)
    assert len(set(told["folders"])) == 1
    assert sum(request.startswith("GET config.json") for request in told["once"]) == 1
    assert told["by name"] == ["GET main", "GET v1.0", "GET new"]  # asked which commits they are, and no more
    assert told["by hash"] == []


@pytest.mark.parametrize(
    "spec", ["", "repo", "a/b/c", "a/b@", "a/b@../x", "a/b@x y", "https://hub.example/a/b", "a--b/c"]
)
def test_another_form_is_told_the_right_one(spec):
    with pytest.raises(ConfigError, match=r"the form is hf-hub:OWNER/REPO or hf-hub:OWNER/REPO@REVISION"):
        hub_module.fetch(spec)


def test_a_byte_altered_on_its_way_is_found_and_the_next_call_heals(client):
    client.hub.commit("owner/flipped", FILES)
    client.hub.fault("flip", "GET /download/")
    client.hub.fault("flip", "GET .*/config.json")
    told = client.run("""
        told["config"] = error(hub.fetch, "owner/flipped")
        told["weights"] = error(hub.fetch, "owner/flipped")
        told["healed"] = weights("owner/flipped").hex()
    """)
    assert told["config"].startswith("DigestError: hf-hub:owner/flipped, commit ")
    assert "config.json: expected git SHA-1" in told["config"]
    assert "model.safetensors: expected SHA-256" in told["weights"]
    assert "removed from the cache, try again" in told["weights"]
    assert told["healed"] == WEIGHTS.hex()


@pytest.mark.slow
def test_a_connection_cut_is_taken_up_where_it_ended(client):
    large = WEIGHTS * 1500  # 24 MB, as huggingface_hub writes 10 MiB at a time
    client.hub.commit("owner/cut", {**FILES, "model.safetensors": large})
    client.hub.fault("cut", "GET /download/")
    told = client.run("""
        import hashlib
        error(hub.fetch, "owner/cut")  # not all versions of huggingface_hub take it up in the same call
        told["content"] = hashlib.sha256(weights("owner/cut")).hexdigest()
    """)
    assert told["content"] == hashlib.sha256(large).hexdigest()
    first, second = (one["range"] for one in client.hub.requests() if one["cdn"])
    assert first is None
    assert second.startswith("bytes=1")


def test_what_was_altered_on_the_disk(client):
    client.hub.commit("owner/rotten", FILES)
    told = client.run("""
        file = (hub.fetch("owner/rotten") / "model.safetensors").resolve()
        status = file.stat()
        told["before"] = [verdict.state for verdict in hub.verify()]
        file.write_bytes(file.read_bytes()[:-1] + b"!")
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))  # as a failing disk would do it
        told["after"] = [[verdict.state, verdict.detail, str(verdict.path) == str(file)] for verdict in hub.verify()]
        os.utime(file)
        told["fetched"] = error(hub.fetch, "owner/rotten")
        told["gone"] = [verdict.detail[:11] for verdict in hub.verify()]
        told["healed"] = weights("owner/rotten").hex()
        record = next(pathlib.Path(os.environ["FPG_ZOO_CACHE"]).rglob("*.json"))
        record.write_text("{")
        told["record"] = [[verdict.state, verdict.detail[-31:]] for verdict in hub.verify()]
        told["unreadable"] = error(hub.fetch, "owner/rotten")
    """)
    assert told["before"] == ["good", "good"]
    (config, _, _), (state, detail, named) = told["after"]
    assert (config, state, named) == ("good", "altered", True)
    assert detail.startswith("model.safetensors of hf-hub:owner/rotten@")
    assert detail.endswith("; delete it to fetch it again")
    assert "pinned in" in told["fetched"]
    assert told["gone"] == ["config.json"]
    assert told["healed"] == WEIGHTS.hex()
    assert told["record"] == [["altered", "delete it to pin the files anew"]]
    assert told["unreadable"].startswith("StorageError")


def test_a_commit_that_has_other_content_than_before_is_refused(client):
    commit = client.hub.commit("owner/rewritten", FILES)
    other = client.hub.commit("owner/other", {**FILES, "model.safetensors": WEIGHTS[::-1]})
    entry = client.hub.repository("owner/other")["commits"][other]["files"]["model.safetensors"]
    commits = client.hub.repository("owner/rewritten")["commits"]
    commits[commit]["files"]["model.safetensors"] = entry
    script = f"""
        hub.fetch("owner/rewritten")
        shutil.rmtree(os.environ["HF_HOME"])
        server.control(set={{"repo": "owner/rewritten", "commits": json.loads({json.dumps(json.dumps(commits))})}})
        told["branch"] = error(hub.fetch, "owner/rewritten")
        told["commit"] = error(hub.fetch, "owner/rewritten@{commit}")
    """
    for message in client.run(script).values():
        assert message.startswith("DigestError")
        assert "when it was first fetched" in message
        assert entry["oid"] in message


def test_repositories_without_a_model_of_the_zoo(client):
    client.hub.commit("owner/empty", {"notes.txt": "nothing here"})
    client.hub.commit("owner/pickled", {"config.json": CONFIG, "pytorch_model.bin": b"pickle"})
    client.hub.commit("owner/bare", {"model.safetensors": WEIGHTS})
    client.hub.commit("owner/foreign", {"config.json": '{"model_type": "detr"}', "model.safetensors": WEIGHTS})
    client.hub.commit("owner/garbled", {"config.json": "[" * 100_000, "model.safetensors": WEIGHTS})
    told = client.run("""
        for name in ("empty", "pickled", "bare", "foreign", "garbled"):
            told[name] = error(hub.fetch, "owner/" + name)
        told["downloads"] = [one for one in server.requests() if one["cdn"]]
    """)
    assert told["empty"].startswith("DownloadError: hf-hub:owner/empty has no config.json; ")
    assert "has no model.safetensors, only pickles (pytorch_model.bin), which are not loaded" in told["pickled"]
    assert "has no config.json; " in told["bare"]
    for name in ("foreign", "garbled"):
        assert told[name].startswith(
            f"CheckpointError: hf-hub:owner/{name}: its config.json describes no model of the zoo"
        )
    assert told["downloads"] == []


def test_what_is_not_there_or_not_for_everyone(client):
    client.hub.commit("owner/secret", FILES, private=True)
    client.hub.commit("owner/gated", FILES)
    client.hub.commit("owner/open", FILES)
    client.hub.control(set={"repo": "owner/gated", "gated": True})
    told = client.run(f"""
        told["revision"] = error(hub.fetch, "owner/open@mian")
        told["commit"] = error(hub.fetch, "owner/open@" + "0" * 40)
        for who, token in (("nobody", ""), ("stranger", "{STRANGER}"), ("mistyped", "hf_tokenThatIsNone0123456789")):
            os.environ["HF_TOKEN"] = token
            told["private " + who] = error(hub.fetch, "owner/secret")
            told["gated " + who] = error(hub.fetch, "owner/gated")
        os.environ["HF_TOKEN"] = "{OWNER}"
        told["missing"] = error(hub.fetch, "owner/missing")
        server.forget()
        told["owner"] = weights("owner/secret").hex()
        told["token"] = [[one["cdn"], one["token"]] for one in server.requests()]
    """)
    assert "owner/open has no such revision" in told["revision"]
    assert "owner/open has no such revision" in told["commit"]
    assert "you sent none: check the name, or log in with `hf auth login` or set HF_TOKEN" in told["private nobody"]
    assert "no such repository, or your token has no access to it" in told["private stranger"]
    assert "401 (Invalid credentials" in told["private mistyped"]
    for who in ("nobody", "stranger"):
        assert "its owner grants access on request" in told[f"gated {who}"]
    assert told["missing"].startswith("DownloadError: hf-hub:owner/missing: no such repository")
    assert told["owner"] == WEIGHTS.hex()
    # The storage behind the hub never sees the token.
    assert {tuple(pair) for pair in told["token"]} == {(False, True), (True, False)}


def test_a_hub_that_is_out_of_order(client):
    client.hub.commit("owner/ill", FILES)
    client.hub.commit("owner/page", {**FILES, "model.safetensors": WEIGHTS[::-1]})
    told = client.run("""
        info = "GET /api/models/owner/ill"
        server.fault("status", info, status=500)
        told["500"] = error(hub.fetch, "owner/ill")
        server.fault("status", info, status=429, text="slow down")
        told["429"] = error(hub.fetch, "owner/ill")
        server.fault("html", info)
        told["html"] = error(hub.fetch, "owner/ill")
        server.fault("commit", "HEAD .*/model.safetensors")
        told["commit"] = error(hub.fetch, "owner/ill")
        server.fault("etag", "HEAD .*/model.safetensors")
        told["etag"] = error(hub.fetch, "owner/ill")
        server.fault("html", "GET /download/")
        told["page"] = error(hub.fetch, "owner/page")
        told["well"] = weights("owner/ill").hex()
        server.fault("status", info, status=500)
        told["cached"] = weights("owner/ill").hex()
    """)
    assert "the hub answered 500 (out of order): try again later" in told["500"]
    assert "the hub answered 429 (slow down): wait, and try again" in told["429"]
    assert told["html"].startswith("DownloadError: hf-hub:owner/ill: JSONDecodeError")
    assert "the hub answered with " + "0" * 40 in told["commit"]
    assert "expected ETag a-day-in-may (as the hub states)" in told["etag"]
    assert told["page"].startswith("DownloadError: hf-hub:owner/page: OSError: Consistency check failed")
    assert "force_download" not in told["page"]
    assert told["well"] == told["cached"] == WEIGHTS.hex()


@pytest.mark.slow
def test_without_the_network(client):
    commit = client.hub.commit("owner/offline", FILES)
    partial = client.hub.commit("owner/partial", FILES)
    client.run("""
        hub.fetch("owner/offline")
        server.fault("flip", "GET /download/")
        error(hub.fetch, "owner/partial")  # keeps its config alone
    """)
    script = f"""
        told["branch"] = weights("owner/offline").hex()
        told["commit"] = weights("owner/offline@{commit}").hex()
        told["other branch"] = error(hub.fetch, "owner/offline@wip")
        told["unknown"] = error(hub.fetch, "owner/unknown")
        told["partial"] = error(hub.fetch, "owner/partial")
        told["verified"] = len(list(hub.verify()))
    """
    client.hub.forget()
    told = client.run(
        script + f'    told["partial commit"] = error(hub.fetch, "owner/partial@{partial}")', HF_HUB_OFFLINE="1"
    )
    assert told["branch"] == told["commit"] == WEIGHTS.hex()
    assert told["verified"] == 2
    for name in ("other branch", "unknown", "partial", "partial commit"):
        assert told[name].startswith("DownloadError: hf-hub:owner/")
        assert "HF_HUB_OFFLINE forbids the network: unset it" in told[name]
    assert client.hub.requests() == []
    unreachable = client.run(
        """
        told["branch"] = weights("owner/offline").hex()
        told["unknown"] = error(hub.fetch, "owner/unknown")
        """,
        HF_ENDPOINT="http://someone:hf_secret1234@127.0.0.1:9",
    )
    assert unreachable["branch"] == WEIGHTS.hex()
    assert "hf_secret" not in unreachable["unknown"]
    assert "check the network, and HF_ENDPOINT" in unreachable["unknown"]


@pytest.mark.slow
def test_offline_set_late_holds_and_unset_late_is_told(client):
    for name in ("owner/late", "owner/other"):
        client.hub.commit(name, FILES)
    client.hub.forget()
    told = client.run("""
        import huggingface_hub.constants
        from fpg_zoo.weights.hub.push import push_to_hub
        hub.fetch("owner/late")
        asked()
        os.environ["HF_HUB_OFFLINE"] = "1"
        told["cached"] = weights("owner/late").hex()
        told["other"] = error(hub.fetch, "owner/other")
        told["push"] = error(push_to_hub, None, "owner/new")
        shutil.rmtree(os.environ["FPG_ZOO_CACHE"])  # with the pins
        told["pinned anew"] = weights("owner/late").hex()
        told["asked"] = asked()
        del os.environ["HF_HUB_OFFLINE"]
        told["then"] = weights("owner/other").hex()
    """)
    assert told["cached"] == told["pinned anew"] == told["then"] == WEIGHTS.hex()
    for name in ("other", "push"):
        assert told[name].startswith("DownloadError: ")
        assert "HF_HUB_OFFLINE forbids the network: unset it" in told[name]
    assert told["asked"] == []
    client.hub.forget()
    told = client.run(
        """
        import huggingface_hub.constants
        del os.environ["HF_HUB_OFFLINE"]
        told["cached"] = weights("owner/late").hex()
        told["unknown"] = error(hub.fetch, "owner/unknown")
        """,
        HF_HUB_OFFLINE="1",
    )
    assert told["cached"] == WEIGHTS.hex()
    assert "when huggingface_hub was imported" in told["unknown"]
    assert "unset it" not in told["unknown"]
    assert client.hub.requests() == []


def test_what_is_no_file_in_a_cache_is_not_waited_for(client):
    client.hub.commit("owner/pipes", FILES)
    told = client.run("""
        folder = hub.fetch("owner/pipes")
        record = next(pathlib.Path(os.environ["FPG_ZOO_CACHE"]).rglob("*.json"))
        pinned = record.read_text()
        made = {
            "pipe": os.mkfifo,
            "device": lambda path: path.symlink_to("/dev/zero"),
            "terabyte": lambda path: (path.touch(), os.truncate(path, 1 << 40)),
        }
        for kind, make in made.items():
            for name in ("config.json", "model.safetensors"):
                blob = (folder / name).resolve()
                content = blob.read_bytes()
                blob.unlink()
                make(blob)
                told[f"{name} {kind}"] = error(hub.fetch, "owner/pipes@" + folder.name)
                told[f"verified {name} {kind}"] = [verdict.state for verdict in hub.verify()]
                blob.unlink()
                blob.write_bytes(content)
            record.unlink()
            make(record)
            told["record " + kind] = error(hub.fetch, "owner/pipes@" + folder.name)
            told["verified record " + kind] = [verdict.state for verdict in hub.verify()]
            record.unlink()
            record.write_text(pinned)
        told["healed"] = weights("owner/pipes").hex()
    """)
    assert told.pop("healed") == WEIGHTS.hex()
    for name, outcome in told.items():
        if name.startswith("verified"):
            assert outcome.count("good") < 2, name
        else:
            assert "not a regular file" in outcome or "1099511627776 bytes" in outcome, (name, outcome)
            assert outcome.startswith("StorageError: "), (name, outcome)


def test_where_there_are_no_links(client):
    client.hub.commit("owner/linkless", FILES)
    client.hub.fault("flip", "GET /download/")
    told = client.run("""
        import huggingface_hub.file_download
        huggingface_hub.file_download.are_symlinks_supported = lambda *_: False
        told["flipped"] = error(hub.fetch, "owner/linkless")
        told["healed"] = weights("owner/linkless").hex()
        told["links"] = [file.is_symlink() for file in hub.fetch("owner/linkless").iterdir()]
        told["good"] = [verdict.state for verdict in hub.verify()]
    """)
    assert "expected SHA-256" in told["flipped"]
    assert told["healed"] == WEIGHTS.hex()
    assert told["links"] == [False, False]
    assert told["good"] == ["good", "good"]


@pytest.mark.slow
def test_a_cache_that_cannot_be_written(client):
    client.hub.commit("owner/unwritable", FILES)
    (client.home / "file").write_text("no folder")
    told = client.run("""
        os.environ["FPG_ZOO_CACHE"] = str(pathlib.Path(os.environ["HF_HOME"]).parent / "file")
        told["pin"] = error(hub.fetch, "owner/unwritable")
    """)
    assert told["pin"].startswith("StorageError: cannot write in ")
    assert "FPG_ZOO_CACHE" in told["pin"]
    told = client.run("""told["hub"] = error(hub.fetch, "owner/unwritable")""", HF_HOME=str(client.home / "file"))
    assert told["hub"].startswith("StorageError: hf-hub:owner/unwritable: ")
    assert "HF_HOME" in told["hub"]
