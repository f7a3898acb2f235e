"""``python -m manyheads.lab …`` is ``manyheads …``."""

import sys

from manyheads.lab.cli.main import main

sys.exit(main())
