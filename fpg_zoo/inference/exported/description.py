"""What an exported file says of itself, as JSON in the metadata of its format."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from fpg_zoo.config import DetectorConfig
from fpg_zoo.config.serialization import from_dict, to_dict
from fpg_zoo.errors import ConfigError, ExportError
from fpg_zoo.text import printable, quoted

KEY = "fpg_zoo"  # of the entry in the metadata
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Description:
    """An exported detector.

    Attributes:
        name: the model's.
        config: the model's; class names and preprocessing are in it.
        dtype: `fp32`, `fp16`, `bf16` or `int8`, what the network computes in.
        batch: images in a pass; None for any number.
        size: (H, W) of the network's input in pixels; None for any multiple of `config.preprocess.pad_divisor`.
        min_side: the least height and width of the input in pixels where `size` is None.
        takes_pixels: its input is uint8 RGB of any size, which it resizes itself.
        outputs: their names, in order.
        versions: of what wrote it, by the package's name, and of ONNX's operators as `opset`.
    """

    name: str
    config: DetectorConfig
    dtype: str
    batch: int | None
    size: tuple[int, int] | None
    min_side: int
    takes_pixels: bool
    outputs: tuple[str, ...]
    versions: dict[str, str]

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """What an image of this size, resized and padded, is padded to for this file; not smaller than its own."""
        least = self.size or (self.min_side, self.min_side)
        return max(height, least[0]), max(width, least[1])

    def to_json(self) -> str:
        """As the files hold it."""
        content = {
            "format": FORMAT_VERSION,
            **asdict(self),
            "config": to_dict(self.config),
            "class_names": list(self.config.class_names),
        }
        return json.dumps(content)


def read_description(text: str | None, place: str) -> Description:
    """What `Description.to_json` wrote.

    Args:
        text: the entry `KEY` of a file's metadata; None if it has none.
        place: the file, for messages.

    Raises:
        ExportError: it is of no export of this package, or of a later version.
    """
    if not text:
        raise ExportError(f"{place}: its metadata has no entry {KEY!r}; it takes a file that fpg_zoo.export wrote")
    try:
        content: Any = json.loads(text)
        if content["format"] > FORMAT_VERSION:
            raise ExportError(
                f"{place}: of a later version of fpg_zoo ({quoted(content['versions'])}); update this one"
            )
        return Description(
            name=str(content["name"]),
            config=from_dict(content["config"]),
            dtype=str(content["dtype"]),
            batch=None if content["batch"] is None else int(content["batch"]),
            size=None if content["size"] is None else (int(content["size"][0]), int(content["size"][1])),
            min_side=int(content["min_side"]),
            takes_pixels=bool(content["takes_pixels"]),
            outputs=tuple(map(str, content["outputs"])),
            versions=dict(content["versions"]),
        )
    except ExportError:
        raise
    except (ValueError, TypeError, KeyError, IndexError, RecursionError, ConfigError) as error:
        raise ExportError(
            f"{place}: its metadata describes no detector ({printable(error)}); export it again"
        ) from error
