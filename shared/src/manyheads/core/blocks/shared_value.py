"""Heads that all mix the same values."""

from __future__ import annotations

from torch import Tensor, nn

from manyheads.core.arguments import checked_constructor


@checked_constructor
class SharedValue(nn.Module):
    """``(B, S, E)`` -> ``(B, S, H, E)``: every head's value is the token itself. A view: no copy a head is made.

    A place for hooks, which tell what each head mixes (``methods.mixing_matrix``); :func:`mix_shared` then mixes.
    """

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        return x.unsqueeze(2).expand(-1, -1, self.heads, -1)


def mix_shared(weights: Tensor, values: Tensor) -> Tensor:
    """``weights (B, H, T, S)`` and what :class:`SharedValue` gives -> ``(B, T, H E)``, as one product of all heads."""
    batch, heads, tokens, _ = weights.shape
    mixed = weights.flatten(1, 2).to(values.dtype) @ values[:, :, 0]
    return mixed.view(batch, heads, tokens, -1).transpose(1, 2).flatten(2)
