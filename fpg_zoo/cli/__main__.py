"""`python -m fpg_zoo.cli` is `fpg-zoo`."""

import sys

from fpg_zoo.cli import main

sys.exit(main())
