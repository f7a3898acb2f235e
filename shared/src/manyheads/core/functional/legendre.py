"""The Legendre delay system (2102.11417, 2402.04882): a sliding window of length theta held in q numbers.

    dm/dt = A m + B u,
    A_ij = (2i + 1) / theta * (-1 if i < j else (-1)^(i - j + 1)),   B_i = (2i + 1) / theta * (-1)^i,   i, j < q

discretised with a zero-order hold and a step of 1: ``A' = expm(A)``, ``B' = A^-1 (A' - I) B``. The memory holds the
window in shifted Legendre polynomials: ``u[t - r theta] ~ sum_i P_i(2r - 1) m_i[t]`` for r in [0, 1].

Shapes: B batch, T tokens, q order, C tokens a block.

Of the exact parallel forms the blocked one is the fastest on a CPU where the sequence is long, and the only one of the
two that takes an initial state and resets at no further cost: inside a block one product with the impulse response,
across blocks a tree over their last memories. The FFT convolution needs the response to the initial state beside it.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from manyheads.core.errors import ArgumentError


def legendre_matrices(order: int, window: float) -> tuple[Tensor, Tensor]:
    """The continuous ``A (q, q)`` and ``B (q,)`` in float64. Raises :class:`ArgumentError` for sizes below 1."""
    _check(order, window)
    index = torch.arange(order, dtype=torch.float64, device="cpu")
    scale = (2 * index + 1) / window
    row, column = index.unsqueeze(1), index.unsqueeze(0)
    alternating = 1 - 2 * ((row - column + 1) % 2)
    a = scale.unsqueeze(1) * torch.where(row < column, -1.0, alternating)
    return a, scale * (1 - 2 * (index % 2))


def discretise(a: Tensor, b: Tensor, step: float = 1.0) -> tuple[Tensor, Tensor]:
    """Zero-order hold of ``a (q, q)``, ``b (q,)``: one matrix exponential, so that ``a`` need not be invertible."""
    order = a.shape[0]
    joined = torch.cat([torch.cat([a, b.unsqueeze(1)], 1), a.new_zeros(1, order + 1)])
    held = torch.linalg.matrix_exp(joined * step)
    return held[:order, :order].contiguous(), held[:order, order].contiguous()


def impulse_response(transition: Tensor, drive: Tensor, length: int) -> Tensor:
    """``H (length, q)`` with ``H[k] = A'^k B'``: the memory k steps after a unit input, by log2(length) doublings."""
    response, power = drive.unsqueeze(0), transition
    while response.shape[0] < length:
        response = torch.cat([response, response @ power.mT])
        power = power @ power
    return response[:length]


def legendre_polynomials(order: int, points: Tensor) -> Tensor:
    """``P_i(2r - 1)``: ``points`` r ``(…)`` -> ``(…, q)``. Times a memory it reads out the input r theta ago."""
    z = 2 * points - 1
    values = [torch.ones_like(z), z]
    for i in range(1, order - 1):
        values.append(((2 * i + 1) * z * values[i] - i * values[i - 1]) / (i + 1))
    return torch.stack(values[:order], -1)


class LegendreSystem(NamedTuple):
    """The constants of the discrete system that the recurrent and the blocked form need; C is the block."""

    transition: Tensor  # (q, q): A'
    drive: Tensor  # (q,): B'
    powers: Tensor  # (q, C q): what a memory becomes after 1 … C steps without input
    responses: Tensor  # (C, q): the impulse response, latest input last


@lru_cache(maxsize=8)
def legendre_system(order: int, window: float) -> LegendreSystem:
    """The system in float64 on the CPU; shared between callers, not to be written to."""
    transition, drive = discretise(*legendre_matrices(order, window))
    block = block_length(order)
    powers = [transition]
    for _ in range(block - 1):
        powers.append(transition @ powers[-1])
    joined = torch.stack([power.mT for power in powers], 1).flatten(1)
    responses = impulse_response(transition, drive, block).flip(0)
    return LegendreSystem(transition, drive, joined.contiguous(), responses.contiguous())


def block_length(order: int) -> int:
    """C: short blocks save the products with the impulse response, long ones the tree across blocks. The limits keep
    the powers within some MB."""
    return min(64, max(8, 2048 // order))


def memory_flops(order: int, tokens: int) -> float:
    """Multiply-adds times two of one channel's memory in the blocked form."""
    block = min(block_length(order), tokens)
    return 2.0 * tokens * order * (order + block + 1 + 2 * order / block)


