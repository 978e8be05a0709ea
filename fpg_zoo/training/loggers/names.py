"""The names that loggers are chosen by, and whether what they need is installed. Needs no torch."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

from fpg_zoo.errors import ConfigError, UnknownNameError
from fpg_zoo.text import quoted
from fpg_zoo.weights.manifest import nearest

# The module that each imports, which is also the name of an extra; none for what Python has itself.
_MODULES = {"csv": None, "tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow", "trackio": "trackio"}
LOGGERS = tuple(_MODULES)


def check_loggers(names: Sequence[str]) -> None:
    """See that loggers can be opened, before long work.

    Raises:
        UnknownNameError: no such logger; the message has the nearest names.
        ConfigError: one is named twice, or needs a package that is not installed.
    """
    for name in names:
        if name not in _MODULES:
            raise UnknownNameError(f"no logger {quoted(name)}: {nearest(name, LOGGERS)}")
        if names.count(name) > 1:
            raise ConfigError(f"the logger {name} is named twice; name it once")
    if (message := missing_extra(names)) is not None:
        raise ConfigError(message)


def missing_extra(names: Sequence[str]) -> str | None:
    """What to install for some of `LOGGERS`, on one line; None where everything is there."""
    missing = [module for name in names if (module := _MODULES[name]) is not None and not _is_installed(module)]
    if not missing:
        return None
    verb = "is" if len(missing) == 1 else "are"
    return (
        f"{' and '.join(missing)} {verb} not installed: pip install 'fpg-zoo[{','.join(missing)}]', or leave the "
        f"logger{'' if len(missing) == 1 else 's'} out"
    )


def _is_installed(module: str) -> bool:
    spec = importlib.util.find_spec(module)
    # Without an origin it is a folder of that name, as `wandb` leaves in the folder it runs in.
    return spec is not None and spec.origin is not None
