"""A hub on loopback (`hub_server.py`) as a test sees it, and clients of it in processes of their own.

huggingface_hub reads its variables when it is imported, so each client is a process with caches of its own. Fetching
needs neither torch nor real weights.
"""

from __future__ import annotations

import base64
import contextlib
import json
import subprocess
import sys
import textwrap
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hub_server
from command import environment, python

OWNER, STRANGER = hub_server.TOKENS
PRELUDE = """
import json, os, pathlib, shutil, sys
sys.path.insert(0, os.environ["TESTS"])
import hub_client
from fpg_zoo.weights.hub import fetch as hub
from fpg_zoo.errors import FPGZooError

server = hub_client.Hub(os.environ["HF_ENDPOINT"], pathlib.Path(os.environ["SERVER_FOLDER"]))
told = {}

def error(call, *arguments, **named):
    try:
        return f"none: {call(*arguments, **named)}"
    except FPGZooError as error:
        assert "\\n" not in str(error) and "hf_token" not in str(error), error
        return f"{type(error).__name__}: {error}"

def asked():
    requests = [f"{one['method']} {one['path'].rpartition('/')[2]}" for one in server.requests()]
    server.forget()
    return requests

def weights(spec):
    return (hub.fetch(spec) / "model.safetensors").read_bytes()
"""


@dataclass
class Hub:
    """A running server, as a test sees it."""

    url: str
    folder: Path

    def control(self, **order: Any) -> Any:
        """Have the server do something: see `Server.control`."""
        data = json.dumps(order).encode()
        with urllib.request.urlopen(urllib.request.Request(self.url + "/control", data)) as answer:
            return json.load(answer)

    def fault(self, kind: str, match: str, **more: Any) -> None:
        self.control(fault={"kind": kind, "match": match, **more})

    def commit(self, repo: str, files: dict[str, str | bytes], **more: Any) -> str:
        """Commit files as their owner would with git; returns the commit hash."""
        raw = {path: data.encode() if isinstance(data, str) else data for path, data in files.items()}
        encoded = {path: base64.b64encode(data).decode() for path, data in raw.items()}
        return str(self.control(commit={"repo": repo, "files": encoded, **more}))

    def repository(self, repo: str) -> dict[str, Any]:
        """What the server knows of a repository: `private`, `refs`, `commits`."""
        return dict(json.loads((self.folder / "repos" / f"{repo}.json").read_text()))

    def content(self, repo: str, path: str, ref: str = "main") -> bytes:
        """A file's content at the head of a branch."""
        state = self.repository(repo)
        return (self.folder / "objects" / state["commits"][state["refs"][ref]]["files"][path]["oid"]).read_bytes()

    def requests(self) -> list[dict[str, Any]]:
        """The requests since the server started or `forget` was called."""
        return [json.loads(line) for line in (self.folder / "requests.jsonl").read_text().splitlines()]

    def forget(self) -> None:
        """Empty the list of requests, and let no fault wait any longer."""
        self.control(forget=True)


@contextlib.contextmanager
def running(folder: Path) -> Iterator[Hub]:
    """A server in a process of its own, ended with the block."""
    command = [sys.executable, str(hub_server.__file__), "--folder", str(folder), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield Hub(f"http://127.0.0.1:{int(process.stdout.readline())}", folder)
        finally:
            process.terminate()


@dataclass(frozen=True)
class Client:
    """A machine with caches of its own."""

    hub: Hub
    home: Path

    def run(self, script: str, **changes: str) -> dict[str, Any]:
        """What the script puts into `told`."""
        named = {"HF_ENDPOINT": self.hub.url, "HF_HOME": str(self.home / "hf"), "FPG_ZOO_CACHE": str(self.home / "zoo")}
        named |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TESTS": str(Path(__file__).parent)}
        named |= {"SERVER_FOLDER": str(self.hub.folder), "HF_TOKEN": ""}
        code = PRELUDE + textwrap.dedent(script) + "\nprint(json.dumps(told))"
        done = python("-c", code, env=environment(**(named | changes)))
        assert done.returncode == 0, done.stderr
        assert "hf_token" not in done.stdout + done.stderr
        return json.loads(done.stdout.splitlines()[-1])
