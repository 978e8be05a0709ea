"""Errors about what the user gave or what the world did with it.

Each message names the value, the cause and the remedy.
"""

from __future__ import annotations

from fpg_zoo.text import printable

# How torch tells it where it has no error class of its own: on the CPU (Linux, Windows), MPS, and in CUDA's libraries.
_OUT_OF_MEMORY = (
    "can't allocate memory",
    "Cannot allocate memory",
    "not enough memory",
    "out of memory",
    "ALLOC_FAILED",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory, of the machine or of an accelerator, did not suffice."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, which is not imported
        return True
    return type(error) is RuntimeError and any(text in str(error) for text in _OUT_OF_MEMORY)


class FPGZooError(Exception):
    """Base of all of them; the command line prints its message and exits with code 2.

    The message is one line without control characters, whatever file or server it quotes.
    """

    def __init__(self, message: object) -> None:
        super().__init__(printable(message, max_length=None))


class ConfigError(FPGZooError, ValueError):
    """A config that describes no buildable detector."""


class UnknownNameError(FPGZooError, ValueError):
    """A model name or tag that is not in the catalog."""


class ImageError(FPGZooError, ValueError):
    """Something that cannot be read as an image."""


class StorageError(FPGZooError, RuntimeError):
    """A file or folder cannot be written, or a record in the cache not be read."""


class TrainingError(FPGZooError, RuntimeError):
    """A training step whose losses are no numbers."""


class WorkerError(FPGZooError, RuntimeError):
    """A process that makes batches, or computes with this one, cannot be started, has died, or does not answer."""


class WeightsError(FPGZooError, RuntimeError):
    """Base of the errors about weights."""


class DownloadError(WeightsError):
    """A file could not be fetched whole."""


class DigestError(WeightsError):
    """A file is not the one that was published or pinned."""


class CheckpointError(WeightsError):
    """A checkpoint file that cannot be read, or that does not fit the architecture."""


class UnsafeCheckpointError(CheckpointError):
    """A checkpoint whose pickle asks for more than tensors and plain data."""


class ExportError(FPGZooError, RuntimeError):
    """A model cannot be exported as asked, or an exported file not be opened or used."""
