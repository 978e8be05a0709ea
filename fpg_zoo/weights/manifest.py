"""The published checkpoints, as `weights_manifest.json` lists them."""

from __future__ import annotations

import difflib
import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fpg_zoo.errors import StorageError, UnknownNameError
from fpg_zoo.files import read_regular
from fpg_zoo.text import quoted

_FILE = "weights_manifest.json"
_MAX_BYTES = 16 << 20
PACKAGED = "package:"


@dataclass(frozen=True, kw_only=True)
class Published:
    """One published checkpoint.

    Attributes:
        architecture, tag: together its name, `architecture.tag`.
        url: of the file in the reference's format; or `package:FILE` for a safetensors file that comes with the zoo.
        sha256: as many leading hex digits of the file's SHA-256 as were published.
        box_ap, mask_ap: published AP in percent, on `data`; None where not published.
        memory_gb: published peak GPU memory of training, 8 images of 640x640 in fp32.
        fps: published images per second, where there is one; the note says of what.
        recipe: the training recipe's name; `recipes` of the manifest says what it is.
        license: SPDX identifier of the weights' license.
        class_names: the classes in the order of the heads.
        config_url, log_url: the published training config and log, where there are any.
        note: what a reader of the metrics should know.
        data: what AP was measured on.
        command: by which it was trained, where that is known.
    """

    architecture: str
    tag: str
    url: str
    sha256: str
    box_ap: float | None
    mask_ap: float | None
    memory_gb: float | None
    fps: float | None
    recipe: str
    license: str
    class_names: tuple[str, ...]
    config_url: str | None
    log_url: str | None
    note: str | None
    data: str = "COCO val2017"
    command: str | None = None

    @property
    def name(self) -> str:
        return f"{self.architecture}.{self.tag}"

    @property
    def data_set(self) -> str:
        """The name of `data` in short, for heads of columns: `COCO`, or `shapes` of `fpg_zoo.data.shapes`."""
        return self.data.split()[0].rpartition(".")[2]

    @property
    def packaged(self) -> Path | None:
        """Where the file is, if it comes with the zoo; None if it is to be fetched."""
        name = self.url.removeprefix(PACKAGED)
        return None if name == self.url else Path(__file__).resolve().parent / "packaged" / name


@dataclass(frozen=True, kw_only=True)
class PublishedBackbone:
    """Weights of a backbone trained on ImageNet, as torchvision publishes them.

    Attributes:
        architecture: torchvision's name, such as `resnet50`.
        tag: which weights, `imagenet1k_v1`.
        url: of torchvision's file.
        sha256: the first eight hex digits of the file's SHA-256, which end its published name.
        license: SPDX identifier of torchvision's license.
    """

    architecture: str
    tag: str
    url: str
    sha256: str
    license: str

    @property
    def name(self) -> str:
        return f"{self.architecture}.{self.tag}"


@dataclass(frozen=True)
class Manifest:
    """All published checkpoints; of one architecture, the first is the default.

    Attributes:
        host: the published host, which a mirror's base URL replaces.
        recipes: what each training recipe is, by name.
        checkpoints: of detectors.
        backbones: weights of backbones alone.
        backbone_host: their host, likewise replaced.
    """

    host: str
    recipes: dict[str, str]
    checkpoints: tuple[Published, ...]
    backbones: tuple[PublishedBackbone, ...] = ()
    backbone_host: str = ""

    @property
    def downloads(self) -> tuple[Published | PublishedBackbone, ...]:
        """Everything that is fetched into the cache, and does not come with the package."""
        return (*(entry for entry in self.checkpoints if not entry.packaged), *self.backbones)

    def backbone(self, architecture: str) -> PublishedBackbone | None:
        """The weights of a backbone by torchvision's name; None where none are listed."""
        return next((entry for entry in self.backbones if entry.architecture == architecture), None)

    def of(self, architecture: str) -> tuple[Published, ...]:
        """The checkpoints of an architecture, the default first; empty if none was published."""
        return tuple(entry for entry in self.checkpoints if entry.architecture == architecture)

    def find(self, architecture: str, tag: str | None) -> Published:
        """The checkpoint with this tag, or the default one.

        Raises:
            UnknownNameError: the architecture has no published checkpoint, or none with this tag.
        """
        checkpoints = self.of(architecture)
        if not checkpoints:
            raise UnknownNameError(
                f"{architecture} has no published checkpoint: give a checkpoint of your own, or build it untrained"
            )
        if tag is None:
            return checkpoints[0]
        for entry in checkpoints:
            if entry.tag == tag:
                return entry
        tags = [entry.tag for entry in checkpoints]
        raise UnknownNameError(f"{architecture} has no tag {quoted(tag)}: {nearest(tag, tags)}")


def nearest(name: str, known: Sequence[str]) -> str:
    """A remedy for a misspelt name: the nearest known ones, or all if nothing comes near."""
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"did you mean {', '.join(close)}?" if close else f"known are {', '.join(known)}"


def manifest_path() -> Path:
    """The manifest: inside the package when installed, at the top of the repository when run from a checkout."""
    package = Path(__file__).resolve().parents[1]
    inside = package / _FILE
    return inside if inside.is_file() else package.parent / _FILE


@functools.cache
def load_manifest() -> Manifest:
    """Read the manifest that came with this installation, once.

    Raises:
        StorageError: it cannot be read.
    """
    path = manifest_path()
    try:
        data = json.loads(read_regular(path, max_bytes=_MAX_BYTES))
    except (OSError, ValueError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or error
        raise StorageError(f"{path}: cannot be read ({reason}); install fpg-zoo again") from None
    classes = {name: tuple(names) for name, names in data["class_names"].items()}
    checkpoints = tuple(
        Published(license=row.pop("licence"), class_names=classes[row.pop("class_names")], **row)
        for row in data["checkpoints"]
    )
    backbones = tuple(PublishedBackbone(license=row.pop("licence"), **row) for row in data.get("backbones", ()))
    return Manifest(
        host=data["host"],
        recipes=data["recipes"],
        checkpoints=checkpoints,
        backbones=backbones,
        backbone_host=data.get("backbone_host", ""),
    )
