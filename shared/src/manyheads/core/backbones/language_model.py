"""A decoder-only language model around any causal layer, with generation.

    logits[t] = U h[t],   h = stack(E[ids] + positions),   U = E if ``tied``

``generate`` feeds the prompts once and then one token at a time, with the states of the layers as cache. Prompts of
unequal length are padded on the right: a state does not change at padding, so that each row continues as if it were
alone. Layers without a state run on the whole sequence at every step.

Axes: b batch, t tokens, v vocabulary, d width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from manyheads.core.arguments import checked_constructor
from manyheads.core.backbones.generation import Generative, Sampler
from manyheads.core.backbones.sequence_encoder import Positions, make_positions
from manyheads.core.backbones.stack import Stack
from manyheads.core.errors import ArgumentError
from manyheads.core.layer import LayerOutput
from manyheads.core.mask import Mask
from manyheads.core.state import State

if TYPE_CHECKING:
    from jaxtyping import Int


@checked_constructor
class LanguageModel(Generative):
    """Predict the logits of the next token; see the module for the equation.

    Args:
        stack: causal blocks; :func:`~manyheads.core.backbones.stack.build_stack` makes them.
        vocabulary: V.
        positions: added to the embedded tokens; "none" for layers with rotary positions.
        max_len: number of learned positions.
        tied: the output matrix is that of the embedding.

    Raises:
        ArgumentError: a layer that is not causal as configured, a vocabulary below 1.
    """

    def __init__(
        self,
        stack: Stack,
        *,
        vocabulary: int,
        positions: Positions = "sinusoidal",
        max_len: int | None = None,
        tied: bool = True,
    ) -> None:
        super().__init__()
        if vocabulary < 1:
            raise ArgumentError(f"vocabulary: found {vocabulary}, expected 1 or more")
        if not stack.causal:
            layer = stack.layers[0]
            raise ArgumentError(
                f"stack: found {layer.info.name} with causality {layer.causality!r}, expected strictly causal layers: "
                "build it with options={'causal': True} if the layer has it"
            )
        dim = stack.layers[0].dim
        self.embed = nn.Embedding(vocabulary, dim)
        nn.init.normal_(self.embed.weight, std=dim**-0.5)
        self.positions = make_positions(positions, dim, max_len)
        self.stack, self.vocabulary = stack, vocabulary
        self.output = nn.Linear(dim, vocabulary, bias=False)
        if tied:
            self.output.weight = self.embed.weight

    def forward(
        self,
        ids: Int[Tensor, "b t"],
        state: State | None = None,
        *,
        first: Int[Tensor, "b"] | Int[Tensor, ""] | int = 0,
        mask: Mask | None = None,
    ) -> LayerOutput:
        """Logits ``(B, T, V)``; ``first`` is the position of the first token, one number, or one for each row."""
        h = self.embed(ids)
        if self.positions is not None:
            h = self.positions(h, first=first)
        h, state, aux = self.stack(h, state, mask=mask)
        return LayerOutput(self.output(h), state, aux)

    def _continue(
        self, prompts: Sequence[Sequence[int]], new_tokens: int, choose: Sampler, stop: int | None
    ) -> list[list[int]]:
        device = self.embed.weight.device
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
        ids = torch.zeros(len(prompts), int(lengths.max()) + new_tokens, dtype=torch.int64, device=device)
        for row, prompt in enumerate(prompts):
            ids[row, : len(prompt)] = torch.tensor(prompt, device=device)
        rows = torch.arange(len(prompts), device=device)
        open_rows = torch.ones(len(prompts), dtype=torch.bool, device=device)
        made: list[list[int]] = [[] for _ in prompts]
        state: State | None = None
        for step in range(new_tokens):
            known = lengths + step
            if step == 0 or not self.stack.streaming:
                logits, state = self._whole(ids[:, : int(known.max())], known)
            else:
                logits, state, _ = self(ids.gather(1, known[:, None] - 1), state, first=known - 1)
                logits = logits[:, -1]
            chosen = choose(logits)
            ids[rows, known] = chosen
            for row in torch.nonzero(open_rows).flatten().tolist():
                made[row].append(int(chosen[row]))
            if stop is not None:
                open_rows = open_rows & (chosen != stop)
                if not open_rows.any():
                    break
        return made

    def _whole(self, ids: Tensor, known: Tensor) -> tuple[Tensor, State]:
        """Logits after the last known token of each row, and the state after it."""
        real = torch.arange(ids.shape[1], device=ids.device) < known[:, None]
        padded = not bool(real.all())
        logits, state, _ = self(ids, mask=Mask(padding=real) if padded else None)
        return logits.gather(1, (known - 1)[:, None, None].expand(-1, 1, logits.shape[-1]))[:, 0], state
