"""Encoder and memory core as one stateless function, for agents of other libraries.

    features, state = MemoryFeatures(space, core="gtrxl", memory=16)(observations, state, is_first)

Nothing is held between two calls: the state goes in and comes out, and a caller stores it. :meth:`MemoryFeatures.pack`
writes it as a dict of tensors of fixed shapes, which is what the buffers of other libraries store.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from gymnasium import spaces
from torch import Tensor

from manyheads.core import state as trees
from manyheads.core.errors import ArgumentError, DataError, StateError
from manyheads.core.state import State
from manyheads.lab.data.fields import from_json
from manyheads.rl.encoders.observations import to_tensors
from manyheads.rl.policies.remembering import Remembering
from manyheads.rl.training.settings import AgentModel
from manyheads.rl.training.stored import load_policy

# Parts of an agent that other libraries have outside of the network.
OUTSIDE = {
    "previous_action": "the action before is not given to features",
    "previous_reward": "the reward before is not given to features",
    "normalise_observations": "normalise in a wrapper of the environment",
}


class MemoryFeatures(Remembering):
    """Observations to features that know the past, ``(observations, state, is_first) -> (features, state)``.

    Args:
        observation_space: Box, Discrete, MultiDiscrete, MultiBinary, and Dict or Tuple of them.
        core: "none", "lstm", "gru", "gtrxl", "lmu", or another strictly causal streaming layer.
        settings: further fields of :class:`~manyheads.rl.training.settings.AgentModel`, such as
            ``width=64, depth=2, memory=16, encoder="nature-cnn"``.

    Raises:
        ArgumentError, UnknownNameError: settings that do not exist or do not fit; a space that no encoder reads.
    """

    def __init__(self, observation_space: spaces.Space[Any], core: str = "gtrxl", **settings: Any) -> None:
        off = dict.fromkeys(OUTSIDE, False)
        model = from_json(AgentModel, {**off, **settings, "core": core}, place="features")
        for name, fix in OUTSIDE.items():
            if getattr(model, name):
                raise ArgumentError(f"features: {name}: found True, expected False: {fix}")
        super().__init__(*model.parts(observation_space))
        self.model, self.observation_space = model, observation_space
        self.features_dim = model.width
        """Width of the features."""

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read encoder and core from the file of an agent (``Agent.save``, ``manyheads rl train``).

        Raises:
            CheckpointError: a file that is absent, damaged or of another kind.
            ArgumentError: an agent that reads the action or reward before.
        """
        policy, model, seen, _, _ = load_policy(path)
        settings = {name: getattr(model, name) for name in AgentModel.__dataclass_fields__}
        for name, fix in OUTSIDE.items():
            if settings[name]:
                raise ArgumentError(f"{path}: {name}: found True, expected False: {fix}; train with {name}=False")
        found = cls(seen, **settings)
        found.encoder, found.core = policy.encoder, policy.core
        return found

    @cached_property
    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the parts of :meth:`pack` for one environment, without the batch axis; empty without memory."""
        return {name: tuple(part.shape[1:]) for name, part in self.pack(self.init_state(1)).items()}

    def forward(self, observations: Any, state: State, is_first: Tensor) -> tuple[Tensor, State]:
        """Run T steps of B environments; return features ``(B, T, width)`` and the state after the last step.

        Args:
            observations: as in the observation space, ``(B, T, …)`` each.
            state: of :meth:`init_state`, :meth:`unpack` or the call before; the gradient stops there.
            is_first ``(B, T)``: True at the first observation of an episode; nothing before it is seen.

        Raises:
            StateError: a state of another core or another batch.
            DataError: observations of another structure or shape than the space.
        """
        is_first = torch.as_tensor(is_first, dtype=torch.bool)
        batch, steps = is_first.shape
        self._check(state, batch)
        seen = to_tensors(self.observation_space, _flat(observations))
        for name, one in seen.items():
            if len(one) != batch * steps:
                raise DataError(f"{name}: found {len(one)} observations, expected {batch} x {steps}, as in is_first")
        return self.features({name: one.unflatten(0, (batch, steps)) for name, one in seen.items()}, state, is_first)

    def pack(self, state: State) -> dict[str, Tensor]:
        """Return the state as a dict ``{"0": (B, …), "1": (B, …), …}``, its tensors in a fixed order.

        Dtypes are kept: the counters of window memories are int64.
        """
        return {str(place): part for place, part in enumerate(trees.leaves(state))}

    def unpack(self, parts: Mapping[str, Any]) -> State:
        """Inverse of :meth:`pack`, from tensors or arrays, on the device of the weights.

        Raises :class:`StateError` for parts of another core, or of different batches.
        """
        fresh = self.init_state(1)
        named = self.pack(fresh)
        if not isinstance(parts, Mapping) or parts.keys() != named.keys():
            found = list(parts) if isinstance(parts, Mapping) else type(parts).__name__
            raise StateError(f"state: found {found}, expected the parts {list(named)}, those of {self.model.core!r}")
        given = iter([torch.as_tensor(parts[name]) for name in named])
        state = trees.tree_map(lambda one: next(given).to(one), fresh)
        self._check(state, trees.batch_size(state))
        return state

    def _check(self, state: State, batch: int | None) -> None:
        found = [tuple(one.shape) for one in trees.leaves(state)] if isinstance(state, tuple) else type(state).__name__
        expected = [(batch, *shape) for shape in self.state_shapes.values()]
        if found != expected:
            raise StateError(
                f"state: found {found}, expected {expected}, that of {batch} environments with the core "
                f"{self.model.core!r}: take it from init_state({batch}) or from the call before"
            )


def _flat(observations: Any) -> Any:
    """Join the batch axis and that of time."""
    if isinstance(observations, Mapping):
        return {key: _flat(one) for key, one in observations.items()}
    if isinstance(observations, tuple):
        return tuple(_flat(one) for one in observations)
    return torch.as_tensor(observations).flatten(0, 1)
