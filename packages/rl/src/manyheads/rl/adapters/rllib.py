"""Memory inside RLlib (new API stack): an ``RLModule`` for PPO and other algorithms with a value function.

    config.rl_module(rl_module_spec=RLModuleSpec(
        module_class=MemoryModule,
        model_config={"max_seq_len": 32, "features": {"core": "gtrxl", "memory": 16}},
    ))

RLlib stores the memory after each step of an episode (``STATE_OUT``). For training it cuts every episode into chunks
of ``max_seq_len`` steps. A chunk begins with the memory stored before its first step, or with
:meth:`MemoryModule.get_initial_state` at the start of an episode, and is padded with zeros on the right. It never holds
two episodes, so no step inside has to reset the memory. The padded steps come last: no earlier step sees them, and
RLlib leaves them out of the loss.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from manyheads.core.errors import ArgumentError, MissingPackageError
from manyheads.core.state import State
from manyheads.rl.adapters.features import MemoryFeatures
from manyheads.rl.encoders.observations import leaves
from manyheads.rl.policies import ActionHead

try:
    import tree
    from ray.rllib.core.columns import Columns
    from ray.rllib.core.distribution.torch.torch_distribution import TorchMultiCategorical
    from ray.rllib.core.rl_module.apis.value_function_api import ValueFunctionAPI
    from ray.rllib.core.rl_module.torch import TorchRLModule
except ImportError as error:
    raise MissingPackageError(
        f"RLlib does not import ({error}): pip install -c constraints.txt -e './packages/rl[rllib]'"
    ) from error


class MemoryModule(TorchRLModule, ValueFunctionAPI):
    """Actor and critic on the features of one encoder and memory core.

    ``model_config["features"]`` holds the arguments of :class:`~manyheads.rl.adapters.features.MemoryFeatures`,
    ``model_config["max_seq_len"]`` the length of the chunks.

    Raises :class:`ArgumentError` for actions or observations that cannot be represented: actions are Discrete,
    MultiDiscrete or Box; discrete parts count from 0.
    """

    def setup(self) -> None:
        """Build the network; RLlib calls it."""
        for name, part in {**leaves(self.observation_space), "action": self.action_space}.items():
            if np.any(getattr(part, "start", 0)):
                raise ArgumentError(
                    f"{name}: found {part}, expected a space that counts from 0, as RLlib does: convert it in a wrapper"
                )
        self.features = MemoryFeatures(self.observation_space, **self.model_config.get("features", {}))
        width = self.features.features_dim
        self.head, self.value = ActionHead(self.action_space, width), nn.Linear(width, 1)
        if isinstance(self.action_space, spaces.MultiDiscrete):
            sizes = [int(n) for n in self.action_space.nvec]
            self.action_dist_cls = TorchMultiCategorical.get_partial_dist_cls(input_lens=sizes)

    def get_initial_state(self) -> dict[str, np.ndarray]:
        """Return the memory before the first step of an episode, without a batch axis; empty without memory."""
        return {name: one[0].cpu().numpy() for name, one in self.features.pack(self.features.init_state(1)).items()}

    def _forward(self, batch: dict[str, Any], **_: Any) -> dict[str, Any]:
        features, state = self._features(batch)
        memory = {Columns.STATE_OUT: self.features.pack(state)} if self.is_stateful() else {}
        return {Columns.ACTION_DIST_INPUTS: self.head(features).parameters, **memory}

    def _forward_train(self, batch: dict[str, Any], **_: Any) -> dict[str, Any]:
        features, _state = self._features(batch)
        return {Columns.ACTION_DIST_INPUTS: self.head(features).parameters, Columns.EMBEDDINGS: features}

    def compute_values(self, batch: dict[str, Any], embeddings: Tensor | None = None) -> Tensor:
        """Return the values ``(B, T)`` of a batch, or ``(B,)`` without memory."""
        features = self._features(batch)[0] if embeddings is None else embeddings
        return self.value(features).squeeze(-1)

    def _features(self, batch: dict[str, Any]) -> tuple[Tensor, State]:
        seen = batch[Columns.OBS]
        if not self.is_stateful():
            # RLlib adds no time axis
            seen = tree.map_structure(lambda one: one.unsqueeze(1), seen)
        first = tree.flatten(seen)[0]
        state = self.features.unpack(batch[Columns.STATE_IN]) if self.is_stateful() else ()
        is_first = torch.zeros(first.shape[:2], dtype=torch.bool, device=first.device)
        features, state = self.features(seen, state, is_first)
        return (features if self.is_stateful() else features.squeeze(1)), state
