"""Transformer-XL (1901.02860): causal attention by content and distance over a memory of the layer's own past inputs.

    Z = [SG(memory), X],   Q = X W_q,   K = Z W_k,   V = Z W_v,   R = sinusoids(0 … M) W_r
    score[i, j] = ((q_i + u) . k_j + (q_i + w) . r_{i - j}) / sqrt(E),   0 <= i - j <= M
    Y = [softmax(score_1) V_1 … softmax(score_H) V_H] W_o

in the form that GTrXL (1910.06764) uses. SG stops the gradient. Shapes: B batch, T tokens, M memory, D width, H heads,
E head width (H E need not be D).

Cost: time ``O(T M H E + T D H E)``, memory ``O(T H E)``; a state of ``M D`` numbers; a streamed token ``O(M H D)``.

Differs from the paper: every token sees at most the M tokens before it, so that a rollout step by step and a segment at
once see the same and agree (the paper's training lets the last token of a segment see the whole of memory and segment).
Slots that hold nothing, and tokens of an earlier episode, are masked; the memory holds one episode and positions count
its real tokens. Sines come before cosines, as in the paper's code, and ``w`` is the paper's v. No dropout, and no norm
unless ``norm``, which is GTrXL's.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from manyheads.core.errors import ArgumentError
from manyheads.core.functional.packing import pack, pack_order, unpack
from manyheads.core.functional.relative_attention import relative_attention, sinusoids
from manyheads.core.functional.segments import segment_ids
from manyheads.core.layer import Grid, Layer, LayerInfo, LayerOutput, head_count
from manyheads.core.mask import Mask
from manyheads.core.state import State


class InputMemory(NamedTuple):
    """The latest inputs of the layer, the newest at the right end."""

    inputs: Tensor  # (B, M, D), 0 where nothing is held
    used: Tensor  # (B,) int64: slots in use


def _flops(config: dict[str, Any], grid: Grid) -> float:
    (tokens,) = grid
    dim, memory = config["dim"], config["memory"]
    inner = config["heads"] * (config.get("head_width") or dim // config["heads"])
    seen = memory + tokens
    if tokens == 1:
        return 10.0 * dim * inner + 6.0 * config["heads"] * seen * dim
    projections = 4.0 * tokens * dim * inner + 4.0 * seen * dim * inner + 2.0 * (memory + 1) * dim * inner
    return projections + 6.0 * tokens * (memory + 1) * inner


class TransformerXL(Layer):
    """Relative attention over a memory; see the module for equation and shapes.

    Args:
        dim: width D.
        heads: H; divides ``dim`` without a ``head_width``. None for the largest power of two up to 8 that does.
        head_width: E; ``dim / heads`` by default.
        memory: M, how many tokens before it each token sees, and the slots of the state.
        memory_gradient: let the gradient through the state; the definition stops it there.
        norm: a layer norm over memory and tokens, while the memory holds the inputs as they came (GTrXL).

    Raises:
        ArgumentError: a number below 1; heads that do not divide ``dim`` without a ``head_width``.
    """

    info = LayerInfo(
        name="transformer-xl",
        title="Transformer-XL: Attentive Language Models Beyond a Fixed-Length Context",
        arxiv="1901.02860",
        good_for="Language and event streams where the distance between tokens matters, with a memory of fixed length.",
        cost="time N M D + N D^2, memory N D; a streamed token M H D with M slots",
        flops=_flops,
        at_length=lambda n: {"plain": {"heads": 2, "memory": 128}},
        causal=("strict",),
        state=("window",),
        masks=("padding", "reset"),
        positional=True,
        full_context=False,
        linear_in_value=True,
        deviations=(
            "a window of memory + 1 tokens for every token, so that step by step and segment agree",
            "empty slots and earlier episodes are masked",
        ),
    )

    def __init__(
        self,
        dim: int,
        *,
        heads: int | None = None,
        head_width: int | None = None,
        memory: int = 128,
        memory_gradient: bool = False,
        norm: bool = False,
    ) -> None:
        if heads is None or head_width is None:
            heads = head_count(self.info.name, dim, heads)
        super().__init__(
            dim, heads=heads, head_width=head_width, memory=memory, memory_gradient=memory_gradient, norm=norm
        )
        for name, value in (("heads", heads), ("memory", memory), ("head_width", head_width)):
            if value is not None and value < 1:
                raise ArgumentError(f"{self.info.name}: {name}: found {value}, expected 1 or more")
        self.heads, self.memory, self.memory_gradient = heads, memory, memory_gradient
        self.head_width = head_width or dim // heads
        inner = heads * self.head_width
        self.norm = nn.LayerNorm(dim) if norm else nn.Identity()
        self.query = nn.Linear(dim, inner, bias=False)
        self.key = nn.Linear(dim, inner, bias=False)
        self.value = nn.Linear(dim, inner, bias=False)
        self.distance = nn.Linear(dim, inner, bias=False)
        self.output = nn.Linear(inner, dim, bias=False)
        self.content_bias = nn.Parameter(torch.zeros(heads, self.head_width))
        self.distance_bias = nn.Parameter(torch.zeros(heads, self.head_width))

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
        y = self._attend(self.norm(known), self._first(state.used, episode))
        if order is not None and real is not None:
            y = unpack(y, order, real)
        return LayerOutput(y, self._keep(known, state.used, episode, last, real))

    def _first(self, used: Tensor, episode: Tensor) -> Tensor:
        """``(B, T)``: the first of memory and tokens that is of each token's own episode."""
        index = torch.arange(episode.shape[1], device=episode.device) + self.memory
        before = torch.cat([torch.zeros_like(episode[:, :1]), episode[:, :-1]], 1)
        return torch.where(episode > before, index, self.memory - used.unsqueeze(1)).cummax(1).values

    def _attend(self, known: Tensor, first: Tensor) -> Tensor:
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
        """One token, as in a rollout: ``q . (W z) = (q W) . z``, so that the memory need not be projected."""
        z, scale = known.to(table.dtype), self.head_width**-0.5
        key, value, distance = (
            part.weight.to(table.dtype).unflatten(0, (self.heads, -1)) for part in (self.key, self.value, self.distance)
        )
        q = self.query(known[:, -1]).to(table.dtype).unflatten(-1, (self.heads, -1)).transpose(0, 1)
        content = (q + self.content_bias.unsqueeze(1)) * scale @ key  # (H, B, D)
        place = (q + self.distance_bias.unsqueeze(1)) * scale @ distance
        scores = content.transpose(0, 1) @ z.mT + (place @ table.flip(0).mT).transpose(0, 1)
        hidden = torch.arange(z.shape[1], device=z.device) < first
        weights = scores.masked_fill(hidden.unsqueeze(1), float("-inf")).softmax(-1)
        mixed = (weights @ z).transpose(0, 1) @ value.mT  # (H, B, E)
        return self.output(mixed.transpose(0, 1).flatten(1).unsqueeze(1).to(known.dtype))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def _keep(self, known: Tensor, used: Tensor, episode: Tensor, last: Tensor, real: Tensor | None) -> InputMemory:
        """The latest M real tokens of the last episode."""
        new = episode == last
        if real is None:
            inputs = known[:, -self.memory :]
        else:
            new = new & real
            slot = real.sum(1, keepdim=True) + torch.arange(self.memory, device=known.device)
            inputs = torch.take_along_dim(known, slot.unsqueeze(-1), 1)
        used = (torch.where(last.squeeze(1) == 0, used, 0) + new.sum(1)).clamp(max=self.memory)
        held = torch.arange(self.memory, device=known.device) >= self.memory - used.unsqueeze(1)
        inputs = torch.where(held.unsqueeze(-1), inputs, inputs.new_zeros(()))  # a number in its place costs thrice
        return InputMemory(inputs if self.memory_gradient else inputs.detach(), used)


def _is_plain(part: nn.Module) -> bool:
    """Its weight may be used without calling it: not replaced, nobody listens."""
    return type(part) is nn.Linear and not part._forward_hooks and not part._forward_pre_hooks
