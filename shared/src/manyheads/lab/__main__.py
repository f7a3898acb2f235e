"""Run the command ``manyheads`` as ``python -m manyheads.lab``."""

import sys

from manyheads.lab.cli.main import main

sys.exit(main())
