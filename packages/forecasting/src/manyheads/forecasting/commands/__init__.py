"""All commands of ``manyheads forecasting``."""

from __future__ import annotations

from manyheads.forecasting.commands import bench, tables

commands = {**bench.commands, **tables.commands}
