"""The Legendre delay system (2102.11417, 2402.04882): a sliding window of length theta in q coefficients.

    dm/dt = A m + B u,
    A_ij = (2i + 1) / theta * (-1 if i < j else (-1)^(i - j + 1)),   B_i = (2i + 1) / theta * (-1)^i,   i, j < q

discretised with a zero-order hold and a step of 1: ``A' = expm(A)``, ``B' = A^-1 (A' - I) B``. The memory holds the
window in shifted Legendre polynomials: ``u[t - r theta] ~ sum_i P_i(2r - 1) m_i[t]`` for r in [0, 1].

Axes: b batch, t tokens, q order, c tokens of a block.

There are two exact parallel forms. The blocked form is the faster one on a CPU for long sequences, and takes an initial
state and resets at no further cost: one product with the impulse response within a block, a tree over the last memories
across blocks. The FFT convolution needs the response to the initial state in addition.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from manyheads.core.errors import ArgumentError

if TYPE_CHECKING:
    from jaxtyping import Float, Int


def legendre_matrices(order: int, window: float) -> tuple[Float[Tensor, "q q"], Float[Tensor, "q"]]:
    """The continuous ``A`` and ``B`` in float64. Raises :class:`ArgumentError` for sizes below 1."""
    _check(order, window)
    index = torch.arange(order, dtype=torch.float64, device="cpu")
    scale = (2 * index + 1) / window
    row, column = index.unsqueeze(1), index.unsqueeze(0)
    alternating = 1 - 2 * ((row - column + 1) % 2)
    a = scale.unsqueeze(1) * torch.where(row < column, -1.0, alternating)
    return a, scale * (1 - 2 * (index % 2))


def discretise(
    a: Float[Tensor, "q q"], b: Float[Tensor, "q"], step: float = 1.0
) -> tuple[Float[Tensor, "q q"], Float[Tensor, "q"]]:
    """Discretise a system by zero-order hold: one matrix exponential, so that ``a`` need not be invertible."""
    order = a.shape[0]
    joined = torch.cat([torch.cat([a, b.unsqueeze(1)], 1), a.new_zeros(1, order + 1)])
    held = torch.linalg.matrix_exp(joined * step)
    return held[:order, :order].contiguous(), held[:order, order].contiguous()


def impulse_response(
    transition: Float[Tensor, "q q"], drive: Float[Tensor, "q"], length: int
) -> Float[Tensor, "length q"]:
    """``H[k] = A'^k B'``: the memory k steps after a unit input, by log2(length) doublings."""
    response, power = drive.unsqueeze(0), transition
    while response.shape[0] < length:
        response = torch.cat([response, response @ power.mT])
        power = power @ power
    return response[:length]


def legendre_polynomials(order: int, points: Float[Tensor, "*grid"]) -> Float[Tensor, "*grid q"]:
    """``P_i(2r - 1)`` at the points r, for i < q. Its product with a memory is the input r theta ago."""
    z = 2 * points - 1
    values = [torch.ones_like(z), z]
    for i in range(1, order - 1):
        values.append(((2 * i + 1) * z * values[i] - i * values[i - 1]) / (i + 1))
    return torch.stack(values[:order], -1)


class LegendreSystem(NamedTuple):
    """Constants of the discrete system for the recurrent form and the blocked form."""

    transition: Float[Tensor, "q q"]
    """A'."""
    drive: Float[Tensor, "q"]
    """B'."""
    powers: Float[Tensor, "q c*q"]
    """Transposed A'^1 … A'^C: the memory after 1 … C steps without input."""
    responses: Float[Tensor, "c q"]
    """The impulse response, latest input last."""


@lru_cache(maxsize=8)
def legendre_system(order: int, window: float) -> LegendreSystem:
    """The discrete system in float64 on the CPU. Callers share it and must not write to it."""
    transition, drive = discretise(*legendre_matrices(order, window))
    block = block_length(order)
    powers = [transition]
    for _ in range(block - 1):
        powers.append(transition @ powers[-1])
    joined = torch.stack([power.mT for power in powers], 1).flatten(1)
    responses = impulse_response(transition, drive, block).flip(0)
    return LegendreSystem(transition, drive, joined.contiguous(), responses.contiguous())


def block_length(order: int) -> int:
    """C, the tokens of a block. Short blocks save products with the impulse response, long ones the tree across blocks.

    The limits keep the powers within some MB.
    """
    return min(64, max(8, 2048 // order))


def memory_flops(order: int, tokens: int) -> float:
    """FLOPs of the memory of one channel in the blocked form; a multiply-add counts as two."""
    block = min(block_length(order), tokens)
    return 2.0 * tokens * order * (order + block + 1 + 2 * order / block)


def legendre_memory(
    u: Float[Tensor, "b t"],
    system: LegendreSystem,
    initial: Float[Tensor, "b q"],
    segments: Int[Tensor, "b t"] | None = None,
) -> Float[Tensor, "b t q"]:
    """The memory ``m[t] = A' m[t - 1] + B' u[t]`` after every token.

    Time ``O(T q (q + C))`` in ``O(log T)`` matrix products.

    Args:
        u: the input.
        system: the constants.
        initial: the memory before the first token; it belongs to episode 0.
        segments: the number of each token's episode; an episode starts with an empty memory.
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
    """The state before each of n blocks, ``(B, n, q)``, by joining pairs of blocks until few are left.

        state after = added + (state before @ power if passes else 0)

    Args:
        added: ``(B, n, q)``.
        power: ``(q, q)``, of one block.
        initial: ``(B, q)``, the state before the first block.
        passes: ``(B, n, 1)``; None if all do.
    """
    count = added.shape[1]

    def through(state: Tensor, which: Tensor | None) -> Tensor:
        moved = state @ power
        return moved if which is None else torch.where(which, moved, 0.0)

    # So few steps cost less than another square of the power.
    if count <= max(8, added.shape[2] // 4):
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
    # The state after the last block is not needed, so that this block may stand for a pair.
    if count % 2:
        both = torch.cat([both, added[:, -1:]], 1)
        both_pass = None if both_pass is None or passes is None else torch.cat([both_pass, passes[:, -1:]], 1)
    even = _states_before(both, power @ power, initial, both_pass)
    odd = through(even[:, :pairs], first_passes) + first
    states = torch.stack([even[:, :pairs], odd], 2).flatten(1, 2)
    return torch.cat([states, even[:, pairs:]], 1)


def _check(order: int, window: float) -> None:
    if order < 1 or not window >= 1:
        raise ArgumentError(f"legendre: found order {order} and window {window}, expected 1 or more each")
