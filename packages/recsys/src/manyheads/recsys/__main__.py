"""``python -m manyheads.recsys …`` is ``manyheads recsys …``."""

import sys

from manyheads.lab.cli.main import main

sys.exit(main(["recsys", *sys.argv[1:]]))
