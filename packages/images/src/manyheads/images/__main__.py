"""``python -m manyheads.images …`` is ``manyheads images …``."""

import sys

from manyheads.lab.cli.main import main

sys.exit(main(["images", *sys.argv[1:]]))
