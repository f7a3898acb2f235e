"""One submodule on a stream with a gate in place of the residual sum, as in GTrXL (1910.06764).

    Y = g(X, ReLU(F(LN(X))))

F is handed over: a :class:`~manyheads.core.layer.Layer` or any module from ``(…, D)`` to ``(…, D)``. The norm is on
F's side only (identity map reordering), so that with a gate near the identity X passes unchanged; the ReLU is there
because F ends in a linear map and the next submodule begins with one.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from manyheads.core.arguments import checked_constructor
from manyheads.core.blocks.gates import create_gate
from manyheads.core.errors import StateError
from manyheads.core.layer import Layer, LayerOutput
from manyheads.core.mask import Mask
from manyheads.core.state import State


@checked_constructor
class GatedResidual(nn.Module):
    """Args:
    dim: width D.
    inner: F, a layer or any other module.
    gate: a name of :data:`~manyheads.core.blocks.gates.GATES`; ``"residual"`` is the plain sum.
    gate_bias: where the gate's bias starts; None for the paper's.
    norm: False where F norms what it reads itself, what it remembers too.

    Raises:
        UnknownNameError: a gate that does not exist.
    """

    def __init__(
        self, dim: int, inner: nn.Module, *, gate: str = "gru", gate_bias: float | None = None, norm: bool = True
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim) if norm else nn.Identity()
        self.inner = inner
        self.gate = create_gate(gate, dim, bias=gate_bias)

    def init_state(self, batch: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None) -> State:
        """The layer's; the empty state for a module that is none."""
        return self.inner.init_state(batch, device=device, dtype=dtype) if isinstance(self.inner, Layer) else ()

    def forward(self, x: Tensor, state: State | None = None, *, mask: Mask | None = None) -> LayerOutput:
        """``x (B, *grid, D)``; state and mask are the layer's. A module that is no layer works token by token, so that
        no mask concerns it, and gives back the empty state."""
        normed = self.norm(x)
        if isinstance(self.inner, Layer):
            y, state, aux = self.inner(normed, state, mask=mask)
        elif state is None or (isinstance(state, tuple) and not state):
            y, state, aux = self.inner(normed), (), {}
        else:
            raise StateError(f"gated residual: state: found {type(state).__name__}, expected (): F keeps none")
        return LayerOutput(self.gate(x, torch.relu(y)), state, aux)
