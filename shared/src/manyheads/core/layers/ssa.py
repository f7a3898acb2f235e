"""The Information Pathways Hypothesis: Transformers are Dynamic Self-Ensembles (2306.01705).

Softmax attention that is trained on a random part of its source tokens, drawn anew in each forward pass:

    y_i = sum_j softmax_j(q_i . k_j / sqrt(E)) v_j,   j in M u {i}  (and j <= i),   |M| = K = ceil(ratio T)

``spread=None``, unbiased: M is any K of the tokens, all with the same chance, one choice for all queries and heads.
``spread=s``, locally biased: the tokens are sorted by ``i + s K e_i`` with normal ``e_i``, and each block of
ceil(K / 2) queries takes the K that lie around it in that order (``causal``: the K that end with it).

The draws come from torch's generator, as those of dropout do: ``torch.manual_seed`` makes a run reproducible, and
activation checkpointing repeats them. Layers draw independently. ``methods.subsampling`` has a short last phase with
``ratio = 1`` and the average of several stochastic passes at inference.

In eval mode, and at ``ratio = 1``, this is softmax attention, streaming too: see ``layers.softmax``.

Shapes: B batch, T tokens, D width, H heads, E = D / H head width, K kept sources.

Cost: training time ``O(T K D + T D^2)``, memory ``O(T D + K D)`` (fused kernel), plus ``O(T K)`` booleans with
``causal``, and ``O(T^2)`` booleans with another mask; in eval mode that of softmax attention.

Softmax over a part of the tokens is no unbiased estimate of attention over all: "unbiased" is the draw.

Differs from the paper: see ``info.deviations``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from manyheads.core.errors import ArgumentError
from manyheads.core.functional import (
    kept_sources,
    local_sources,
    same_segment,
    sampled_attention,
    segment_ids,
    uniform_sources,
)
from manyheads.core.functional.segments import visible
from manyheads.core.layer import Grid, LayerInfo, LayerOutput
from manyheads.core.layers.softmax import HeadAttention
from manyheads.core.mask import Mask
from manyheads.core.state import State


def _flops(config: dict[str, Any], grid: Grid) -> float:
    (tokens,) = grid
    dim = config["dim"]
    kept = kept_sources(tokens, config["ratio"]) + 1
    seen = (kept + 1) / 2 if config["causal"] else kept
    return 8.0 * tokens * dim * dim + 4.0 * tokens * min(seen, tokens) * dim


class SubsampledAttention(HeadAttention):
    """Softmax attention trained on a part of its sources; see the module for equation and shapes.

    Raises:
        ArgumentError: a ratio outside (0, 1], a spread below 0, heads that do not divide, room below 1 or without
            ``causal``.
    """

    info = LayerInfo(
        name="ssa",
        title="The Information Pathways Hypothesis: Transformers are Dynamic Self-Ensembles",
        arxiv="2306.01705",
        formula=(
            r"y_i = W_o \sum_{j \in M \cup \{i\}} \operatorname{softmax}_j\!\left(\frac{q_i \cdot "
            r"k_j}{\sqrt{E}}\right) v_j,"
            r" \qquad M \text{ random}, \quad |M| = \lceil \text{ratio} \cdot T \rceil"
        ),
        good_for="Training softmax attention at part of its cost, and ensembles from one model.",
        not_for="Inference: it costs what softmax costs there. For cheaper inference take softmax with a window.",
        cost="training: time ratio N^2 D, memory N D; eval: as softmax",
        flops=_flops,
        at_length=lambda n: {
            "plain": {"heads": 2, "ratio": 0.125},
            "causal": {"heads": 2, "ratio": 0.125, "causal": True},
            "local": {"heads": 2, "ratio": 0.125, "spread": 0.5},
        },
        causal=("no", "strict"),
        state=("none", "growing"),
        streams_with=({"causal": True, "max_len": 1024},),
        masks=("padding", "reset", "window", "blocks"),
        lengths="any: ceil(ratio N) sources are kept, the last block of queries is padded inside",
        linear_in_value=True,
        deviations=(
            "a reconstruction: no code was published, and the details come from the text as it was recalled, above "
            "all the locally biased draw (noise in units of the kept tokens, blocks of half as many queries)",
            "the paper's share of dense fine-tuning and number of passes of an ensemble could not be found",
            "here each query always keeps its own token, so that with causal none is left without a source",
            "here rows with padding draw among their valid tokens; without padding the batch shares one draw",
            "here scores are never stored (fused kernel); the paper saves memory in matrices of scores: here the "
            "saving is in time and in gathered sources",
        ),
    )

    ratio: float = 0.25
    """Part of the source tokens that a training pass keeps, above 0 and at most 1."""
    spread: float | None = None
    """None for the unbiased draw, else the standard deviation of the noise in units of K."""

    def setup(self) -> None:
        super().setup()
        self.set_ratio(self.ratio)
        if self.spread is not None and not 0 <= self.spread < float("inf"):
            raise ArgumentError(f"ssa: spread: found {self.spread}, expected None or a number of 0 or more")

    def set_ratio(self, ratio: float) -> None:
        """The part of the sources that training passes keep from now on; ``config`` follows.

        Raises :class:`ArgumentError` outside (0, 1].
        """
        if not 0 < ratio <= 1:
            raise ArgumentError(f"ssa: ratio: found {ratio}, expected above 0 and at most 1")
        self.ratio = self.config["ratio"] = ratio

    def draw(self, usable: Tensor, *, offset: int = 0) -> tuple[Tensor, Tensor]:
        """The next choice for sources ``usable (R, S)``, of which those from ``offset`` on are the queries' tokens.

        Positions ``(R, G, K)`` and which of them are kept, as ``functional.sampled_attention`` takes them.
        """
        if self.spread is None:
            return uniform_sources(usable, self.ratio)
        tokens = usable.shape[1] - offset
        blocks = -(-tokens // max(1, -(-kept_sources(usable.shape[1], self.ratio) // 2)))
        size = -(-tokens // blocks)
        number = (usable.cumsum(1) - 1).clamp(min=0)[:, offset:]
        edge = torch.arange(blocks, device=usable.device) * size
        first, last = number[:, edge.clamp(max=tokens - 1)], number[:, (edge + size - 1).clamp(max=tokens - 1)]
        return local_sources(usable, first, last, self.ratio, self.spread, causal=self.causal)

    def mix(self, x: Tensor, state: State, context: Tensor | None, mask: Mask) -> LayerOutput:
        if not self.training or self.ratio == 1:
            return super().mix(x, state, context, mask)
        q, k, v = (self._split(project(x)) for project in (self.query, self.key, self.value))
        batch, tokens, offset = x.shape[0], x.shape[1], self.slots
        real = torch.ones(batch, tokens, dtype=torch.bool, device=x.device) if mask.padding is None else mask.padding
        segment = torch.zeros_like(real, dtype=torch.int64) if mask.reset is None else segment_ids(mask.reset)
        usable, segments = real, segment
        if self.state_kind != "none":
            held = torch.arange(offset, device=x.device) < state.used[:, None]
            usable = torch.cat([held, real], 1)
            segments = torch.cat([torch.zeros_like(held, dtype=torch.int64), segment], 1)
            k, v = torch.cat([state.keys, k], 2), torch.cat([state.values, v], 2)
        apart = mask.padding is not None or self.state_kind != "none"
        sources, kept = self.draw(usable if apart else usable[:1], offset=offset)
        allowed = None
        if apart or mask.names():
            seen = visible(real, segment, usable, segments, offset, causal=self.causal, window=mask.window)
            if mask.blocks is not None:
                seen = seen & same_segment(mask.blocks, mask.blocks)
            allowed = _for_blocks(seen, sources) & kept.unsqueeze(2)
        elif self.causal:
            size = -(-tokens // sources.shape[1])
            query = torch.arange(sources.shape[1] * size, device=x.device).view(1, -1, size, 1)
            allowed = sources.unsqueeze(2) <= query
        mixed = sampled_attention(q, k, v, sources, kept, offset=offset, allowed=allowed)
        if self.state_kind != "none":
            state = self._keep(k, v, usable & (segments == segment[:, -1:]))
        return LayerOutput(self.output(mixed.transpose(1, 2).flatten(2)), state)


def _for_blocks(seen: Tensor, sources: Tensor) -> Tensor:
    """``seen (B, T, S)`` at the ``sources (R, G, K)`` of each block of queries: ``(B, G, ceil(T / G), K)``."""
    batch, tokens, _ = seen.shape
    blocks = sources.shape[1]
    size = -(-tokens // blocks)
    padded = torch.nn.functional.pad(seen, (0, 0, 0, blocks * size - tokens)).unflatten(1, (blocks, size))
    return padded.gather(3, sources.unsqueeze(2).expand(batch, -1, size, -1))
