"""Models in files of ours: one safetensors file that describes itself, or a folder with `config.json` beside it."""

from __future__ import annotations

import errno
import json
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fpg_zoo.checkpoints.tensor_memory import with_own_memory
from fpg_zoo.config import DetectorConfig, RetinaNetConfig, TwoStageConfig
from fpg_zoo.config.serialization import SCHEMA_VERSION, from_dict, to_dict
from fpg_zoo.errors import CheckpointError, ConfigError, StorageError
from fpg_zoo.files import open_regular, read_regular, storage_errors, temporary_folder
from fpg_zoo.text import MAX_LENGTH, printable, quoted

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
# Of the JSON that heads a file or stands beside it. The zoo's largest take 150 KB and some more for each class.
_MOST_HEADER_BYTES = 4 << 20
# Of any file of weights. The zoo's largest model for 65536 classes, with an optimizer's state, takes half of it.
MAX_WEIGHTS_BYTES = 8 << 30
_MOST_DIGITS = 20  # of a whole number in a description
_PICKLE_SUFFIXES = (".pth", ".pt", ".ckpt", ".bin")
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def description_of(config: DetectorConfig, name: str) -> dict[str, Any]:
    """What rebuilds a model, as JSON-ready data: schema version, architecture name, config."""
    return {"schema_version": SCHEMA_VERSION, "architecture": name, "config": to_dict(config)}


def metadata_of(config: DetectorConfig, name: str) -> dict[str, str]:
    """The description as a safetensors file's metadata, whose values are texts."""
    return {"format": "pt", "description": json.dumps(description_of(config, name))}


def _parse(place: Path, text: str) -> tuple[DetectorConfig, str]:
    try:
        description = json.loads(text, object_pairs_hook=_without_repeats, parse_int=_whole)
        if not isinstance(description, dict):
            raise ConfigError(f"it is {quoted(description)}, not an object")
        version = description.get("schema_version")  # first, as another version may have other keys
        if type(version) is not int or version != SCHEMA_VERSION:
            raise ConfigError(f"schema_version {quoted(version)}, this version reads {SCHEMA_VERSION}")
        config, name = from_dict(description.get("config")), description.get("architecture")
        if not isinstance(config, (TwoStageConfig, RetinaNetConfig)):
            raise ConfigError(f"{type(config).__name__} is no detector's config")
        return config, _checked_name(name)
    except RecursionError:
        raise CheckpointError(f"{place}: does not describe a model of the zoo (it is nested too deeply)") from None
    except ValueError as error:
        raise CheckpointError(f"{place}: does not describe a model of the zoo ({error})") from None


