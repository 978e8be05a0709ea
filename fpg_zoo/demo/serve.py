"""The page's server: on this machine alone unless another host is asked for, and without a word to any other."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import socket
import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from fpg_zoo.data.shapes import ShapesDataset
from fpg_zoo.demo.finding import Models
from fpg_zoo.distributed import device_of_process
from fpg_zoo.errors import ConfigError, ImageError
from fpg_zoo.inference.exported.formats import format_of
from fpg_zoo.inference.open_model import open_model
from fpg_zoo.models.factory import list_models, model_info
from fpg_zoo.structures.images import find_images
from fpg_zoo.text import printable

HOST, PORT = "127.0.0.1", 7860
_SCENES = (2, 4, 22, 28, 40, 42, 47, 50)  # of the shapes' second half, which the packaged models have not seen
_NOTE = "The nano ones come with the package; others are downloaded once."


def default_models() -> dict[str, dict[str, Any]]:
    """All with published weights, those that come with the package first: arguments of `open_model` by name."""
    packaged = list_models("*nano*", pretrained=True)
    packaged.sort(key=lambda name: not model_info(name).config.has_masks)  # the first is what the page begins with
    names = packaged + list_models(pretrained=True, exclude="*nano*")
    return {name: {"name": name, "pretrained": True} for name in names}


def serve(
    models: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    device: str | None = None,
    host: str = HOST,
    port: int = PORT,
    examples: Path | None = None,
    open_browser: bool = False,
    started: Callable[[str], None] = lambda url: None,
) -> None:
    """Serve the page until this is interrupted. Everything it keeps is in a temporary folder, which it removes.

    Args:
        models: arguments of `open_model`, but for the device, by the names to choose from. `default_models()` if None.
            The first is opened before the page is there.
        device: where models run; None for cuda if there is one, else cpu, and cpu for exported files.
        host: the address to listen at.
        port: 1..65535.
        examples: a folder of images; drawn scenes if None.
        open_browser: show the page in a browser.
        started: is told the page's URL once it is there.

    Raises:
        ConfigError: Gradio is not installed, the port is in use, the host is not this machine's, or no such device.
        ImageError: no images are in the folder.
        FPGZooError: the first model cannot be opened.
    """
    require_gradio()
    check_address(host, port)
    offered = Models(
        {
            name: functools.partial(open_model, **arguments, device=_device_of(arguments, device))
            for name, arguments in (default_models() if models is None else models).items()
        }
    )
    files = None if examples is None else _images_in(examples)
    offered.open(offered.names[0])
    with tempfile.TemporaryDirectory(prefix="fpg_zoo_demo_") as folder:
        # Read when Gradio is imported and when components are made: its own cache is shared by all users and stays.
        os.environ["GRADIO_TEMP_DIR"] = str(Path(folder, "cache"))
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        from fpg_zoo.demo.page import build_page, launch_options

        files = files or draw_examples(Path(folder, "examples"))
        page = build_page(offered, files, _NOTE if models is None else None)
        try:
            _, url, _ = page.launch(
                server_name=host,
                server_port=port,
                inbrowser=open_browser,
                prevent_thread_lock=True,
                **launch_options(),
            )
            started(url)
            with contextlib.suppress(KeyboardInterrupt):
                threading.Event().wait()
        finally:
            page.close(verbose=False)


def require_gradio() -> None:
    """Refuse to go on without Gradio.

    Raises:
        ConfigError: it is not installed.
    """
    if importlib.util.find_spec("gradio") is None:
        raise ConfigError("the demo needs the package gradio: pip install 'fpg-zoo[demo]'")


def check_address(host: str, port: int) -> None:
    """Whether a server may listen there.

    Raises:
        ConfigError: the port is in use or out of range, or the host is not this machine's.
    """
    if not 1 <= port <= 65535:
        raise ConfigError(f"--port {port}: a port lies in 1..65535")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind(address)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"cannot listen at {printable(host)}, port {port}: {reason}; give another --port, or the --host of an "
            "address of this machine"
        ) from None


def draw_examples(folder: Path) -> list[Path]:
    """Draw scenes of shapes into a folder, which is made; returns the files."""
    folder.mkdir(parents=True)
    scenes = ShapesDataset("val", max(_SCENES) + 1)
    files = []
    for index in _SCENES:
        file = folder / f"scene_{index}.png"
        Image.fromarray(scenes[index].image.permute(1, 2, 0).numpy()).save(file)
        files.append(file)
    return files


def _images_in(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise ImageError(f"{folder}: no such folder of examples")
    return [Path(file).absolute() for file in find_images([str(folder)])]


def _device_of(arguments: Mapping[str, Any], device: str | None) -> Any:
    name = arguments.get("name")
    exported = name is not None and format_of(name) is not None
    return device_of_process("cpu" if exported and device is None else device)
