"""RoFormer: Enhanced Transformer with Rotary Position Embedding (2104.09864): queries and keys turned by position.

    [x'_{2i}, x'_{2i+1}] = R(t w_i) [x_{2i}, x_{2i+1}],   w_i = base^(-2i / E),   R(a) the rotation by the angle a

so that ``q'_t . k'_s`` depends on q, k and ``t - s`` only. Shapes: B batch, H heads, T tokens, E head width, even.

Differs from the paper: nothing. Common implementations pair the features i and i + E / 2 instead of 2i and 2i + 1; the
two agree up to a permutation of the rows of the query and key matrices.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float, Int


def rotate(
    x: Float[Tensor, "b h t e"], position: Int[Tensor, "*b t"], *, base: float = 10000.0
) -> Float[Tensor, "b h t e"]:
    """Turn ``x (B, H, T, E)`` by the ``position (T,)`` or ``(B, T)`` of its tokens; angles in float32 or wider."""
    wide = torch.promote_types(x.dtype, torch.float32)
    pairs = torch.arange(x.shape[-1] // 2, device=x.device, dtype=wide)
    frequency = torch.exp(pairs * (-2.0 * math.log(base) / x.shape[-1]))
    angle = position.to(wide).unsqueeze(-1) * frequency  # (…, T, E / 2)
    if angle.dim() == 3:
        angle = angle.unsqueeze(1)
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2)
