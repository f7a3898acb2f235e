"""The interface of memory cores: features ``(B, T, D)`` and a state in, features and the next state out.

    y, state = core(x, state, is_first)

A rollout calls it with T = 1, training with a whole segment; both give the same numbers. ``is_first`` starts a new
episode inside a batch: nothing before it is seen. The gradient stops at the state given.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from manyheads.core.mask import Mask
from manyheads.core.state import State, detach


class Core(nn.Module):
    """Base of memory cores; without parameters, the core without memory.

    Args:
        width: D, of input and output.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def init_state(self, batch: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None) -> State:
        """The state before the first step, a tuple of tensors, batch first."""
        return ()

    def forward(self, x: Tensor, state: State, is_first: Tensor) -> tuple[Tensor, State]:
        """``x (B, T, D)``, ``is_first (B, T)`` to ``y (B, T, D)`` and the state after the last step."""
        return x, state


class LayerCore(Core):
    """Streaming layers of the core library, or residual blocks around them, one after another.

    Args:
        width: D.
        blocks: modules called as ``block(x, state, mask=mask)``.
    """

    def __init__(self, width: int, blocks: list[nn.Module]) -> None:
        super().__init__(width)
        self.blocks = nn.ModuleList(blocks)

    def init_state(self, batch: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None) -> State:
        return tuple(block.init_state(batch, device=device, dtype=dtype) for block in self.blocks)  # ty: ignore

    def forward(self, x: Tensor, state: State, is_first: Tensor) -> tuple[Tensor, State]:
        mask, after = Mask(reset=is_first), []
        for block, before in zip(self.blocks, detach(state), strict=True):
            x, one, _ = block(x, before, mask=mask)
            after.append(one)
        return x, tuple(after)
