"""A real HTTP server on loopback that serves checkpoints, well or badly, and remembers what it was asked."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import http.server
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

from fpg_zoo.weights.manifest import Published

if TYPE_CHECKING:  # the processes that are killed do without torch
    from torch import Tensor

HOST = "https://download.openmmlab.com"
Fault = Literal[
    "none",
    "404",
    "500",
    "503",
    "429",
    "redirect",
    "cut",  # half of what is asked for, then closed
    "reset",  # half of it, then the connection is reset
    "stall",  # half of it, then silence
    "html",  # a web page with status 200, not marked as one
    "page",  # a web page with status 200 and the type text/html
    "too long",  # announces more bytes than it sends
    "too short",  # announces fewer
    "flip",  # one byte altered: see `Mirror.flipped`
    "no length",  # closes at the end, without having announced where that is
    "chunked",  # in chunks, without a length
    "chunked cut",  # two of them of 100 kB, then closed
    "no ranges",  # the whole file whatever is asked for
    "no ranges cut",  # the first half of it whatever is asked for, then closed
    "from the start",  # says 206, and sends from the first byte
    "from elsewhere",  # says 206, and sends from another byte than asked for, as it says
    "wrong rest",  # sends other bytes than those it says
    "any range",  # ranges without looking at If-Range
]
Validators = Literal["etag", "weak etag", "date", "none"]


@dataclass
class Request:
    """What was asked: the path, the headers Range and If-Range, and how many bytes of the body went out."""

    path: str
    range: str | None
    if_range: str | None = None
    sent: int = 0

    def startswith(self, prefix: str) -> bool:
        return self.path.startswith(prefix)


@dataclass
class Mirror:
    """What the server serves and how.

    Attributes:
        files: by path. One may be exchanged while the server runs.
        fault: of every request for which `faults` has none.
        faults: of the next requests, one each.
        flipped: for "flip", at which byte of the file and what with it is XORed; None for the middle of what is sent.
        validators: what tells one version of a file from another.
        retry_after: the header of a 429.
        pause_at: bytes of a body after which it waits until `go_on` is set; `half_sent` is set then.
        requests: what was asked, in order.
    """

    url: str
    files: dict[str, bytes] = field(default_factory=dict)
    fault: Fault = "none"
    faults: list[Fault] = field(default_factory=list)
    flipped: tuple[int, int] | None = None
    validators: Validators = "etag"
    retry_after: str = "0"
    pause_at: int | None = None
    requests: list[Request] = field(default_factory=list)
    half_sent: threading.Event = field(default_factory=threading.Event)
    go_on: threading.Event = field(default_factory=threading.Event)

    def add(self, file: Path) -> str:
        """Serve a file; returns the URL under which it was "published"."""
        path = f"/mmdetection/v2.0/fpg/some_config/{file.name}"
        self.files[path] = file.read_bytes()
        return HOST + path


class _Handler(http.server.BaseHTTPRequestHandler):
    mirror: Mirror

    def do_GET(self) -> None:
        mirror = self.mirror
        request = Request(self.path, self.headers["Range"], self.headers["If-Range"])
        mirror.requests.append(request)
        fault: Fault = mirror.faults.pop(0) if mirror.faults else mirror.fault
        asked = urlsplit(self.path)  # a proxy is asked for whole URLs
        path = asked._replace(scheme="", netloc="").geturl().removeprefix("/moved")
        if fault.isdigit():
            self.send_response(int(fault))
            if fault == "429":
                self.send_header("Retry-After", mirror.retry_after)
            self.end_headers()
        elif path not in mirror.files:
            self.send_error(404)
        elif fault == "redirect" and not self.path.startswith("/moved"):
            self.send_response(302)
            self.send_header("Location", "/moved" + self.path)
            self.end_headers()
        else:
            with contextlib.suppress(ConnectionError):
                self._send(request, fault, mirror.files[path])

    def _send(self, request: Request, fault: Fault, content: bytes) -> None:
        start = self._start(fault, content)
        if start is not None and start >= len(content) and fault != "from the start":
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.end_headers()
            return
        if fault in ("html", "page"):
            content, start = b"<html>Please log in</html>", None
        mirror = self.mirror
        begin = {"from the start": 0, "from elsewhere": (start or 0) // 2}.get(fault, start or 0)
        body = bytearray(content[: len(content) - begin] if fault == "wrong rest" else content[begin:])
        announced = len(body) + {"too long": 1000, "too short": -1000}.get(fault, 0)
        if fault == "flip":
            place, bits = mirror.flipped or (begin + len(body) // 2, 1)
            if place >= begin:
                body[place - begin] ^= bits
        chunked = fault.startswith("chunked")
        if chunked:
            self.protocol_version = "HTTP/1.1"
        self.send_response(200 if start is None else 206)
        if start is not None:
            self.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
        for name, value in self._validators(content).items():
            self.send_header(name, value)
        if fault == "page":
            self.send_header("Content-Type", "text/html; charset=utf-8")
        if chunked:
            self.send_header("Transfer-Encoding", "chunked")
        elif fault != "no length":
            self.send_header("Content-Length", str(announced))
        self.end_headers()
        if chunked:
            self.close_connection = True
            for place in range(0, len(body), 100_000):
                if fault == "chunked cut" and place == 200_000:
                    return
                piece = body[place : place + 100_000]
                self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
                request.sent += len(piece)
            self.wfile.write(b"0\r\n\r\n")
            return
        stop = len(body) // 2 if fault in ("cut", "no ranges cut", "reset", "stall") else len(body)
        self._write(request, body[:stop], begin)
        if fault in ("reset", "stall"):
            mirror.half_sent.set()
        if fault == "stall":
            time.sleep(20)
        if fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.shutdown(socket.SHUT_RD)
            self.connection.close()

    def _start(self, fault: Fault, content: bytes) -> int | None:
        """The first byte wanted, if a range is asked for and to be answered."""
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or "")
        condition = self.headers["If-Range"]
        if wanted is None or fault in ("no ranges", "no ranges cut"):
            return None
        if condition and fault != "any range" and condition not in self._validators(content).values():
            return None
        return int(wanted.group(1))

    def _validators(self, content: bytes) -> dict[str, str]:
        digest = hashlib.md5(content).hexdigest()
        date = f"Mon, 01 Jan 2024 00:00:{int(digest, 16) % 60:02} GMT"
        return {
            "etag": {"ETag": f'"{digest}"'},
            "weak etag": {"ETag": f'W/"{digest}"'},
            "date": {"Last-Modified": date},
            "none": {},
        }[self.mirror.validators]

    def _write(self, request: Request, body: bytes | bytearray, begin: int) -> None:
        pause = self.mirror.pause_at
        if pause is not None and begin <= pause < begin + len(body):
            self.wfile.write(body[: pause - begin])
            request.sent += pause - begin
            self.mirror.half_sent.set()
            self.mirror.go_on.wait(timeout=60)
            body = body[pause - begin :]
        self.wfile.write(body)
        request.sent += len(body)

    def log_message(self, *_: object) -> None:
        pass


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, *_: object) -> None:
        """A client that was killed is no error here."""


@contextlib.contextmanager
def serve() -> Iterator[Mirror]:
    mirror = Mirror(url="")
    with _running(type("Handler", (_Handler,), {"mirror": mirror})) as mirror.url:
        try:
            yield mirror
        finally:
            mirror.go_on.set()


@contextlib.contextmanager
def _running(handler: type[http.server.BaseHTTPRequestHandler]) -> Iterator[str]:
    """A server with this handler; yields its URL."""
    server = _Server(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@contextlib.contextmanager
def proxy(mirror: Mirror) -> Iterator[str]:
    """A proxy that asks `mirror`, whatever host it is told; yields its URL."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if not self.path.startswith("http://"):
                self.send_error(400, "not asked as a proxy is")
                return
            origin = http.client.HTTPConnection(mirror.url.removeprefix("http://"))
            with contextlib.closing(origin):
                origin.request("GET", self.path, headers=dict(self.headers))
                answer = origin.getresponse()
                self.send_response_only(answer.status)
                for name, value in answer.getheaders():
                    self.send_header(name, value)
                self.end_headers()
                while piece := answer.read1(100_000):
                    self.wfile.write(piece)

        def log_message(self, *_: object) -> None:
            pass

    with _running(Handler) as url:
        yield url


@contextlib.contextmanager
def saying(answer: bytes) -> Iterator[str]:
    """A server that says this to whatever it is asked, HTTP or not; yields its URL."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    with _running(Handler) as url:
        yield url


@contextlib.contextmanager
def sending(send: Callable[[Callable[[bytes], object]], None]) -> Iterator[str]:
    """A server that answers whatever it is asked by calling `send` with what writes bytes; yields its URL."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with contextlib.suppress(ConnectionError):
                send(self.wfile.write)

        def do_CONNECT(self) -> None:
            self.do_GET()

        def log_message(self, *_: object) -> None:
            pass

    with _running(Handler) as url:
        yield url


def publish(state_dict: dict[str, Tensor], folder: Path, name: str) -> Path:
    """Write a checkpoint as published ones are: legacy serialisation, `meta` and `state_dict`, digest in the name."""
    import torch

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
        license="Apache-2.0",
        class_names=tuple(f"thing {i}" for i in range(80)),
        config_url=None,
        log_url=None,
        note=None,
    )
