"""A hub on loopback, in a process of its own, that speaks what huggingface_hub asks of a real one.

    python tests/support/hub_server.py --folder DIR --port 0

prints its port. What it holds is on the disk in DIR: contents under `objects`, each repository as
`repos/OWNER/NAME.json`, and every request as a line of `requests.jsonl`. Large files go through LFS ("basic" transfer)
and come from a second port, as from a CDN; Xet is not spoken, so that clients set HF_HUB_DISABLE_XET=1. POST /control
sets its faults. `hub_client.running` starts one from a test.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import http.server
import json
import re
import threading
import urllib.parse
from pathlib import Path
from typing import Any

from hub_state import Fault, State

TOKENS = {"hf_tokenOfTheOwner0123456789": "owner", "hf_tokenOfAStranger0123456789": "stranger"}
LICENCES = ("apache-2.0", "mit", "cc-by-4.0", "other")


class RefusedError(Exception):
    """An answer other than 200; `code` is the hub's X-Error-Code."""

    def __init__(self, status: int, text: str, code: str | None = None, headers: dict[str, str] | None = None) -> None:
        super().__init__(text)
        self.status, self.text = status, text
        self.headers = {**({"X-Error-Code": code} if code else {}), **(headers or {}), "X-Error-Message": text}


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16  # heading and body leave together, or each answer waits for the client's acknowledgement
    server: Server

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815

    def _answer(self) -> None:
        state = self.server.state
        self.body = self._read_body()
        self.fault: Fault | None = None
        url = urllib.parse.urlsplit(self.path)
        with state.lock:
            if self.path == "/control":
                self._send(200, json.dumps(self.server.control(json.loads(self.body))).encode())
                return
            self.fault = self._due(f"{self.command} {urllib.parse.unquote(self.path)}")
            try:
                if self.fault and self.fault.kind == "html":
                    status, data, headers = 200, b"<html>Please log in</html>", {"Content-Type": "text/html"}
                elif self.fault and self.fault.kind == "status":
                    raise RefusedError(self.fault.status, self.fault.text, headers={"Retry-After": "0"})
                else:
                    status, data, headers = self._route(url.path)
            except RefusedError as refused:
                text = json.dumps({"error": refused.text, "errors": [{"message": refused.text}]})
                status, data, headers = refused.status, text.encode(), refused.headers
            with state.log.open("a") as log:
                told = {"method": self.command, "path": urllib.parse.unquote(url.path), "status": status}
                told |= {"range": self.headers.get("Range"), "token": "Authorization" in self.headers}
                told |= {"cdn": self.server is not self.server.hub}
                log.write(json.dumps(told) + "\n")
            if self.fault and self.fault.kind == "move":
                moved = {path: state.keep(text.encode(), large=False) for path, text in self.fault.files.items()}
                state.commit(self.fault.repo, moved, "moved meanwhile")
        self._send(status, data, headers)

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _due(self, request: str) -> Fault | None:
        for fault in self.server.state.faults:
            if fault.times and re.search(fault.match, request):
                fault.times -= 1
                return fault
        return None

    def _send(self, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        kind = self.fault.kind if self.fault else None
        if kind == "flip" and self.command == "GET":
            middle = len(data) // 2
            data = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
        self.send_response(206 if asked and status == 200 else status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        if asked and status == 200:
            first = int(asked.group(1))
            self.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
            data = data[first:]
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if kind == "cut":
            self.wfile.write(data[: len(data) // 2])
            self.close_connection = True
            return
        self.wfile.write(data)

    def _route(self, path: str) -> tuple[int, bytes, dict[str, str]]:
        for method, pattern, name in ROUTES:
            found = re.fullmatch(pattern, path)
            if found and self.command in method:
                parts = {key: urllib.parse.unquote(value) for key, value in found.groupdict().items()}
                answer = getattr(self, name)(**parts)
                return answer if isinstance(answer, tuple) else (200, json.dumps(answer).encode(), {})
        raise RefusedError(404, f"this hub has no {self.command} {path}")

    def _user(self) -> str | None:
        given = self.headers.get("Authorization")
        if given is None:
            return None
        user = TOKENS.get(given.removeprefix("Bearer "))
        if user is None:
            raise RefusedError(401, "Invalid credentials in Authorization header")
        return user

    def _repo(self, repo: str, *, write: bool = False) -> dict[str, Any]:
        """The repository, if this request may see it (or write it)."""
        user, state = self._user(), self.server.state.read(repo)
        may_write = user is not None and user == repo.split("/")[0]
        if state is None or (state["private"] and not may_write):
            if user is None:
                raise RefusedError(401, "Invalid username or password.")
            raise RefusedError(404, "Repository not found", "RepoNotFound")
        if write and not may_write:
            raise RefusedError(403, "Forbidden: you have no right to write here")
        return state

    def _commit_of(self, state: dict[str, Any], revision: str) -> str:
        commit = state["refs"].get(revision, revision)
        if commit not in state["commits"]:
            raise RefusedError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return str(commit)

    # The answers, one for each route.

    def whoami(self) -> Any:
        user = self._user()
        if user is None:
            raise RefusedError(401, "Invalid username or password.")
        return {"type": "user", "name": user, "orgs": []}

    def create(self) -> Any:
        asked, user = json.loads(self.body), self._user()
        owner = asked.get("organization") or user
        repo = f"{owner}/{asked['name']}"
        if user is None:
            raise RefusedError(401, "Invalid username or password.")
        if user != owner:
            raise RefusedError(403, f"You don't have the rights to create a model under the namespace {owner!r}")
        answer = {"url": f"{self.server.hub.url}/{repo}", "name": repo}
        if self.server.state.read(repo) is not None:
            return 409, json.dumps({"error": "You already created this model repo", **answer}).encode(), {}
        self.server.state.create(repo, asked.get("visibility") == "private" or asked.get("private") is True)
        return answer

    def info(self, repo: str, revision: str = "main") -> Any:
        state = self._repo(repo)
        commit = self._commit_of(state, revision)
        files = [{"rfilename": path} for path in state["commits"][commit]["files"]]
        return {"id": repo, "modelId": repo, "sha": commit, "private": state["private"], "siblings": files, "tags": []}

    def tree(self, repo: str, revision: str) -> Any:
        state = self._repo(repo)
        files = state["commits"][self._commit_of(state, revision)]["files"]
        return [
            {"type": "file", "path": path, "size": entry["size"], "oid": entry["oid"][:40]}
            | ({"lfs": {"oid": entry["oid"], "size": entry["size"], "pointerSize": 134}} if entry["lfs"] else {})
            for path, entry in files.items()
        ]

    def branch(self, repo: str, revision: str) -> Any:
        state = self._repo(repo, write=True)
        if revision in state["refs"]:
            raise RefusedError(409, "Reference already exists")
        start = json.loads(self.body or b"{}").get("startingPoint", "main")
        state["refs"][revision] = self._commit_of(state, start)
        self.server.state.write(repo, state)
        return {}

    def tag(self, repo: str, revision: str) -> Any:
        state = self._repo(repo, write=True)
        state["refs"][json.loads(self.body)["tag"]] = self._commit_of(state, revision)
        self.server.state.write(repo, state)
        return {}

    def validate_yaml(self) -> Any:
        content = json.loads(self.body)["content"]
        licence = re.search(r"^license: (.*)$", content, re.MULTILINE)
        if licence and licence.group(1) not in LICENCES:
            raise RefusedError(400, f'"license" must be one of [{", ".join(LICENCES)}]')
        return {"errors": [], "warnings": []}

    def preupload(self, repo: str, revision: str) -> Any:
        state = self._repo(repo, write=True)
        there = state["commits"][self._commit_of(state, revision)]["files"]
        return {
            "files": [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                    "oid": there.get(file["path"], {}).get("oid"),
                }
                for file in json.loads(self.body)["files"]
            ]
        }

    def lfs_batch(self, repo: str) -> Any:
        self._repo(repo, write=True)
        hub, answer = self.server.hub, []
        for wanted in json.loads(self.body)["objects"]:
            actions = {
                "upload": {"href": f"{hub.cdn_url}/upload/{wanted['oid']}"},
                "verify": {"href": f"{hub.url}/lfs/verify/{repo}"},
            }
            there = (hub.state.folder / "objects" / wanted["oid"]).is_file()
            answer.append(wanted if there else {**wanted, "actions": actions})
        return {"transfer": "basic", "objects": answer}

    def lfs_upload(self, oid: str) -> Any:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise RefusedError(400, "the content has another SHA-256")
        self.server.state.keep(self.body, large=True)
        return {}

    def lfs_verify(self, repo: str) -> Any:
        self._repo(repo, write=True)
        asked = json.loads(self.body)
        path = self.server.state.folder / "objects" / asked["oid"]
        if not path.is_file() or path.stat().st_size != asked["size"]:
            raise RefusedError(404, "the content was not uploaded whole")
        return {}

    def commit(self, repo: str, revision: str) -> Any:
        hub, state = self.server.hub, self._repo(repo, write=True)
        files, gone, header = {}, [], {}
        for line in map(json.loads, self.body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                header = value
            elif line["key"] == "file":
                files[value["path"]] = hub.state.keep(base64.b64decode(value["content"]), large=False)
            elif line["key"] == "lfsFile":
                data = hub.state.folder / "objects" / value["oid"]
                if not data.is_file():
                    raise RefusedError(400, "an LFS content is missing")
                files[value["path"]] = {"oid": value["oid"], "size": data.stat().st_size, "lfs": True}
            elif line["key"] == "deletedFile":
                gone.append(value["path"])
        self._commit_of(state, revision)
        if header.get("parentCommit") not in (None, state["refs"][revision]):
            raise RefusedError(412, "a commit has happened since. Please refresh and try again.")
        commit = hub.state.commit(repo, files, header["summary"], ref=revision, gone=tuple(gone))
        return {"success": True, "commitOid": commit, "commitUrl": f"{hub.url}/{repo}/commit/{commit}"}

    def resolve(self, repo: str, revision: str, file: str) -> Any:
        hub, state = self.server.hub, self._repo(repo)
        if state["gated"]:
            raise RefusedError(
                401 if self._user() is None else 403, f"Access to model {repo} is restricted.", "GatedRepo"
            )
        commit = self._commit_of(state, revision)
        headers = {"X-Repo-Commit": commit}
        if self.fault and self.fault.kind == "commit":
            headers["X-Repo-Commit"] = "0" * 40
        entry = state["commits"][commit]["files"].get(file)
        if entry is None:
            raise RefusedError(404, "Entry not found", "EntryNotFound", headers)
        etag = "a-day-in-may" if self.fault and self.fault.kind == "etag" else entry["oid"]
        if not entry["lfs"]:
            headers |= {"ETag": f'"{etag}"', "Content-Type": "text/plain"}
            return 200, (hub.state.folder / "objects" / entry["oid"]).read_bytes(), headers
        headers |= {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(entry["size"]), "ETag": '"of the redirect"'}
        return 302, b"", {**headers, "Location": f"{hub.cdn_url}/download/{entry['oid']}?signature=0815"}

    def lfs_download(self, oid: str) -> Any:
        headers = {"Content-Type": "application/octet-stream", "ETag": '"of the storage"'}
        return 200, (self.server.state.folder / "objects" / oid).read_bytes(), headers


_REPO = r"(?P<repo>[^/]+/[^/]+)"
_REVISION = r"(?P<revision>[^/]+)"
ROUTES = (
    ("GET", r"/api/whoami-v2", "whoami"),
    ("POST", r"/api/repos/create", "create"),
    ("POST", r"/api/validate-yaml", "validate_yaml"),
    ("GET", rf"/api/models/{_REPO}", "info"),
    ("GET", rf"/api/models/{_REPO}/revision/{_REVISION}", "info"),
    ("GET", rf"/api/models/{_REPO}/tree/{_REVISION}", "tree"),
    ("POST", rf"/api/models/{_REPO}/branch/{_REVISION}", "branch"),
    ("POST", rf"/api/models/{_REPO}/tag/{_REVISION}", "tag"),
    ("POST", rf"/api/models/{_REPO}/preupload/{_REVISION}", "preupload"),
    ("POST", rf"/api/models/{_REPO}/commit/{_REVISION}", "commit"),
    ("POST", rf"/{_REPO}\.git/info/lfs/objects/batch", "lfs_batch"),
    ("POST", rf"/lfs/verify/{_REPO}", "lfs_verify"),
    ("PUT", r"/upload/(?P<oid>[0-9a-f]{64})", "lfs_upload"),
    ("GET", r"/download/(?P<oid>[0-9a-f]{64})", "lfs_download"),
    (("GET", "HEAD"), rf"/{_REPO}/resolve/{_REVISION}/(?P<file>.+)", "resolve"),
)


class Server(http.server.ThreadingHTTPServer):
    """One port of the hub; the CDN's has `hub` for its other half."""

    daemon_threads = True

    def __init__(self, state: State, port: int, hub: Server | None = None) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.state = state
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.cdn_url = ""
        self.hub = hub or self

    def control(self, order: dict[str, Any]) -> Any:
        """`forget` requests and faults; add a `fault`; `commit` files to a repository; `set` what is known of one."""
        state = self.state
        if order.get("forget"):
            state.log.write_text("")
            state.faults.clear()
        if "fault" in order:
            state.faults.append(Fault(**order["fault"]))
            return None
        if "commit" in order:
            asked = order["commit"]
            if state.read(asked["repo"]) is None:
                state.create(asked["repo"], asked.get("private", False))
            files = {
                path: state.keep(base64.b64decode(data), large=path.endswith((".safetensors", ".bin")))
                for path, data in asked["files"].items()
            }
            return state.commit(asked["repo"], files, "by hand", gone=tuple(asked.get("gone", ())))
        if "set" in order:
            repo = order["set"].pop("repo")
            state.write(repo, {**(state.read(repo) or {}), **order["set"]})
        return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    options = parser.parse_args()
    hub = Server(State(options.folder), options.port)
    cdn = Server(hub.state, 0, hub)
    hub.cdn_url = cdn.url
    threading.Thread(target=cdn.serve_forever, daemon=True).start()
    print(hub.server_port, flush=True)
    hub.serve_forever()


if __name__ == "__main__":
    main()
