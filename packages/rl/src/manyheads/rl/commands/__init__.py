"""The commands of ``manyheads rl``."""

from __future__ import annotations

from manyheads.rl.commands.collect import collect
from manyheads.rl.commands.play import play
from manyheads.rl.commands.pretrain import pretrain
from manyheads.rl.commands.probe import probe

commands = {"collect": collect, "play": play, "pretrain": pretrain, "probe": probe}
