"""Under which id a run goes by elsewhere: `loggers.json` in its folder, so that it goes on there when it resumes."""

from __future__ import annotations

import json
import re
from pathlib import Path

from fpg_zoo.errors import StorageError
from fpg_zoo.files import atomic_write, read_regular
from fpg_zoo.text import printable

_FILE = "loggers.json"
_MAX_BYTES = 1 << 20
_ID = re.compile(r"[\w-]{1,128}", re.ASCII)  # which becomes a part of paths and addresses


def read_ids(run: Path) -> dict[str, str]:
    """The ids by logger; none where no logger kept one.

    Raises:
        StorageError: the record cannot be read, or is not as it was written.
    """
    file = run / _FILE
    try:
        ids = json.loads(read_regular(file, max_bytes=_MAX_BYTES))
        if not isinstance(ids, dict) or not all(isinstance(one, str) and _ID.fullmatch(one) for one in ids.values()):
            raise ValueError("not as it was written")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        cause = (isinstance(error, OSError) and error.strerror) or printable(error)
        raise StorageError(f"{file}: cannot be read ({cause}); move it away to begin anew in the loggers") from None
    return ids


def keep_id(run: Path, logger: str, run_id: str) -> None:
    """Keep the id of the run in a logger.

    Raises:
        StorageError: it cannot be written.
    """
    ids = {**read_ids(run), logger: run_id}
    with atomic_write(run / _FILE) as temporary:
        temporary.write_text(json.dumps(ids, indent=1) + "\n", encoding="utf-8")
