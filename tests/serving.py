"""A real HTTP server on loopback that serves checkpoints, well or badly, and remembers what it was asked."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from fpg_zoo.weights.manifest import Published

HOST = "https://download.openmmlab.com"
Fault = Literal["none", "404", "500", "redirect", "cut", "html", "stall"]


@dataclass
class Mirror:
    """What the server serves and how; `requests` lists the paths asked for."""

    url: str
    files: dict[str, bytes] = field(default_factory=dict)
    fault: Fault = "none"
    requests: list[str] = field(default_factory=list)
    half_sent: threading.Event = field(default_factory=threading.Event)

    def add(self, file: Path) -> str:
        """Serve a file; returns the URL under which it was "published"."""
        path = f"/mmdetection/v2.0/fpg/some_config/{file.name}"
        self.files[path] = file.read_bytes()
        return HOST + path


@contextlib.contextmanager
def serve() -> Iterator[Mirror]:
    mirror = Mirror(url="")

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            mirror.requests.append(self.path)
            path = self.path.removeprefix("/moved")
            if mirror.fault in ("404", "500") or path not in mirror.files:
                self.send_error(int(mirror.fault) if mirror.fault == "500" else 404)
                return
            if mirror.fault == "redirect" and not self.path.startswith("/moved"):
                self.send_response(302)
                self.send_header("Location", "/moved" + self.path)
                self.end_headers()
                return
            body = b"<html>Please log in</html>" if mirror.fault == "html" else mirror.files[path]
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if mirror.fault in ("cut", "stall"):
                self.wfile.write(body[: len(body) // 2])
                self.wfile.flush()
                mirror.half_sent.set()
                if mirror.fault == "stall":
                    time.sleep(20)
                return
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    mirror.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield mirror
    finally:
        server.shutdown()
        server.server_close()


def publish(state_dict: dict[str, Tensor], folder: Path, name: str) -> Path:
    """Write a checkpoint as published ones are: legacy serialisation, `meta` and `state_dict`, digest in the name."""
    draft = folder / "draft.pth"
    meta = {"mmdet_version": "2.22.0", "epoch": 50, "iter": 91600, "CLASSES": ("person", "bicycle")}
    torch.save({"meta": meta, "state_dict": state_dict}, draft, _use_new_zipfile_serialization=False)
    digest = hashlib.sha256(draft.read_bytes()).hexdigest()
    return draft.rename(folder / f"{name}_crop640_50e_coco-{digest[:8]}.pth")


def entry_of(architecture: str, url: str, *, sha256: str | None = None) -> Published:
    """A manifest row for a served file."""
    return Published(
        architecture=architecture,
        tag="test",
        url=url,
        sha256=sha256 or url[-12:-4],
        box_ap=None,
        mask_ap=None,
        memory_gb=None,
        fps=None,
        recipe="crop640_50e",
        licence="Apache-2.0",
        class_names=tuple(f"thing {i}" for i in range(80)),
        config_url=None,
        log_url=None,
        note=None,
    )
