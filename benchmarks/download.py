"""What verification costs: `python benchmarks/download.py`.

A file of 300 MB of random bytes. Downloading it, hashed and compared, from a server in a process of its own on
loopback, against plain `curl`; and hashing it again as `fpg-zoo verify` does, against `sha256sum`. Turn by turn, file
in the page cache, target on the disk that holds temporary files.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from harness.measure import measure_in_turn, write

from fpg_zoo.evaluation.timing import Spread
from fpg_zoo.files import sha256_of
from fpg_zoo.weights.download import Partial, download
from fpg_zoo.weights.store import verify_file

FILE_BYTES = 300_000_000
RUNS = 7
LEAST_DOWNLOAD, LEAST_VERIFY = 0.70, 0.80  # of the other's speed

SERVER = """
import http.server, os, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", str(os.path.getsize(sys.argv[1])))
        self.end_headers()
        with open(sys.argv[1], "rb") as stream:
            self.connection.sendfile(stream)
    def log_message(self, *_):
        pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
"""


@contextlib.contextmanager
def serving(file: Path) -> Iterator[str]:
    """The URL of a server of this one file."""
    server = subprocess.Popen([sys.executable, "-c", SERVER, str(file)], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        yield f"http://127.0.0.1:{server.stdout.readline().strip()}/file"
    finally:
        server.kill()
        server.wait()


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        content = os.urandom(FILE_BYTES)
        sha256 = hashlib.sha256(content).hexdigest()
        file = folder / f"random-{sha256[:8]}.pth"
        file.write_bytes(content)
        del content
        with serving(file) as url:

            def ours() -> None:
                partial = Partial(folder / "ours.part")
                digest, _ = download(url, partial, description="benchmark")
                assert digest == sha256
                partial.discard()

            def curl() -> None:
                subprocess.run(["curl", "--silent", "--output", str(folder / "curl"), url], check=True)
                (folder / "curl").unlink()

            downloaded = row("download", LEAST_DOWNLOAD, "curl", *measure_in_turn(curl, ours, runs=RUNS))
        assert verify_file(file).state == "good"
        hashed = row(
            "verify",
            LEAST_VERIFY,
            "sha256sum",
            *measure_in_turn(
                lambda: subprocess.run(["sha256sum", str(file)], check=True, stdout=subprocess.DEVNULL),
                lambda: sha256_of(file),
                runs=RUNS,
            ),
        )
    inputs = {"what": "a file of random bytes, served from this machine"}
    units = {"file_mb": "MB", "seconds": "s", "baseline_s": "s", "speed_ratio": "ours / baseline's"}
    rows = [downloaded, hashed]
    print(write("download", "python benchmarks/download.py", rows, device="cpu", inputs=inputs, units=units))


def row(what: str, least: float, baseline: str, theirs: Spread, ours: Spread, ratio: Spread) -> dict[str, object]:
    """The record of one comparison; a ratio of times, theirs to ours, is that of the speeds, ours to theirs."""
    speed = FILE_BYTES / ours.median / 1e6
    print(f"{what:8} {speed:5.0f} MB/s, {ratio.median:.2f} times the speed of {baseline}", flush=True)
    return {
        "what": what,
        "baseline": baseline,
        "file_mb": FILE_BYTES / 1e6,
        "seconds": dataclasses.asdict(ours),
        "baseline_s": dataclasses.asdict(theirs),
        "speed_ratio": dataclasses.asdict(ratio),
        "within_limit": ratio.median >= least,
    }


if __name__ == "__main__":
    main()
