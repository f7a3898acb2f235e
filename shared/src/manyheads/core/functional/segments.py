"""Episodes inside a batch: who may see whom when a reset starts a new one."""

from __future__ import annotations

import torch
from torch import Tensor


def segment_ids(reset: Tensor) -> Tensor:
    """``(B, T)`` bool -> ``(B, T)`` int64: how many resets have come, this token's among them. What a state holds from
    before belongs to segment 0."""
    return reset.to(torch.int64).cumsum(1)


def same_segment(queries: Tensor, keys: Tensor) -> Tensor:
    """``(B, T)``, ``(B, S)`` -> ``(B, T, S)`` bool."""
    return queries.unsqueeze(-1) == keys.unsqueeze(-2)


def segment_starts(reset: Tensor) -> Tensor:
    """``(B, T)`` bool -> ``(B, T)`` int64: index of the first token of each token's segment, 0 before any reset."""
    index = torch.arange(reset.shape[1], device=reset.device).expand(reset.shape)
    return torch.where(reset, index, 0).cummax(1).values
