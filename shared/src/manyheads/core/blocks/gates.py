"""Stabilizing Transformers for Reinforcement Learning (1910.06764): gates in place of the residual sum.

x is the residual stream, y the output of a submodule, both ``(*grid, D)``; W and U are ``D x D``, b is a vector, s the
logistic function:

    residual      x + y
    input         s(W x) x + y
    output        x + s(W x - b) y
    highway       s(W x + b) x + (1 - s(W x + b)) y
    sigmoid-tanh  x + s(W y - b) tanh(U y)
    gru           (1 - z) x + z tanh(W_g y + U_g (r x)),   r = s(W_r y + U_r x),   z = s(W_z y + U_z x - b)

b is initialised to 2 for the GRU and to 1 for the other gates, so that a new network is close to the identity: an agent
learns to react before it learns to remember. There are no other biases; the input gate has none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from manyheads.core.arguments import checked, checked_constructor
from manyheads.core.errors import ArgumentError, UnknownNameError

if TYPE_CHECKING:
    from jaxtyping import Float


@checked_constructor
class ResidualGate(nn.Module):
    """Residual sum ``x + y``: no gate, no parameters."""

    def __init__(self, dim: int) -> None:
        super().__init__()

    def forward(self, x: Float[Tensor, "*grid d"], y: Float[Tensor, "*grid d"]) -> Float[Tensor, "*grid d"]:
        """Add."""
        return x + y


@checked_constructor
class InputGate(nn.Module):
    """Input gate ``s(W x) x + y``."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Linear(dim, dim, bias=False)

    def forward(self, x: Float[Tensor, "*grid d"], y: Float[Tensor, "*grid d"]) -> Float[Tensor, "*grid d"]:
        """Gate x."""
        return torch.sigmoid(self.weight(x)) * x + y


@checked_constructor
class OutputGate(nn.Module):
    """Output gate ``x + s(W x - b) y``."""

    def __init__(self, dim: int, *, bias: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Linear(dim, dim, bias=False)
        self.bias = nn.Parameter(torch.full((dim,), float(bias)))

    def forward(self, x: Float[Tensor, "*grid d"], y: Float[Tensor, "*grid d"]) -> Float[Tensor, "*grid d"]:
        """Gate y."""
        return x + torch.sigmoid(self.weight(x) - self.bias) * y


@checked_constructor
class HighwayGate(nn.Module):
    """Highway gate ``g x + (1 - g) y`` with ``g = s(W x + b)``."""

    def __init__(self, dim: int, *, bias: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Linear(dim, dim, bias=False)
        self.bias = nn.Parameter(torch.full((dim,), float(bias)))

    def forward(self, x: Float[Tensor, "*grid d"], y: Float[Tensor, "*grid d"]) -> Float[Tensor, "*grid d"]:
        """Interpolate between x and y."""
        return y + torch.sigmoid(self.weight(x) + self.bias) * (x - y)


@checked_constructor
class SigmoidTanhGate(nn.Module):
    """Sigmoid-tanh gate ``x + s(W y - b) tanh(U y)``."""

    def __init__(self, dim: int, *, bias: float = 1.0) -> None:
        super().__init__()
        # W, U.
        self.weights = nn.Linear(dim, 2 * dim, bias=False)
        self.bias = nn.Parameter(torch.full((dim,), float(bias)))

    def forward(self, x: Float[Tensor, "*grid d"], y: Float[Tensor, "*grid d"]) -> Float[Tensor, "*grid d"]:
        """Gate a candidate made of y."""
        opening, candidate = self.weights(y).chunk(2, -1)
        return x + torch.sigmoid(opening - self.bias) * torch.tanh(candidate)


@checked_constructor
class GRUGate(nn.Module):
    """GRU gate ``(1 - z) x + z tanh(W_g y + U_g (r x))``, ``r = s(W_r y + U_r x)``, ``z = s(W_z y + U_z x - b)``."""

    def __init__(self, dim: int, *, bias: float = 2.0) -> None:
        super().__init__()
        # W_r, W_z, W_g; then U_r, U_z; then U_g.
        self.from_output = nn.Linear(dim, 3 * dim, bias=False)
        self.from_stream = nn.Linear(dim, 2 * dim, bias=False)
        self.from_reset = nn.Linear(dim, dim, bias=False)
        self.bias = nn.Parameter(torch.full((dim,), float(bias)))

    def forward(self, x: Float[Tensor, "*grid d"], y: Float[Tensor, "*grid d"]) -> Float[Tensor, "*grid d"]:
        """Update x by y."""
        r_y, z_y, h_y = self.from_output(y).chunk(3, -1)
        r_x, z_x = self.from_stream(x).chunk(2, -1)
        z = torch.sigmoid(z_y + z_x - self.bias)
        h = torch.tanh(h_y + self.from_reset(torch.sigmoid(r_y + r_x) * x))
        return x + z * (h - x)


GATES: Mapping[str, type[nn.Module]] = {
    "residual": ResidualGate,
    "input": InputGate,
    "output": OutputGate,
    "highway": HighwayGate,
    "sigmoid-tanh": SigmoidTanhGate,
    "gru": GRUGate,
}


@checked
def create_gate(name: str, dim: int, *, bias: float | None = None) -> nn.Module:
    """Build a gate by name, called as ``gate(x, y)``; ``bias`` is the initial b, None for the paper's.

    Raises :class:`UnknownNameError` with the nearest name, and :class:`ArgumentError` for a bias of a gate without one.
    """
    if name not in GATES:
        raise UnknownNameError("gate", name, GATES)
    if bias is None:
        return GATES[name](dim)
    if name in ("residual", "input"):
        raise ArgumentError(f"create_gate: bias: found {bias} with gate {name!r}, expected None: it has no bias")
    return GATES[name](dim, bias=bias)
