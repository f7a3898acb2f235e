"""The commands of ``manyheads kws``."""

from __future__ import annotations

from manyheads.kws.commands import evaluate, stream

commands = {**stream.commands, **evaluate.commands}
