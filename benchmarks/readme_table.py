"""The README's table and its plot, of the committed results: `python benchmarks/readme_table.py`."""

from __future__ import annotations

import sys

from table.readme import main

if __name__ == "__main__":
    sys.exit(main())
