"""Base class of LMUFormer and the baselines: a stem, stages and a head."""

from __future__ import annotations

import copy
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

from manyheads.core.blocks.causal_convolution import CausalConvolution
from manyheads.core.errors import ArgumentError
from manyheads.core.state import State
from manyheads.kws.models.network import Network, Passage, Product, step_macs
from manyheads.kws.models.sites import SpikeSite, fold_alone
from manyheads.kws.models.stem import Stem


class Stage(nn.Module):
    """A module ``(B, T, D) -> (B, T, D)`` with a state.

    ``delay`` is the delay of its input in frames, ``rate`` the number of frames per step.
    """

    def init_state(self, batch: int, *, device: torch.device | None, dtype: torch.dtype | None) -> State:
        """Return the state before the first step."""
        raise NotImplementedError

    def forward(self, x: Tensor, state: State, passage: Passage, delay: int, rate: int) -> tuple[Tensor, State]:
        """Run one or more steps."""
        raise NotImplementedError

    def products(self) -> list[Product]:
        """Return the products of one step."""
        raise NotImplementedError

    def fold(self) -> None:
        """Fold the batch norms in place."""
        raise NotImplementedError

    def freeze_clips(self, steps: int) -> None:
        """Precompute what makes clips of ``steps`` steps cheaper; nothing by default."""


S = TypeVar("S", bound="Staged")


class Staged(Network):
    """A network of a stem, stages and a head.

    A subclass sets ``stem`` and ``blocks``, a list of :class:`Stage`, and calls :meth:`add_head`.
    """

    stem: Stem
    blocks: nn.ModuleList

    def add_head(self, width: int, *, spiking: bool = False, dropout: float = 0.0) -> None:
        """Add the head, initialised as in the code of LMUFormer: N(0, 0.02^2) truncated at ±2, bias 0."""
        self.head_site = SpikeSite("head", width) if spiking else None
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, len(self.labels))
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    @property
    def stages(self) -> list[Stage]:
        return cast("list[Stage]", list(self.blocks))

    def init_parts(self, batch: int, *, device: torch.device | None, dtype: torch.dtype | None) -> State:
        blocks = tuple(stage.init_state(batch, device=device, dtype=dtype) for stage in self.stages)
        head = () if self.head_site is None else self.head_site.init_state(batch, device=device, dtype=dtype)
        return self.stem.init_state(batch, device=device, dtype=dtype), blocks, head

    def run(self, frames: Tensor, parts: State, passage: Passage) -> tuple[Tensor, State]:
        stem, blocks, head = parts
        x, stem = self.stem(frames, stem, passage)
        after, delay, rate = [], self.lookahead, self.stride
        for stage, state in zip(self.stages, blocks, strict=True):
            x, state = stage(x, state, passage, delay, rate)
            after.append(state)
        if self.head_site is not None:
            x, head = self.head_site(x, head, passage, delay, rate)
        logits = passage.blank(self.head(self.dropout(x)), delay, rate)
        return logits, (stem, tuple(after), head)

    def products(self) -> list[Product]:
        found = self.stem.products()
        for stage in self.stages:
            found += stage.products()
        source = None if self.head_site is None else self.head_site.name
        return [*found, Product("head", step_macs(self.head), source)]

    def freeze_clips(self, frames: int) -> None:
        """Make :meth:`whole` faster for clips of ``frames`` frames; only for a folded network."""
        if not self.folded:
            raise ArgumentError(f"{self.config.kind}: found a network that is not folded, expected fold() before")
        for stage in self.stages:
            stage.freeze_clips((frames + self.lookahead) // self.stride)

    def fold(self: S) -> S:
        folded = copy.deepcopy(self).eval().requires_grad_(False)
        folded.stem.fold()
        for stage in folded.stages:
            stage.fold()
        if folded.head_site is not None:
            fold_alone(folded.head_site)
        for module in folded.modules():
            if isinstance(module, CausalConvolution):
                module.freeze()
        folded.folded = True
        return folded
