"""The commands of ``manyheads rl``."""

from __future__ import annotations

from manyheads.rl.commands.collect import collect
from manyheads.rl.commands.pretrain import pretrain
from manyheads.rl.commands.probe import probe

commands = {"collect": collect, "pretrain": pretrain, "probe": probe}
