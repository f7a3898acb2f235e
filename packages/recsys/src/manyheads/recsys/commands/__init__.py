"""The commands of ``manyheads recsys``, besides ``list`` and ``train``."""

from __future__ import annotations

from manyheads.recsys.commands import explain, serving, tables

commands = {**tables.commands, **explain.commands, **serving.commands}
