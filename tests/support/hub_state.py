"""What a hub on loopback (`hub_server.py`) holds on the disk, and what it is to do wrong."""

from __future__ import annotations

import hashlib
import json
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Fault:
    """What goes wrong, in the requests whose "METHOD PATH" the pattern is found in, `times` times.

    kind: `flip` a byte of the body; `cut` the connection halfway; `html` instead of an answer; `status` with `status`,
    whose error text is `text`; `commit` claims another commit than was asked for; `etag` states no digest; `move` has
    someone commit `files` (path to text) to the branch `main` of `repo` once the request is answered.
    """

    kind: str
    match: str
    times: int = 1
    status: int = 500
    text: str = "out of order"
    repo: str = ""
    files: dict[str, str] = field(default_factory=dict)


class State:
    """Repositories and contents on the disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lock = threading.RLock()
        self.faults: list[Fault] = []
        for name in ("objects", "repos"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        self.log = folder / "requests.jsonl"
        self.log.touch()

    def path(self, repo: str) -> Path:
        return self.folder / "repos" / f"{repo}.json"

    def read(self, repo: str) -> dict[str, Any] | None:
        path = self.path(repo)
        return json.loads(path.read_text()) if path.is_file() else None

    def write(self, repo: str, state: dict[str, Any]) -> None:
        self.path(repo).parent.mkdir(exist_ok=True)
        self.path(repo).write_text(json.dumps(state, indent=1))

    def create(self, repo: str, private: bool) -> None:
        self.write(repo, {"private": private, "gated": False, "refs": {}, "commits": {}})
        self.commit(repo, {".gitattributes": self.keep(b"*.safetensors filter=lfs\n", large=False)}, "initial commit")

    def keep(self, data: bytes, *, large: bool) -> dict[str, Any]:
        """Keep a content; what a commit says of it."""
        oid = hashlib.sha256(data).hexdigest() if large else hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        (self.folder / "objects" / oid).write_bytes(data)
        return {"oid": oid, "size": len(data), "lfs": large}

    def commit(
        self, repo: str, files: dict[str, Any], summary: str, *, ref: str = "main", gone: tuple[str, ...] = ()
    ) -> str:
        state = self.read(repo)
        assert state is not None
        parent = state["refs"].get(ref)
        before = state["commits"][parent]["files"] if parent else {}
        content = {path: entry for path, entry in {**before, **files}.items() if path not in gone}
        text = json.dumps([parent, content, summary, len(state["commits"])])
        commit = hashlib.sha1(text.encode()).hexdigest()
        state["commits"][commit] = {"parent": parent, "summary": summary, "files": content, "changed": sorted(files)}
        state["refs"][ref] = commit
        self.write(repo, state)
        return commit
