"""A gated recurrent unit (GRU) over padded rows and episodes: forward with a state, or bidirectional.

Axes: b batch, t tokens, d input width, u units of a direction, h output width: u, or 2 u for both directions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from manyheads.core.arguments import checked_constructor
from manyheads.core.functional import gru_scan, pack, pack_order, segment_ids, unpack
from manyheads.core.mask import Mask

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int


@checked_constructor
class RecurrentEncoder(nn.Module):
    """GRU with the weights of ``torch.nn.GRU``; each direction honours ``mask.padding`` and ``mask.reset``.

    Runs :func:`gru_scan`, in float32 at least. On a GPU it runs torch's fused kernel instead, unless there is a reset,
    or padding in a bidirectional encoder.

    Args:
        dim: input width D.
        units: U of each direction.
        both_ways: whether the encoder is bidirectional.
    """

    def __init__(self, dim: int, units: int, *, both_ways: bool) -> None:
        super().__init__()
        self.both_ways = both_ways
        self.unit = nn.GRU(dim, units, batch_first=True, bidirectional=both_ways)

    def forward(
        self, x: Float[Tensor, "b t d"], start: Float[Tensor, "b h"] | None, mask: Mask
    ) -> tuple[Float[Tensor, "b t h"], Float[Tensor, "b h"], Bool[Tensor, "b t"], Int[Tensor, "b t"]]:
        """The states after each token, 0 at padding; the state after the chunk; real tokens; episode numbers.

        ``start`` is the state before the chunk, None for 0.
        """
        batch, tokens, _ = x.shape
        real = torch.ones(batch, tokens, dtype=torch.bool, device=x.device) if mask.padding is None else mask.padding
        segment = torch.zeros_like(real, dtype=torch.int64) if mask.reset is None else segment_ids(mask.reset)
        order, filled, own = None, real, segment
        if mask.padding is not None:
            order, filled = pack_order(mask.padding)
            x, own = torch.where(filled.unsqueeze(-1), pack(x, order), 0.0), segment.gather(1, order)
        fresh = None
        if mask.reset is not None:
            fresh = own != torch.cat([torch.zeros_like(own[:, :1]), own[:, :-1]], 1)
        wide = self._recur(x, start, None if mask.padding is None else filled.sum(1), fresh)
        # After a reset without a real token behind it the state is that of a new episode.
        count = filled.sum(1)
        at = (count - 1).clamp(min=0)
        last = wide.gather(1, at.view(-1, 1, 1).expand(-1, 1, wide.shape[-1])).squeeze(1)
        if start is not None:
            last = torch.where((count > 0).unsqueeze(1), last, start)
        ended = torch.where(count > 0, own.gather(1, at.unsqueeze(1)).squeeze(1), 0)
        hidden = torch.where((ended == segment[:, -1]).unsqueeze(1), last, 0.0)
        h = wide.to(x.dtype)
        return h if order is None else unpack(h, order, filled), hidden, real, segment

    def _recur(self, x: Tensor, start: Tensor | None, lengths: Tensor | None, fresh: Tensor | None) -> Tensor:
        """Run the unit over right-padded ``x``, in float32 at least."""
        wide = torch.promote_types(x.dtype, torch.float32)
        if x.is_cuda and fresh is None and (not self.both_ways or lengths is None):
            first = None if start is None else start.unsqueeze(0).to(x.dtype)
            # One kernel; a scan launches several for every token.
            return self.unit(x.contiguous(), first)[0].to(wide)
        inputs, suffixes = [x], [""]
        if self.both_ways:
            inputs, suffixes = [x, _mirrored(x, lengths)], ["", "_reverse"]
        gates, weights, biases = [], [], []
        for given, suffix in zip(inputs, suffixes, strict=True):
            w_in, w_state, b_in, b_state = (
                getattr(self.unit, f"{name}_l0{suffix}").to(wide)
                for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            )
            units = w_state.shape[1]
            open_biases = torch.cat([b_state[: 2 * units], torch.zeros_like(b_state[2 * units :])])
            given = nn.functional.linear(given.to(wide).transpose(0, 1), w_in, b_in + open_biases)
            # Under autocast the product is in half precision.
            gates.append(given.to(wide))
            weights.append(w_state.mT)
            biases.append(b_state[2 * units :])
        first = x.new_zeros(len(gates), x.shape[0], units, dtype=wide) if start is None else start.unsqueeze(0)
        fresh_TRB = None if fresh is None else fresh.mT.unsqueeze(1)
        states = gru_scan(torch.stack(gates, 1), first, torch.stack(weights), torch.stack(biases), fresh_TRB)
        ahead, *backward = states.transpose(0, 2).unbind(1)  # each (B, T, U)
        return ahead if not backward else torch.cat([ahead, _mirrored(backward[0], lengths)], -1)


def _mirrored(x: Tensor, lengths: Tensor | None) -> Tensor:
    """Reverse the tokens of each row of ``x (B, T, …)``; padding beyond the length stays in place."""
    if lengths is None:
        return x.flip(1)
    place, end = torch.arange(x.shape[1], device=x.device).unsqueeze(0), lengths.unsqueeze(1)
    return pack(x, torch.where(place < end, end - 1 - place, place))
