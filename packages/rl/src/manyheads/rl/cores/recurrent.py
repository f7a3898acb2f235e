"""LSTM and GRU over segments with resets: torch's kernel over each stretch in which no environment resets."""

from __future__ import annotations

import itertools
from typing import Literal

import torch
from torch import Tensor, nn

from manyheads.core.state import State, detach, tree_map
from manyheads.rl.cores.core import Core


class RecurrentCore(Core):
    """LSTM or GRU; the state holds ``(B, depth, D)`` tensors, two for the LSTM.

    Args:
        width: D, of input, state and output.
        kind: "lstm" or "gru".
        depth: layers.
    """

    def __init__(self, width: int, kind: Literal["lstm", "gru"], *, depth: int = 1) -> None:
        super().__init__(width)
        self.depth, self.parts = depth, 2 if kind == "lstm" else 1
        unit = nn.LSTM if kind == "lstm" else nn.GRU
        self.unit = unit(width, width, num_layers=depth, batch_first=True)

    def init_state(self, batch: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None) -> State:
        one = torch.zeros(batch, self.depth, self.width, device=device, dtype=dtype)
        return tuple(one.clone() for _ in range(self.parts))

    def forward(self, x: Tensor, state: State, is_first: Tensor) -> tuple[Tensor, State]:
        # torch's kernels want the layers first
        inner = tree_map(lambda part: part.transpose(0, 1).contiguous(), detach(state))
        begins = sorted({0, *is_first.any(0).nonzero().flatten().tolist()})
        found = []
        for start, stop in itertools.pairwise([*begins, x.shape[1]]):
            kept = ~is_first[:, start].view(1, -1, 1)
            # a product would carry a NaN of the last episode on
            inner = tree_map(lambda part, kept=kept: torch.where(kept, part, part.new_zeros(())), inner)
            y, after = self.unit(x[:, start:stop], inner if self.parts == 2 else inner[0])
            inner = tuple(after) if self.parts == 2 else (after,)
            found.append(y)
        y = found[0] if len(found) == 1 else torch.cat(found, 1)
        return y, tree_map(lambda part: part.transpose(0, 1).contiguous(), inner)
