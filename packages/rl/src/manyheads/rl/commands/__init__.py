"""The commands of ``manyheads rl``."""

from __future__ import annotations

commands = {}