def _checked_name(name: object) -> str:
    """A model's name, which stands in messages.

    Raises:
        ConfigError: it is no text, or not fit for one.
    """
    if not isinstance(name, str) or printable(name) != name:
        raise ConfigError(f"architecture={quoted(name)}: it takes a name of at most {MAX_LENGTH} printable characters")
    return name


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON whose keys are all different, as two readers could take another value each."""
    values = dict(pairs)
    if len(values) < len(pairs):
        repeated, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ConfigError(f"the key {quoted(repeated)} is there twice")
    return values


def _whole(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:
        raise ConfigError(f"the whole number {printable(digits, 40)} has {len(digits)} digits")
    return int(digits)


class WeightsFile:
    """A safetensors file of which only the header has been read.

    Attributes:
        path: the file.
        forms: by name, a tensor on the meta device of the stored one's shape and kind of number.
        metadata: what the file says of itself.
    """

    def __init__(self, path: Path) -> None:
        """Read the header.

        Raises:
            CheckpointError: no such file, no regular one, not a whole safetensors file, or one of a kind that weights
                are not.
        """
        self.path = path
        try:
            # safetensors would wait for a pipe's writer, and map or read whatever it is given.
            with open_regular(path, max_bytes=MAX_WEIGHTS_BYTES) as stream:
                header_bytes = int.from_bytes(stream.read(8), "little")
        except FileNotFoundError:
            raise CheckpointError(f"{path}: no such file") from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise CheckpointError(f"{path}: cannot be read ({reason}); name a file of weights") from None
        if header_bytes > _MOST_HEADER_BYTES:
            raise CheckpointError(f"{path}: no safetensors file of weights: its header would take {header_bytes} bytes")
        try:
            self._file = safe_open(path, framework="pt")
            self.metadata: dict[str, str] = dict(self._file.metadata() or {})  # type: ignore[no-untyped-call]
            self.forms = {name: self._form(name) for name in self._file.keys()}  # type: ignore[no-untyped-call]  # noqa: SIM118
        except CheckpointError:
            raise
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{path}: not a whole safetensors file ({printable(error)}); fetch or make it again"
            ) from None
        except (RuntimeError, MemoryError) as error:
            raise CheckpointError(f"{path}: cannot be mapped into memory ({printable(error)})") from None

    def _form(self, name: str) -> Tensor:
        part = self._file.get_slice(name)  # type: ignore[no-untyped-call]
        kind = part.get_dtype()
        if kind not in _DTYPES:
            raise CheckpointError(
                f"{self.path}: {printable(name)} is of {printable(kind)} numbers, which weights are not"
            )
        shape = part.get_shape()
        try:
            return torch.empty(shape, dtype=_DTYPES[kind], device="meta")
        except (RuntimeError, OverflowError, TypeError):  # of no elements, but longer than torch counts
            raise CheckpointError(
                f"{self.path}: {printable(name)} is of the shape {quoted(shape)}, which no tensor has"
            ) from None

    def tensors(self) -> dict[str, Tensor]:
        """The tensors, mapped from the file where the platform can."""
        return {name: self.tensor(name) for name in self.forms}

    def tensor(self, name: str) -> Tensor:
        """One of the tensors, likewise."""
        with torch.device("cpu"):  # some versions of safetensors follow the program's default
            tensor: Tensor = self._file.get_tensor(name)  # type: ignore[no-untyped-call]
        return tensor

    @property
    def is_described(self) -> bool:
        """Whether the metadata describes a model."""
        return "description" in self.metadata

    def described(self) -> tuple[DetectorConfig, str]:
        """The config and architecture name that the metadata tells.

        Raises:
            CheckpointError: it tells none, or one that this version cannot read.
        """
        if not self.is_described:
            raise CheckpointError(f"{self.path}: its metadata describes no model of the zoo")
        return _parse(self.path, self.metadata["description"])


def read_folder(folder: Path) -> tuple[DetectorConfig, str, WeightsFile]:
    """A model's folder: `config.json`, which decides, and `model.safetensors`.

    Returns:
        The config, the architecture's name, the file of weights.

    Raises:
        CheckpointError: one of the files is missing or cannot be read.
    """
    file = folder / CONFIG_FILE
    try:
        text = read_regular(file, max_bytes=_MOST_HEADER_BYTES).decode("utf-8-sig")  # editors put a mark before it
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{file}: {getattr(error, 'strerror', None) or error}; a model's folder holds {CONFIG_FILE} and "
            f"{WEIGHTS_FILE}, `fpg-zoo convert FILE FOLDER` makes one"
        ) from None
    config, name = _parse(file, text)
    return config, name, WeightsFile(folder / WEIGHTS_FILE)


def write_safetensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Write tensors to the file `path`, which keeps its permissions if it is there, and flush them to the disk.

    Meanwhile a file of safetensors' own naming lies beside it, which stays there if the process is killed.

    Raises:
        ConfigError: they have no values, or could not be read again.
        StorageError: the file cannot be written, or the disk is full.
    """
    _check_writable(tensors, metadata)
    _write(tensors, path, metadata)


