"""Transformer-XL (1901.02860): causal attention by content and distance over a memory of the layer's own past inputs.

    Z = [SG(memory), X],   Q = X W_q,   K = Z W_k,   V = Z W_v,   R = sinusoids(0 … M) W_r
    score[i, j] = ((q_i + u) . k_j + (q_i + w) . r_{i - j}) / sqrt(E),   0 <= i - j <= M
    Y = [softmax(score_1) V_1 … softmax(score_H) V_H] W_o

in the form that GTrXL (1910.06764) uses. SG stops the gradient.

Shapes: B batch, T tokens, M memory, D width, H heads, E head width (H E need not be D).

Cost: time ``O(T M H E + T D H E)``, memory ``O(T H E)``; a streamed token ``O(M H D)``.

It streams; the state is a window, the last M inputs, ``M D`` numbers.

Differs from the paper: see ``info.deviations``.
"""

from __future__ import annotations

from math import gcd
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from manyheads.core.errors import ArgumentError
from manyheads.core.fields import argument
from manyheads.core.functional.packing import pack, pack_order, unpack
from manyheads.core.functional.relative_attention import relative_attention, sinusoids
from manyheads.core.functional.segments import segment_ids
from manyheads.core.layer import Grid, Layer, LayerInfo, LayerOutput
from manyheads.core.mask import Mask
from manyheads.core.state import State


class InputMemory(NamedTuple):
    """The latest inputs of the layer, the newest at the right end."""

    inputs: Tensor  # (B, M, D), 0 where nothing is held
    used: Tensor  # (B,) int64: slots in use


def shared_width(layer: Any) -> int:
    """The head width E that shares D between the heads, the default of ``head_width``.

    Raises :class:`ArgumentError` for heads that do not divide D.
    """
    if layer.heads < 1 or layer.dim % layer.heads:
        raise ArgumentError(f"{layer.info.name}: heads: found {layer.heads}, expected a divisor of dim = {layer.dim}")
    return layer.dim // layer.heads


def check_heads(owner: str, layer: Any, head_width: int) -> None:
    """Check the number of heads; with a given ``head_width`` it need not divide D."""
    if layer.heads < 1:
        raise ArgumentError(f"{owner}: heads: found {layer.heads}, expected 1 or more")


def _flops(config: dict[str, Any], grid: Grid) -> float:
    (tokens,) = grid
    dim, memory = config["dim"], config["memory"]
    inner = config["heads"] * config["head_width"]
    seen = memory + tokens
    if tokens == 1:
        return 10.0 * dim * inner + 6.0 * config["heads"] * seen * dim
    projections = 4.0 * tokens * dim * inner + 4.0 * seen * dim * inner + 2.0 * (memory + 1) * dim * inner
    return projections + 6.0 * tokens * (memory + 1) * inner


