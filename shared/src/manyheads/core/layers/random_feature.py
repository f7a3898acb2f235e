"""What can a Single Attention Layer Learn? A Study Through the Random Features Lens (2307.11353): ReLU attention with
frozen random weights, of which only a linear read-out is trained.

    f(x_0; x_1 … x_N) = sum_m (1/N) sum_i relu(<W_m, z_0 z_i'>) <v_m, z_i>,   z = [x; 1],   W_m ~ N(W_0, 1/4) and frozen

RFA has ``W_0 = 0``; biased RFA (BRFA) has ``W_0 = diag(1, …, 1, 0)``, so that similar tokens excite each other. With
``v_m`` a matrix the layer has D outputs; it is linear in it, with M (C + 1) features ``(1/N) sum_i relu(…) z_i``.

As self-attention each token is a query over all tokens, itself too, or causal over itself and those before; with
``context_dim`` the tokens are queries over a context.

Shapes: B batch, T queries, S keys, D query width, C key width (D without a context), M = ``heads`` random heads.

Cost: ``W_m' z_0`` is formed once a query, so that a query takes ``O(M (D C + S C))`` time, all of them ``O(M T (D C +
S C))``; memory ``O(M T S)`` for the scores; a state of ``max_len`` tokens.

Differs from the paper: see ``info.deviations``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from manyheads.core.blocks.shared_value import SharedValue, mix_shared
from manyheads.core.errors import ArgumentError
from manyheads.core.fields import argument, attribute
from manyheads.core.functional import hold_first, require_room, same_segment, segment_ids, visible
from manyheads.core.layer import Causality, Grid, Layer, LayerInfo, LayerOutput, StateKind
from manyheads.core.mask import Mask
from manyheads.core.state import State


class TokenState(NamedTuple):
    """The tokens of the episode so far, the oldest first."""

    tokens: Tensor  # (B, max_len, D)
    used: Tensor  # (B,) int64: slots in use


def random_weights(heads: int, query: int, key: int, *, seed: int, biased: bool = False) -> Tensor:
    """W ``(M, query + 1, key + 1)``: independent normals of variance 1/4 around 0, or around diag(1, …, 1, 0)."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(heads, query + 1, key + 1, generator=generator, device="cpu") / 2
    if biased:
        weights[:, range(query), range(query)] += 1
    return weights


def random_feature_scores(queries: Tensor, keys: Tensor, weights: Tensor) -> Tensor:
    """relu(z_t' W_m z_s) of ``queries (B, T, P)``, ``keys (B, S, R)`` with their ones, ``weights (M, P, R)``:
    ``(B, M, T, S)``."""
    projected = queries @ weights.transpose(0, 1).flatten(1)  # (B, T, M R), once a query
    return torch.relu(projected.unflatten(-1, (len(weights), -1)).transpose(1, 2) @ keys.mT.unsqueeze(1))


def _flops(config: dict[str, Any], grid: Grid) -> float:
    (tokens,) = grid
    dim, heads = config["dim"], config.get("heads", 64)
    key = config.get("context_dim") or dim
    seen = tokens  # a causal mask saves no work
    each = 2.0 * (dim + 1) * (key + 1) + 4.0 * seen * (key + 1) + 2.0 * (key + 1) * dim
    return heads * tokens * each


