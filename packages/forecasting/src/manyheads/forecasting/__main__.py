"""Run ``python -m manyheads.forecasting …`` like ``manyheads forecasting …``."""

import sys

from manyheads.lab.cli.main import main

sys.exit(main(["forecasting", *sys.argv[1:]]))