class TransformerXL(Layer):
    """Relative attention over a memory; see the module for equation and shapes.

    Raises:
        ArgumentError: a number below 1; heads that do not divide ``dim`` without a ``head_width``.
    """

    info = LayerInfo(
        name="transformer-xl",
        title="Transformer-XL: Attentive Language Models Beyond a Fixed-Length Context",
        arxiv="1901.02860",
        formula=(
            r"\begin{aligned} Z &= [\mathrm{SG}(\text{memory}), X], \quad Q = X W_q, \quad K = Z W_k,"
            r" \quad V = Z W_v, \quad R = \mathrm{sinusoids}(0 \dots M)\, W_r \\"
            r" s_{ij} &= \frac{(q_i + u) \cdot k_j + (q_i + w) \cdot r_{i-j}}{\sqrt E}, \qquad 0 \le i - j \le M \\"
            r" Y &= \big[\mathrm{softmax}(s_1) V_1 \;\dots\; \mathrm{softmax}(s_H) V_H\big]\, W_o \end{aligned}"
        ),
        good_for="Language and event streams where the distance between tokens matters, with a memory of fixed length.",
        not_for="Dependencies longer than the memory, and inputs below 1,000 tokens: softmax is faster there and sees "
        "every token.",
        cost="time N M D + N D^2, memory N D; a streamed token M H D with M slots",
        flops=_flops,
        at_length=lambda n: {"plain": {"heads": 2, "memory": min(128, max(2, n // 2))}},
        causal=("strict",),
        state=("window",),
        masks=("padding", "reset"),
        positional=True,
        full_context=False,
        linear_in_value=True,
        deviations=(
            "here each token sees the M tokens before it; in the paper it sees the whole memory and the segment "
            "before it, M to M + T tokens by its place in the segment: only with the window do a rollout step by step "
            "and a whole segment agree (to 1e-10), so that an agent trains on the policy that acted",
            "here the empty slots of the memory are masked; in several public codes they are zeros that take part in "
            "the softmax",
            "episodes are ours: a reset hides all earlier tokens, the memory holds one episode, and positions count "
            "its real tokens",
            "here memory_gradient=True lets the gradient through the memory; in the paper it always stops there, as "
            "here by default",
            "here all sines come before all cosines, as in the authors' code: another order permutes the columns of "
            "W_r; w is the paper's v",
            "here one streamed token moves the projections of the memory to the query and to the mix, q . (W z) = (q "
            "W) . z; the authors' code projects keys and values of the memory anew: the same numbers up to rounding, "
            "3 to 5 times faster in a large memory",
            "no dropout, and no norm unless norm=True, which is GTrXL's",
        ),
    )

    heads: int = argument(factory=lambda layer: gcd(layer.dim, 8))
    """H; divides ``dim`` without a ``head_width``. By default the largest power of two up to 8 that divides ``dim``."""
    head_width: int = argument(factory=shared_width, least=1, check=check_heads)
    """E; ``dim / heads`` by default."""
    memory: int = argument(default=128, least=1)
    """M, the number of earlier tokens that each token sees, and of the slots in the state."""
    memory_gradient: bool = False
    """Let the gradient through the state; the definition stops it there."""
    norm: bool = argument(default=False)
    """Layer norm over memory and tokens; the memory holds the inputs before the norm (GTrXL)."""

    def setup(self) -> None:
        dim, inner = self.dim, self.heads * self.head_width
        self.norm = nn.LayerNorm(dim) if self.norm else nn.Identity()  # ty: ignore[invalid-assignment]
        self.query = nn.Linear(dim, inner, bias=False)
        self.key = nn.Linear(dim, inner, bias=False)
        self.value = nn.Linear(dim, inner, bias=False)
        self.distance = nn.Linear(dim, inner, bias=False)
        self.output = nn.Linear(inner, dim, bias=False)
        self.content_bias = nn.Parameter(torch.zeros(self.heads, self.head_width))
        self.distance_bias = nn.Parameter(torch.zeros(self.heads, self.head_width))

    @property
    def state_carries_gradient(self) -> bool:
        return self.memory_gradient

    def init_state(
        self, batch: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> InputMemory:
        used = torch.zeros(batch, dtype=torch.int64, device=device)
        return InputMemory(torch.zeros(batch, self.memory, self.dim, device=device, dtype=dtype), used)

    def mix(self, x: Tensor, state: State, context: Tensor | None, mask: Mask) -> LayerOutput:
        if not self.memory_gradient:
            state = InputMemory(state.inputs.detach(), state.used)
        episode = torch.zeros(x.shape[:2], dtype=torch.int64, device=x.device)
        episode = episode if mask.reset is None else segment_ids(mask.reset)
        last = episode[:, -1:]
        order = real = None
        if mask.padding is not None:
            order, real = pack_order(mask.padding)
            x, episode = pack(x, order), episode.gather(1, order)
        known = torch.cat([state.inputs, x], 1)
        normed = self.norm(known)  # ty: ignore[not-callable]
        y = self._attend(normed, self._first(state.used, episode))
        if order is not None and real is not None:
            y = unpack(y, order, real)
        return LayerOutput(y, self._keep(known, state.used, episode, last, real))

    def _first(self, used: Tensor, episode: Tensor) -> Tensor:
        """``(B, T)``: the place in memory and tokens where each token's own episode begins."""
        index = torch.arange(episode.shape[1], device=episode.device) + self.memory
        before = torch.cat([torch.zeros_like(episode[:, :1]), episode[:, :-1]], 1)
        return torch.where(episode > before, index, self.memory - used.unsqueeze(1)).cummax(1).values

    def _attend(self, known: Tensor, first: Tensor) -> Tensor:
        """``known (B, M + T, D)``, ``first (B, T)`` -> ``(B, T, D)``."""
        distances = torch.arange(
            self.memory + 1, device=known.device, dtype=torch.promote_types(known.dtype, torch.float32)
        )
        table = sinusoids(distances, self.dim)
        if first.shape[1] == 1 and all(_is_plain(part) for part in (self.key, self.value, self.distance)):
            return self._attend_once(known, first, table)
        r = self.distance(table.to(known.dtype)).unflatten(-1, (self.heads, -1))
        queries = self.query(known[:, self.memory :])
        q, k, v = (self._split(part) for part in (queries, self.key(known), self.value(known)))
        mixed = relative_attention(q, k, v, r, self.content_bias, self.distance_bias, first=first)
        return self.output(mixed.transpose(1, 2).flatten(2).to(known.dtype))

    def _attend_once(self, known: Tensor, first: Tensor, table: Tensor) -> Tensor:
        """One token, as in a rollout. ``q . (W z) = (q W) . z``, so the memory is not projected."""
        z, scale = known.to(table.dtype), self.head_width**-0.5
        key, value, distance = (
            part.weight.to(table.dtype).unflatten(0, (self.heads, -1)) for part in (self.key, self.value, self.distance)
        )
        q = self.query(known[:, -1]).to(table.dtype).unflatten(-1, (self.heads, -1)).transpose(0, 1)
        # q W, (H, B, D)
        content = (q + self.content_bias.unsqueeze(1)) * scale @ key
        place = (q + self.distance_bias.unsqueeze(1)) * scale @ distance
        scores = content.transpose(0, 1) @ z.mT + (place @ table.flip(0).mT).transpose(0, 1)
        hidden = torch.arange(z.shape[1], device=z.device) < first
        weights = scores.masked_fill(hidden.unsqueeze(1), float("-inf")).softmax(-1)
        # the values likewise: project after the mix, (H, B, E)
        mixed = (weights @ z).transpose(0, 1) @ value.mT
        return self.output(mixed.transpose(0, 1).flatten(1).unsqueeze(1).to(known.dtype))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def _keep(self, known: Tensor, used: Tensor, episode: Tensor, last: Tensor, real: Tensor | None) -> InputMemory:
        """The memory after this call: the last M real tokens of the last episode."""
        new = episode == last
        if real is None:
            inputs = known[:, -self.memory :]
        else:
            new = new & real
            slot = real.sum(1, keepdim=True) + torch.arange(self.memory, device=known.device)
            inputs = torch.take_along_dim(known, slot.unsqueeze(-1), 1)
        used = (torch.where(last.squeeze(1) == 0, used, 0) + new.sum(1)).clamp(max=self.memory)
        held = torch.arange(self.memory, device=known.device) >= self.memory - used.unsqueeze(1)
        # a tensor of 0: the number 0 takes three times as long
        inputs = torch.where(held.unsqueeze(-1), inputs, inputs.new_zeros(()))
        return InputMemory(inputs if self.memory_gradient else inputs.detach(), used)


def _is_plain(part: nn.Module) -> bool:
    """Return whether its weight may be used without calling it: the module is not replaced and has no hooks."""
    return type(part) is nn.Linear and not part._forward_hooks and not part._forward_pre_hooks
