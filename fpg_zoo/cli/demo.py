"""`fpg-zoo demo`: a page to look at."""

from __future__ import annotations

import argparse
import ipaddress
import warnings
from pathlib import Path
from typing import Any

from fpg_zoo.cli.exit_codes import DONE
from fpg_zoo.cli.model_options import MODEL_HELP, add_architecture, add_checkpoint, trained_model_arguments
from fpg_zoo.cli.printing import print_line, print_notice
from fpg_zoo.errors import ConfigError


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Enter it into the parser."""
    command = commands.add_parser(
        "demo",
        help="a page in the browser that detects objects in an image",
        description="Serves a page, until Ctrl-C: a picture in, detections out. The page itself needs no network.",
    )
    command.add_argument(
        "models",
        nargs="*",
        metavar="MODEL",
        help=f"to choose from: {MODEL_HELP}, or an exported file; default: all with published weights",
    )
    add_architecture(command)
    add_checkpoint(command)
    command.add_argument(
        "--device", metavar="D", help="as of predict (default: cuda if there is one, else cpu; of exported files cpu)"
    )
    command.add_argument("--host", default="127.0.0.1", metavar="H", help="address to listen at (default: %(default)s)")
    command.add_argument("--port", type=int, default=7860, metavar="P", help="default: %(default)s")
    command.add_argument("--examples", type=Path, metavar="DIR", help="images to begin with (default: drawn scenes)")
    command.add_argument("--open", action="store_true", help="show the page in the browser")
    command.set_defaults(run=_demo)


def _demo(options: argparse.Namespace) -> int:
    from fpg_zoo.demo.serve import serve

    warnings.filterwarnings("ignore", module=r"PIL\.")  # as of predict
    if not _is_loopback(options.host):
        print_notice(f"--host {options.host}: whoever reaches this machine can use the page")
    serve(
        _models(options),
        device=options.device,
        host=options.host.strip("[]"),
        port=options.port,
        examples=options.examples,
        open_browser=options.open,
        started=lambda url: print_line(f"serving {url} until Ctrl-C", flush=True),
    )
    return DONE


def _models(options: argparse.Namespace) -> dict[str, dict[str, Any]] | None:
    own = [name for name in ("checkpoint", "config", "backbone") if getattr(options, name) is not None]
    if own and len(options.models) > 1:
        raise ConfigError(f"--{own[0]} and {len(options.models)} models: it goes with one")
    if not own and not options.models:
        return None
    models = {}
    for name in options.models or [None]:
        one = argparse.Namespace(**{**vars(options), "model": name})
        models[name or (options.config or options.checkpoint).name] = trained_model_arguments(one)
    return models


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
