"""A residual block with a gate instead of the sum, as in GTrXL (1910.06764).

    Y = g(X, ReLU(F(LN(X))))

F is a :class:`~manyheads.core.layer.Layer` or any module from ``(…, D)`` to ``(…, D)``. Only the input of F is normed
(identity map reordering), so that X passes unchanged through a gate near the identity. The ReLU separates the linear
map at the end of F from the one at the start of the next block.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from manyheads.core.arguments import checked_constructor
from manyheads.core.blocks.gates import create_gate
from manyheads.core.errors import StateError
from manyheads.core.layer import Layer, LayerOutput
from manyheads.core.mask import Mask
from manyheads.core.state import State

if TYPE_CHECKING:
    from jaxtyping import Float


@checked_constructor
class GatedResidual(nn.Module):
    """A gated residual block around a layer or any other module; see the module for the equation.

    Args:
        dim: width D.
        inner: F, a layer or any other module.
        gate: a name of :data:`~manyheads.core.blocks.gates.GATES`; ``"residual"`` is the plain sum.
        gate_bias: the initial bias of the gate; None for the paper's.
        norm: False if F norms its input itself, its memory included.

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
        """The initial state of the layer; the empty state for any other module."""
        return self.inner.init_state(batch, device=device, dtype=dtype) if isinstance(self.inner, Layer) else ()

    def forward(
        self, x: Float[Tensor, "b *grid d"], state: State | None = None, *, mask: Mask | None = None
    ) -> LayerOutput:
        """Run the block; state and mask are passed to the layer.

        Any other module maps each token by itself, so that masks do not apply, and returns the empty state. Raises
        :class:`StateError` for a state given to such a module.
        """
        normed = self.norm(x)
        if isinstance(self.inner, Layer):
            y, state, aux = self.inner(normed, state, mask=mask)
        elif state is None or (isinstance(state, tuple) and not state):
            y, state, aux = self.inner(normed), (), {}
        else:
            raise StateError(f"gated residual: state: found {type(state).__name__}, expected (): F keeps none")
        return LayerOutput(self.gate(x, torch.relu(y)), state, aux)
