"""Memory cores: features of a segment and a state to features that know the past."""

from manyheads.rl.cores.build import build_core, core_names
from manyheads.rl.cores.core import Core

__all__ = ["Core", "build_core", "core_names"]
