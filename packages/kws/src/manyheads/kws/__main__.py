"""``python -m manyheads.kws …`` is ``manyheads kws …``."""

import sys

from manyheads.lab.cli.main import main

sys.exit(main(["kws", *sys.argv[1:]]))