class RandomFeatureAttention(Layer):
    """ReLU attention with frozen random weights (the buffer ``weight``) and a trained read-out ``output`` (v).

    Raises:
        ArgumentError: heads or room below 1, room without ``causal``, a context that does not fit.
    """

    info = LayerInfo(
        name="random-feature",
        title="What can a Single Attention Layer Learn? A Study Through the Random Features Lens",
        arxiv="2307.11353",
        formula=(
            r"f(x_0; x_1 \dots x_N) = \sum_m \frac{1}{N} \sum_i"
            r" \mathrm{ReLU}\big(\langle W_m, z_0 z_i^\top \rangle\big)\, \langle v_m, z_i \rangle,"
            r" \quad z = [x; 1], \quad W_m \sim N(W_0, \tfrac14)"
        ),
        good_for="Studying what attention learns: frozen random weights with a read-out that ridge regression solves.",
        not_for="Applications: take softmax, which learns its queries and keys.",
        cost="time M N (N D + D^2), memory M N^2; one query over N keys M (N D + D^2)",
        flops=_flops,
        at_length=lambda n: {"plain": {"heads": 4}},
        causal=("no", "strict"),
        state=("none", "growing"),
        streams_with=({"causal": True, "max_len": 1024},),
        cross=True,
        masks=("padding", "reset", "window", "blocks", "context_padding"),
        full_context=False,  # a rectifier shuts some pairs off
        linear_in_value=True,
        deviations=(
            "from memory of the paper, as no code was found: checked against the closed-form kernel and a target that "
            "the paper's theory covers",
            "here D outputs, trained by gradient; the paper has one number, solved by ridge regression (features "
            "gives the regressors)",
            "here every token is a query, over all tokens, over those before it or over a context; the paper has one "
            "query for each sample",
            "the causal and streaming forms and the masks are ours",
            "here nothing is rescaled; the paper's tokens have norm 1: tokens of norm r give features of size r^3",
        ),
    )

    # (M, D + 1, C + 1), frozen
    weight: Tensor = attribute()
    heads: int = argument(default=64, least=1)
    """M, the random heads; M (C + 1) features and D times as many parameters."""
    biased: bool = False
    """BRFA: the weights are around diag(1, …, 1, 0)."""
    causal: bool = False
    """The keys of each token are itself and earlier tokens."""
    max_len: int | None = None
    """Causal only: slots of the growing state; a longer stream raises :class:`StateError`."""
    context_dim: int | None = None
    """C, for keys from a context; not with ``causal``, and D if ``biased``."""
    seed: int = 0
    """Seed of the frozen weights; the same seed gives the same weights."""

    def setup(self) -> None:
        dim, causal, max_len, context_dim = self.dim, self.causal, self.max_len, self.context_dim
        if max_len is not None and (max_len < 1 or not causal):
            raise ArgumentError(
                f"random-feature: max_len: found {max_len} with causal={causal}, expected 1 or more and causal"
            )
        if context_dim is not None and (causal or context_dim < 1 or (self.biased and context_dim != dim)):
            raise ArgumentError(
                f"random-feature: context_dim: found {context_dim} with causal={causal}, biased={self.biased}, "
                f"expected None where causal, {dim} where biased, else 1 or more"
            )
        key = dim if context_dim is None else context_dim
        self.value = SharedValue(self.heads)
        self.output = nn.Linear(self.heads * (key + 1), dim, bias=False)
        weight = random_weights(self.heads, dim, key, seed=self.seed, biased=self.biased)
        self.register_buffer("weight", weight.to(self.output.weight))

    @property
    def masks(self) -> tuple[str, ...]:
        if self.context_dim is not None:
            return ("padding", "context_padding")
        return ("padding", "reset") if self.max_len is not None else ("padding", "reset", "window", "blocks")

    @property
    def causality(self) -> Causality:
        return "strict" if self.causal else "no"

    @property
    def state_kind(self) -> StateKind:
        return "none" if self.max_len is None else "growing"

    def init_state(self, batch: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None) -> State:
        if self.max_len is None:
            return ()
        tokens = torch.zeros(batch, self.max_len, self.dim, device=device, dtype=dtype)
        return TokenState(tokens, torch.zeros(batch, dtype=torch.int64, device=device))

    def features(self, x: Tensor, *, context: Tensor | None = None, mask: Mask | None = None) -> Tensor:
        """Return the regressors of the read-out, ``(B, T, M (C + 1))``, for a ridge solution of v."""
        seen: list[Tensor] = []
        hook = self.output.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
        try:
            self(x, context=context, mask=mask)
        finally:
            hook.remove()
        return seen[0]

    def mix(self, x: Tensor, state: State, context: Tensor | None, mask: Mask) -> LayerOutput:
        if context is not None:
            keys = context
            allowed = None if mask.context_padding is None else mask.context_padding.unsqueeze(1)
        else:
            keys, allowed, state = self._sources(x, state, mask)
        z, keys = (functional.pad(part, (0, 1), value=1.0) for part in (x, keys))
        device = x.device.type
        autocast = torch.is_autocast_enabled(device)
        half = (torch.get_autocast_dtype(device) if autocast else x.dtype) == torch.float16
        wide = torch.float32 if half else x.dtype  # cubes of the tokens need not fit float16
        z, keys = z.to(wide), keys.to(wide)
        with torch.autocast(device, enabled=autocast and not half):
            scores = random_feature_scores(z, keys, self.weight.to(wide))
        count = torch.full_like(z[:1, :1, :1], max(keys.shape[1], 1))
        if allowed is not None:
            scores = scores.masked_fill(~allowed.unsqueeze(1), 0.0)
            count = allowed.sum(-1, keepdim=True).clamp(min=1).to(scores.dtype)
        # The mean is taken after the sum: on the scores it would be kept for the backward pass once more.
        with torch.autocast(device, enabled=autocast and not half):
            mixed = mix_shared(scores, self.value(keys)) / count
        if half:  # the read-out is linear: features that do not fit are scaled for it
            factor = (mixed.abs().amax(-1, keepdim=True) / (torch.finfo(torch.float16).max / 2)).clamp(min=1)
            return LayerOutput((self.output((mixed / factor).to(x.dtype)) * factor).to(x.dtype), state)
        return LayerOutput(self.output(mixed), state)

    def _sources(self, x: Tensor, state: State, mask: Mask) -> tuple[Tensor, Tensor | None, State]:
        """The keys ``(B, S, D)``, who sees them ``(B, T, S)`` (None for all), and the state after them."""
        if not self.causal and not mask.names():
            return x, None, ()
        real = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if mask.padding is None else mask.padding
        segment = torch.zeros_like(real, dtype=torch.int64) if mask.reset is None else segment_ids(mask.reset)
        held, keys = real[:, :0], x
        if state != ():
            held = torch.arange(state.tokens.shape[1], device=x.device) < state.used.unsqueeze(1)
            keys = torch.cat([state.tokens, x], 1)
        usable = torch.cat([held, real], 1)
        segments = torch.cat([torch.zeros_like(held, dtype=torch.int64), segment], 1)
        offset = held.shape[1]
        allowed = visible(real, segment, usable, segments, offset, causal=self.causal, window=mask.window)
        if mask.blocks is not None:
            allowed = allowed & same_segment(mask.blocks, mask.blocks)
        if self.max_len is None:
            return keys, allowed, ()
        kept = usable & (segments == segment[:, -1:])
        count = kept.sum(1)
        require_room("random-feature", count, self.max_len)
        return keys, allowed, TokenState(hold_first(keys, kept, self.max_len), count)