def _check_writable(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """See that there is something to write, and that `WeightsFile` will read it again."""
    if any(tensor.is_meta for tensor in tensors.values()):
        raise ConfigError(
            "the model is on the meta device and has no values; load weights into it (load_state_dict with "
            "assign=True) before it is saved"
        )
    end = sum(tensor.nbytes for tensor in tensors.values())
    header: dict[str, object] = {
        name: {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [end, end]}
        for name, tensor in tensors.items()
    }
    _check_length(json.dumps({**header, "__metadata__": dict(metadata)}, ensure_ascii=False, separators=(",", ":")))


def _check_length(text: str) -> None:
    length = len(text.encode("utf-8", "surrogatepass")) + 8  # filled up to a multiple of 8
    if length > _MOST_HEADER_BYTES:
        raise ConfigError(
            f"the model's description takes {length} bytes, of which no more than {_MOST_HEADER_BYTES} are read again; "
            "give fewer or shorter class_names"
        )


def _write(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    with storage_errors(path.parent):
        path.touch()
        mode = path.stat().st_mode
        try:
            # The format has no notion of shared memory, or of strides.
            apart = {name: tensor.contiguous() for name, tensor in with_own_memory(tensors).items()}
            save_file(apart, path, dict(metadata))
        except SafetensorError as error:
            raise OSError(errno.EIO, str(error)) from error
        path.chmod(mode)  # safetensors replaces the file by one that its owner alone can read
        with path.open("rb+") as stream:
            _sort_metadata(stream)
            stream.flush()
            os.fsync(stream.fileno())


def _sort_metadata(stream: BinaryIO) -> None:
    """Bring the metadata into order, which safetensors leaves to chance: equal models are to give equal files."""
    length = int.from_bytes(stream.read(8), "little")
    header = json.loads(stream.read(length))
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    if len(text) <= length:  # as it is, unless something is escaped in another way
        stream.seek(8)
        stream.write(text.ljust(length))


def save(
    tensors: Mapping[str, Tensor], config: DetectorConfig, name: str, target: str | Path, origin: Mapping[str, str]
) -> None:
    """Write a model to one `.safetensors` file, or else to a folder that `local-dir:` reads; each file all or nothing.

    Args:
        tensors: the model's state dict, in memory.
        config, name: the model's.
        target: a path ending in `.safetensors`, in letters of either case, or a folder, which is made if need be.
        origin: what else the file's metadata should say, as where the weights come from.

    Raises:
        ConfigError: the model has no values, or a name or a description that would not be read again.
        StorageError: the target is none of these, or cannot be written.
    """
    if not str(target):
        raise StorageError("no target is named; name a file ending in .safetensors, or a folder ('.' for this one)")
    target = Path(target)
    one_file = target.suffix.lower() == ".safetensors"
    _check_target(target, one_file)
    metadata = {**origin, **metadata_of(config, _checked_name(name))}
    folder = target.parent if one_file else target
    _check_writable(tensors, metadata)
    description = json.dumps(description_of(config, name), indent=1) + "\n"
    _check_length(description)
    with temporary_folder(folder) as workplace:
        _write(tensors, workplace / WEIGHTS_FILE, metadata)
        with storage_errors(folder):
            if one_file:
                (workplace / WEIGHTS_FILE).replace(target)
            else:
                (workplace / CONFIG_FILE).write_text(description, encoding="utf-8")
                (workplace / WEIGHTS_FILE).replace(folder / WEIGHTS_FILE)
                (workplace / CONFIG_FILE).replace(folder / CONFIG_FILE)


def _check_target(target: Path, one_file: bool) -> None:
    suffix, is_folder = target.suffix.lower(), os.path.isdir(target)
    if suffix in _PICKLE_SUFFIXES and not is_folder:
        raise StorageError(
            f"{target}: pickles are not written here; name a file ending in .safetensors, or a folder "
            "(`fpg-zoo convert FILE OUT.pth --to reference` writes the reference's format)"
        )
    if suffix.startswith(".safe") and not one_file and not is_folder:  # nobody wants a folder of this name made
        raise StorageError(f"{target}: ends in {suffix!r}; name a file ending in .safetensors, or a folder")
    if one_file == is_folder and os.path.exists(target):
        kind = "a folder" if one_file else "a file"
        raise StorageError(f"{target}: there is {kind} of this name; choose another")
