"""``python -m manyheads.rl …`` is ``manyheads rl …``."""

import sys

from manyheads.lab.cli.main import main

sys.exit(main(["rl", *sys.argv[1:]]))
