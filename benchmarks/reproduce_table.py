"""The published table, measured again: `python benchmarks/reproduce_table.py`; `table/reproduce.py` says how."""

from __future__ import annotations

import sys

from table.reproduce import main

if __name__ == "__main__":
    sys.exit(main())
