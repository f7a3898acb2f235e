"""``python -m manyheads.lab …`` is ``manyheads …``."""

import sys

from manyheads.lab.cli import main

sys.exit(main())
