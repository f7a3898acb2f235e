"""Values that all heads share. Axes: b batch, t tokens, s sources, h heads, e width."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from manyheads.core.arguments import checked_constructor

if TYPE_CHECKING:
    from jaxtyping import Float


@checked_constructor
class SharedValue(nn.Module):
    """Use each token itself as the value of every head; a view without copies.

    ``methods.mixing_matrix`` hooks this module to find the mixing matrix of each head; :func:`mix_shared` then mixes.
    """

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads

    def forward(self, x: Float[Tensor, "b s e"]) -> Float[Tensor, "b s h e"]:
        """Expand by the heads."""
        return x.unsqueeze(2).expand(-1, -1, self.heads, -1)


def mix_shared(weights: Float[Tensor, "b h t s"], values: Float[Tensor, "b s #h e"]) -> Float[Tensor, "b t h*e"]:
    """Mix the output of :class:`SharedValue`, or one head of it, by the weights of each head, as one product."""
    batch, heads, tokens, _ = weights.shape
    mixed = weights.flatten(1, 2).to(values.dtype) @ values[:, :, 0]
    return mixed.view(batch, heads, tokens, -1).transpose(1, 2).flatten(2)