def legendre_memory(u: Tensor, system: LegendreSystem, initial: Tensor, segments: Tensor | None = None) -> Tensor:
    """``m[t] = A' m[t - 1] + B' u[t]`` for ``u (B, T)`` from ``initial (B, q)`` -> ``(B, T, q)``.

    ``segments (B, T)`` int64 counts the episodes that have begun, this token's among them: a token sees only its own,
    and the initial memory belongs to episode 0. Time ``O(T q (q + C))`` in matrix products, ``O(log T)`` of them.
    """
    batch, tokens = u.shape
    order = initial.shape[1]
    block = min(tokens, system.responses.shape[0])
    count = -(-tokens // block)
    extra = count * block - tokens
    powers, responses = system.powers[:, : block * order], system.responses[-block:]
    inputs = functional.pad(u, (0, extra)).unflatten(1, (count, block))  # (B, count, C)
    seen = functional.pad(inputs, (block - 1, 0)).unfold(2, block, 1)  # (B, count, C, C): the inputs up to each token
    latest, passes, carried = inputs, None, None
    if segments is not None:
        segments = torch.cat([segments, segments[:, -1:].expand(-1, extra)], 1).unflatten(1, (count, block))
        before = functional.pad(segments[:, :-1, -1], (1, 0))  # (B, count): the episode that the block starts in
        own = functional.pad(segments, (block - 1, 0), value=-1).unfold(2, block, 1) == segments.unsqueeze(3)
        seen = torch.where(own, seen, 0.0)
        latest = torch.where(segments == segments[..., -1:], inputs, 0.0)
        passes = (segments[..., -1] == before).unsqueeze(2)
        carried = (segments == before.unsqueeze(2)).unsqueeze(3)
    starts = _states_before(latest @ responses, powers[:, -order:], initial, passes)
    response = (starts @ powers).unflatten(2, (block, order))
    if carried is not None:
        response = torch.where(carried, response, 0.0)
    memory = torch.addmm(response.reshape(-1, order), seen.reshape(-1, block), responses)
    return memory.view(batch, count * block, order)[:, :tokens]


def _states_before(added: Tensor, power: Tensor, initial: Tensor, passes: Tensor | None) -> Tensor:
    """The state before each of n blocks, ``(B, n, q)``: a block adds ``added (B, n, q)`` to ``power`` (right factor)
    times the state, which it lets through where ``passes (B, n, 1)``. Pairs are joined until few are left."""
    count = added.shape[1]

    def through(state: Tensor, which: Tensor | None) -> Tensor:
        moved = state @ power
        return moved if which is None else torch.where(which, moved, 0.0)

    if count <= max(8, added.shape[2] // 4):  # below this the steps cost less than another square of the power
        states = [initial]
        for k in range(count - 1):
            states.append(through(states[-1], None if passes is None else passes[:, k]) + added[:, k])
        return torch.stack(states, 1)
    pairs = count // 2
    first, second = added[:, 0 : 2 * pairs : 2], added[:, 1 : 2 * pairs : 2]
    first_passes = None if passes is None else passes[:, 0 : 2 * pairs : 2]
    second_passes = None if passes is None else passes[:, 1 : 2 * pairs : 2]
    both = second + through(first, second_passes)
    both_pass = None if first_passes is None or second_passes is None else first_passes & second_passes
    if count % 2:  # what follows the last block concerns nobody, so that it may stand for a pair
        both = torch.cat([both, added[:, -1:]], 1)
        both_pass = None if both_pass is None or passes is None else torch.cat([both_pass, passes[:, -1:]], 1)
    even = _states_before(both, power @ power, initial, both_pass)
    odd = through(even[:, :pairs], first_passes) + first
    states = torch.stack([even[:, :pairs], odd], 2).flatten(1, 2)
    return torch.cat([states, even[:, pairs:]], 1)


def _check(order: int, window: float) -> None:
    if order < 1 or not window >= 1:
        raise ArgumentError(f"legendre: found order {order} and window {window}, expected 1 or more each")
