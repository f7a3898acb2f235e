"""The two parts of an LMUFormer block: the mixer with Legendre memories, and the feed-forward network."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from manyheads.core.blocks.batch_norm import SequenceBatchNorm, affine_of
from manyheads.core.blocks.legendre_memory import LegendreMemory
from manyheads.core.functional.legendre import impulse_response, legendre_system
from manyheads.core.state import State
from manyheads.kws.models.network import Passage, Product, step_macs
from manyheads.kws.models.sites import Site, SpikeSite, fold_after, fold_alone, fold_norm, normalise


class LegendreMixer(nn.Module):
    """The mixer, ``(B, T, D) -> (B, T, D)``; equations in :mod:`manyheads.kws.models.lmuformer`.

    With one memory, without the output map and the spikes at the input, it is the layer ``lmu`` or ``spiking-lmu``.

    Args:
        prefix: prefix of the names of the sites.
        channels: D.
        order, window: q and theta of each memory. An order above the window gives a warning.
        memories: K.
        spiking: use leaky integrate-and-fire neurons instead of ReLU.
        norm: use batch norm on h in a network without spikes. A spiking network always has it.
    """

    clip_response: Tensor | None
    clip_index: Tensor | None

    def __init__(
        self, prefix: str, channels: int, *, order: int, window: int, memories: int, spiking: bool, norm: bool
    ) -> None:
        super().__init__()
        self.memories, self.order = memories, order
        # (K T, D), and (T, T) int64
        self.register_buffer("clip_response", None, persistent=False)
        self.register_buffer("clip_index", None, persistent=False)
        self.entry = SpikeSite(f"{prefix}mixer", channels, threshold=0.5) if spiking else None
        self.encoder = nn.Linear(channels, memories)
        self.memory = LegendreMemory(order, window, owner="lmuformer")
        self.readout = nn.Linear(memories * order, channels, bias=False)
        self.skip = nn.Linear(channels, channels)
        self.output = nn.Linear(channels, channels)
        self.output_norm: nn.Module = SequenceBatchNorm(channels)
        self.input_site = SpikeSite(f"{prefix}input", memories) if spiking else Site(memories, "relu", norm=False)
        self.memory_site = SpikeSite(f"{prefix}memory", memories * order) if spiking else None
        self.hidden_site = SpikeSite(f"{prefix}hidden", channels) if spiking else Site(channels, "relu", norm=norm)

    def init_state(self, batch: int, *, device: torch.device | None, dtype: torch.dtype | None) -> State:
        memory = self.memory.initial(batch, self.memories, device=device, dtype=dtype)
        sites = (self.entry, self.input_site, self.memory_site, self.hidden_site)
        return memory, tuple(() if s is None else s.init_state(batch, device=device, dtype=dtype) for s in sites)

    def forward(self, x: Tensor, state: State, passage: Passage, delay: int, rate: int) -> tuple[Tensor, State]:
        memory, (entry, inputs, spiked, hidden) = state
        if self.entry is not None:
            x, entry = self.entry(x, entry, passage, delay, rate)
        u, inputs = self.input_site(self.encoder(x), inputs, passage, delay, rate)
        u = passage.blank(u, delay, rate)
        response = self.clip_response if passage.clip else None
        if response is not None and len(response) == x.shape[1] * self.memories:
            h = self._seen(u) @ response + self.skip(x)
        else:
            m, memory = self._remember(u, memory)
            if self.memory_site is not None:
                m, spiked = self.memory_site(m, spiked, passage, delay, rate)
            h = self.readout(m.to(x.dtype)) + self.skip(x)
        h, hidden = self.hidden_site(h, hidden, passage, delay, rate)
        y = normalise(self.output_norm, self.output(h), passage.real(h.shape[1], delay, rate))
        return y, (memory, (entry, inputs, spiked, hidden))

    def _remember(self, u: Tensor, initial: Tensor) -> tuple[Tensor, Tensor]:
        """Run the memories: ``u (B, T, K)`` -> ``(B, T, K q)`` and the last memory."""
        if u.shape[1] == 1:
            memory = self.memory.step(u.squeeze(1), initial)
            return memory.flatten(1).unsqueeze(1), memory
        batch, tokens, count = u.shape
        every = self.memory(u.mT.flatten(0, 1), initial.flatten(0, 1)).view(batch, count, tokens, self.order)
        return every.transpose(1, 2).flatten(2), every[:, :, -1]

    def freeze_clips(self, steps: int) -> None:
        """Fuse memory and readout for clips of ``steps`` steps: one product with ``G[k] = W_m A'^k B'`` instead of two.

        The weights must not change afterwards. Does nothing with spikes, which separate the two.
        """
        if self.memory_site is not None:
            return
        system = legendre_system(self.order, self.memory.window)
        # (T, q), the latest step last
        response = impulse_response(system.transition, system.drive, steps).flip(0)
        weight = self.readout.weight.detach()
        parts = weight.double().cpu().unflatten(1, (self.memories, self.order))
        joined = torch.einsum("tq,dkq->ktd", response, parts).flatten(0, 1)
        self.clip_response = joined.to(weight)
        lag = torch.arange(steps, device=weight.device)
        # index of the inputs, padded with T - 1 zeros on the left
        self.clip_index = lag.unsqueeze(1) + lag

    def _seen(self, u: Tensor) -> Tensor:
        """Collect all inputs up to each step of a whole clip: ``u (B, T, K)`` -> ``(B, T, K T)``."""
        padded = functional.pad(u.transpose(1, 2), (u.shape[1] - 1, 0))
        return padded[:, :, self.clip_index].transpose(1, 2).flatten(2)

    def products(self) -> list[Product]:
        """Return the products of one step; the transition of the memory is dense also with spikes."""
        prefix = "" if self.entry is None else self.entry.name.removesuffix("mixer")
        spiking = self.entry is not None

        def source(site: str) -> str | None:
            return f"{prefix}{site}" if spiking else None

        return [
            Product(f"{prefix}encoder", step_macs(self.encoder), source("mixer")),
            Product(f"{prefix}drive", self.memories * self.order, source("input")),
            Product(f"{prefix}memory", self.memories * self.order * self.order, None),
            Product(f"{prefix}readout", step_macs(self.readout), source("memory")),
            Product(f"{prefix}skip", step_macs(self.skip), source("mixer")),
            Product(f"{prefix}output", step_macs(self.output), source("hidden")),
        ]

    def fold(self) -> None:
        """Fold the batch norms in place.

        Two batch norms become affine maps: that of the entry, because the residual path bypasses it, and that of the
        memory, because the memory has no weights.
        """
        self.output_norm = fold_norm(self.output, self.output_norm)
        fold_after(self.encoder, self.input_site)
        if isinstance(self.hidden_site.norm, SequenceBatchNorm):
            # h is the sum of two products; fold_after adds the bias to the second only
            with torch.no_grad():
                self.readout.weight.mul_(affine_of(self.hidden_site.norm)[0].unsqueeze(1))
        fold_after(self.skip, self.hidden_site)
        for site in (self.entry, self.memory_site):
            if site is not None:
                fold_alone(site)


class FeedForward(nn.Module):
    """The feed-forward network, ``(B, T, D) -> (B, T, D)``; equations in :mod:`manyheads.kws.models.lmuformer`."""

    def __init__(self, prefix: str, channels: int, hidden: int, *, spiking: bool) -> None:
        super().__init__()
        self.entry = SpikeSite(f"{prefix}ffn1", channels) if spiking else None
        self.widen = nn.Linear(channels, hidden)
        self.inner = SpikeSite(f"{prefix}ffn2", hidden) if spiking else Site(hidden, "gelu")
        self.narrow = nn.Linear(hidden, channels)
        self.last = None if spiking else Site(channels, "relu")
        self.prefix = prefix

    def init_state(self, batch: int, *, device: torch.device | None, dtype: torch.dtype | None) -> State:
        entry = () if self.entry is None else self.entry.init_state(batch, device=device, dtype=dtype)
        return entry, self.inner.init_state(batch, device=device, dtype=dtype)

    def forward(self, x: Tensor, state: State, passage: Passage, delay: int, rate: int) -> tuple[Tensor, State]:
        entry, inner = state
        if self.entry is not None:
            x, entry = self.entry(x, entry, passage, delay, rate)
        x, inner = self.inner(self.widen(x), inner, passage, delay, rate)
        x = self.narrow(x)
        if self.last is not None:
            x, _ = self.last(x, (), passage, delay, rate)
        return x, (entry, inner)

    def products(self) -> list[Product]:
        """Return the products of one step."""
        spiking = self.entry is not None
        return [
            Product(f"{self.prefix}widen", step_macs(self.widen), f"{self.prefix}ffn1" if spiking else None),
            Product(f"{self.prefix}narrow", step_macs(self.narrow), f"{self.prefix}ffn2" if spiking else None),
        ]

    def fold(self) -> None:
        """Fold the batch norms in place."""
        fold_after(self.widen, self.inner)
        if self.last is not None:
            fold_after(self.narrow, self.last)
        if self.entry is not None:
            fold_alone(self.entry)
