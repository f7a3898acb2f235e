"""A sequence encoder around any layer: from tokens or vectors to one vector for each token, or for the sequence.

    h = stack(embed(x) + positions);   "tokens": W h[t] + b,   "mean": W mean_t h[t] + b over the real tokens

Axes: b batch, t tokens, c inputs, k outputs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from torch import Tensor, nn

from manyheads.core.arguments import checked_constructor
from manyheads.core.backbones.stack import Stack
from manyheads.core.blocks.embeddings import LearnedPositions, SinusoidalPositions
from manyheads.core.errors import ArgumentError
from manyheads.core.layer import blank
from manyheads.core.mask import Mask

if TYPE_CHECKING:
    from jaxtyping import Float, Int

Positions = Literal["none", "sinusoidal", "learned"]


@checked_constructor
class SequenceEncoder(nn.Module):
    """Encode a sequence; see the module for the equations.

    Args:
        stack: the blocks; :func:`~manyheads.core.backbones.stack.build_stack` makes them.
        outputs: K.
        inputs: C of vectors ``(B, T, C)``; None for token ids.
        vocabulary: number of token ids; None for vectors.
        pool: "mean" for one output of a sequence, "tokens" for one of each token.
        positions: added to the embedded tokens; "none" for layers with rotary positions.
        max_len: number of learned positions.

    Raises:
        ArgumentError: both ``inputs`` and ``vocabulary``, or neither; learned positions without ``max_len``.
    """

    def __init__(
        self,
        stack: Stack,
        *,
        outputs: int,
        inputs: int | None = None,
        vocabulary: int | None = None,
        pool: Literal["mean", "tokens"] = "mean",
        positions: Positions = "sinusoidal",
        max_len: int | None = None,
    ) -> None:
        super().__init__()
        if (inputs is None) == (vocabulary is None):
            raise ArgumentError(f"inputs, vocabulary: found {inputs} and {vocabulary}, expected one of them")
        dim = stack.layers[0].dim
        self.embed = nn.Linear(inputs, dim) if inputs is not None else nn.Embedding(vocabulary or 0, dim)
        self.positions = make_positions(positions, dim, max_len)
        self.stack, self.pool = stack, pool
        self.head = nn.Linear(dim, outputs)

    def forward(
        self, x: Float[Tensor, "b t c"] | Int[Tensor, "b t"], *, mask: Mask | None = None
    ) -> Float[Tensor, "b k"] | Float[Tensor, "b t k"]:
        """Encode vectors or token ids: ``(B, K)``, or ``(B, T, K)`` with ``pool="tokens"``."""
        h = self.embed(x)
        h = self.stack(h if self.positions is None else self.positions(h), mask=mask).y
        if self.pool == "tokens":
            return self.head(h)
        if mask is None or mask.padding is None:
            return self.head(h.mean(1))
        real = mask.padding
        return self.head(blank(h, real).sum(1) / real.sum(1, keepdim=True).clamp(min=1))


def make_positions(kind: Positions, dim: int, max_len: int | None) -> nn.Module | None:
    """Build position embeddings. Raises :class:`ArgumentError` for learned ones without ``max_len``."""
    if kind == "learned":
        if max_len is None:
            raise ArgumentError("max_len: found none with positions='learned', expected the number of positions")
        return LearnedPositions(max_len, dim)
    return SinusoidalPositions(dim) if kind == "sinusoidal" else None
