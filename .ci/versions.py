"""Print the versions that an environment has of Python and of what pyproject.toml names."""

from __future__ import annotations

import platform
import re
from importlib import metadata

print(f"python {platform.python_version()} on {platform.system()} {platform.machine()}")
for name in sorted({re.split(r"[^\w.-]", text, maxsplit=1)[0] for text in metadata.requires("fpg-zoo") or ()}):
    try:
        print(f"{name} {metadata.version(name)}")
    except metadata.PackageNotFoundError:
        print(f"{name}: not installed")
