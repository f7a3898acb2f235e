"""The state of environments for checkpoints: of our own tasks, and of those that offer ``get_state`` and ``set_state``.

``get_state()`` returns arrays by name, the random generators included; ``set_state(arrays)`` is its inverse. Atari and
most other environments have neither.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from gymnasium.vector import VectorEnv

from manyheads.rl.environments.task import VectorTask

GENERATORS = "generators"


def environment_state(environments: VectorEnv) -> dict[str, np.ndarray] | None:
    """Return the state as arrays by name; None if the environments cannot store it."""
    own = environments.unwrapped
    if callable(getattr(own, "get_state", None)):
        return {name: np.array(one) for name, one in own.get_state().items()}  # ty: ignore[missing-attribute]
    if not isinstance(own, VectorTask):
        return None
    states = [generator.bit_generator.state for generator in own.generators]
    found = {GENERATORS: np.frombuffer(json.dumps(states).encode(), np.uint8).copy()}
    return found | {f"{place}{name}": value.copy() for place, _, name, value in _arrays(own)}


def restore_environment(environments: VectorEnv, state: Mapping[str, np.ndarray]) -> bool:
    """Take the state of :func:`environment_state`; return False if the environments cannot."""
    own = environments.unwrapped
    if callable(getattr(own, "set_state", None)):
        own.set_state(state)  # ty: ignore[missing-attribute]
        return True
    if not isinstance(own, VectorTask):
        return False
    stored = json.loads(state[GENERATORS].tobytes())
    for generator, one in zip(own.generators, stored, strict=True):
        generator.bit_generator.state = one
    for place, owner, name, _ in list(_arrays(own)):
        setattr(owner, name, state[f"{place}{name}"].copy())
    return True


def _arrays(task: VectorTask) -> Iterator[tuple[str, Any, str, np.ndarray]]:
    """The arrays of a task and of a vector environment inside it: place, owner, name, array."""
    inner = [(f"{name}.", one) for name, one in vars(task).items() if isinstance(one, VectorEnv)]
    for place, owner in [("", task), *inner]:
        for name, value in vars(owner).items():
            if isinstance(value, np.ndarray):
                yield place, owner, name, value
