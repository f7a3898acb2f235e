"""The state of environments for checkpoints, where they offer ``get_state`` and ``set_state``; our own tasks do.

``get_state()`` returns arrays by name, the random generators included; ``set_state(arrays)`` is its inverse. Atari and
most other environments have neither.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium.vector import VectorEnv


def environment_state(environments: VectorEnv) -> dict[str, np.ndarray] | None:
    """Return the state as arrays by name; None if the environments cannot store it."""
    own: Any = environments.unwrapped
    return {name: np.array(one) for name, one in own.get_state().items()} if _can_store(own) else None


def restore_environment(environments: VectorEnv, state: Mapping[str, np.ndarray]) -> bool:
    """Take the state of :func:`environment_state`; return False if the environments cannot."""
    own: Any = environments.unwrapped
    if not _can_store(own):
        return False
    own.set_state(state)
    return True


def _can_store(own: Any) -> bool:
    return callable(getattr(own, "get_state", None)) and callable(getattr(own, "set_state", None))
