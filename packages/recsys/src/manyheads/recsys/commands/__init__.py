"""The commands of ``manyheads recsys``."""

from __future__ import annotations

from manyheads.recsys.commands import explain, serving, sharded, tables

commands = {**tables.commands, **explain.commands, **sharded.commands, **serving.commands}
