"""Encoder and memory core one after the other: observations to features that know the past."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

from torch import Tensor, nn

from manyheads.core.state import State
from manyheads.rl.cores.core import Core
from manyheads.rl.encoders.build import Encoder


class Remembering(nn.Module):
    """Base of modules around an encoder and a memory core.

    Args:
        encoder: observations to features.
        core: the memory.
    """

    def __init__(self, encoder: Encoder, core: Core) -> None:
        super().__init__()
        self.encoder, self.core = encoder, core
        self.train()

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode: with dropout or statistics of the batch the policy that is trained would not be the
        one that acted."""
        return super().train(False)

    def init_state(self, batch: int) -> State:
        """The state before the first step of an episode."""
        weight = next(self.parameters())
        return self.core.init_state(batch, device=weight.device, dtype=weight.dtype)

    def features(
        self, observations: Mapping[str, Tensor], state: State, is_first: Tensor, added: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Return features ``(B, T, D)`` and the state after the last step.

        Args:
            observations: tensors ``(B, T, …)`` by name.
            state: the memory before the first step; the gradient stops there.
            is_first ``(B, T)``: True at the first observation of an episode.
            added ``(B, T, D)``: added to the encoded observations.
        """
        batch, steps = is_first.shape
        x = self.encoder({name: one.flatten(0, 1) for name, one in observations.items()}).view(batch, steps, -1)
        return self.core(x if added is None else x + added, state, is_first)
