"""The interface of a keyword network: frames in, logits out, in chunks of any size.

    out = network(frames)                 # (B, T, M) -> out.logits (B, T', C), out.state, out.aux
    out = network(more, out.state)        # the next chunk; chunked equals whole, exactly

A step is ``stride`` frames, so T' = T // stride, counted over all frames so far. Frames that do not fill a step wait in
the state. With a look-ahead of a frames, the logits are a frames late, and those of the first a frames are 0.
:meth:`Network.finish` returns the remaining logits at the end of a stream. :meth:`Network.whole` returns all logits of
a clip without delay. The prediction of a clip is the argmax of its mean logits.

Axes: B batch, T frames, M bins, C labels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from manyheads.core.blocks.batch_norm import SequenceBatchNorm
from manyheads.core.errors import ArgumentError, StateError
from manyheads.core.state import State, leaves
from manyheads.lab.data.fields import from_json
from manyheads.lab.training.experiment import Splits


class NetworkState(NamedTuple):
    """The state of a stream, of constant size."""

    waiting: Tensor
    """``(B, stride - 1, M)``: the latest frames; the last ``held`` of them belong to the next step."""
    held: Tensor
    """``(B,)`` int64: number of waiting frames, the same in all rows."""
    seen: Tensor
    """``(B,)`` int64: number of frames so far, clamped at the look-ahead."""
    parts: State
    """The states of the modules."""


class NetworkOutput(NamedTuple):
    """The ``logits (B, T', C)``, the next state, and the spike rates ``aux``.

    ``aux`` holds the spikes per step and neuron for each site; it is empty without spikes.
    """

    logits: Tensor
    state: NetworkState
    aux: dict[str, Tensor]


class Product(NamedTuple):
    """A matrix product of one step: its multiply-adds, and the site whose spikes are its input. The source is None for
    real-valued input; such a product is dense."""

    name: str
    macs: int
    source: str | None


class Passage:
    """The context of one call: where the streams start and end in the chunk, and the measured spike rates.

    ``seen (B,)`` is the number of frames before the chunk, clamped at the look-ahead; None without look-ahead. ``end``,
    an int or ``(B,)``, is the first frame of the chunk after the end of a stream; None if the streams continue.
    """

    def __init__(self, seen: Tensor | None = None, end: Tensor | int | None = None, *, clip: bool = False) -> None:
        # both None: all frames are valid
        self.seen, self.end = seen, end
        # whole clips: the states after them are not used
        self.clip = clip
        self.rates: dict[str, Tensor] = {}
        # cache, as every site of a stage needs the same mask
        self._known: dict[tuple[int, int, int], Tensor | None] = {}

    def real(self, steps: int, delay: int, rate: int) -> Tensor | None:
        """Return the mask of valid steps, ``(B, steps)`` bool, or None if all are valid.

        A step is ``rate`` frames and is ``delay`` frames late. It is valid if it lies inside the stream.
        """
        asked = steps, delay, rate
        if asked not in self._known:
            self._known[asked] = self._real(*asked)
        return self._known[asked]

    def _real(self, steps: int, delay: int, rate: int) -> Tensor | None:
        known = self.end if self.seen is None else self.seen
        if not isinstance(known, Tensor):
            return None
        at = torch.arange(steps, device=known.device) * rate - delay
        begun = at >= 0 if self.seen is None else at + self.seen.unsqueeze(1) >= 0
        if self.end is None:
            return begun
        return begun & (at < (self.end.unsqueeze(-1) if isinstance(self.end, Tensor) else self.end))

    def enter(self, frames: Tensor) -> Tensor:
        """Set the frames outside the stream to 0, also NaN and infinity."""
        return _zeroed(frames, self.real(frames.shape[1], 0, 1))

    def blank(self, x: Tensor, delay: int, rate: int) -> Tensor:
        """Set the steps of ``x (B, T, …)`` outside the stream to 0.

        Without look-ahead, return ``x`` unchanged: no step of a stream reads a step after its end.
        """
        return x if self.seen is None else _zeroed(x, self.real(x.shape[1], delay, rate))


def _zeroed(x: Tensor, real: Tensor | None) -> Tensor:
    return x if real is None else x.masked_fill(~real.view(*real.shape, *[1] * (x.dim() - 2)), 0.0)


@dataclass(frozen=True)
class NetworkConfig:
    """Configuration of a network without the facts of the data; can be written as JSON."""

    kind: ClassVar[str] = ""

    def make(self, bins: int, labels: Sequence[str]) -> Network:
        """Build the network for ``bins`` mel bins and these labels."""
        raise NotImplementedError

    def build(self, splits: Splits) -> Network:
        """Build the network for a data set with the facts ``bins`` and ``labels``."""
        return self.make(int(splits.facts["bins"]), tuple(splits.facts["labels"]))

    def renamed(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rename the tensors of a saved network to the names of this version."""
        return dict(tensors)

    def to_json(self) -> dict[str, Any]:
        """Return ``{"kind": …, field: value}``, the input of :func:`manyheads.kws.models.config_from_json`."""
        return {"kind": self.kind, **asdict(self)}


N = TypeVar("N", bound="Network")


class Network(nn.Module):
    """Base class of the keyword networks. A subclass implements :meth:`init_parts`, :meth:`run`, :meth:`products` and
    :meth:`fold`.

    Args:
        config: configuration of the network.
        bins: number of mel bins M.
        labels: the words, in the order of the logits.
        stride: frames per step.
        lookahead: delay of the outputs in frames.

    Raises:
        ArgumentError: no bins, no labels, or repeated labels.
    """

    def __init__(
        self, config: NetworkConfig, bins: int, labels: Sequence[str], *, stride: int = 1, lookahead: int = 0
    ) -> None:
        super().__init__()
        labels = tuple(labels)
        if bins < 1:
            raise ArgumentError(f"{config.kind}: bins: found {bins}, expected 1 or more")
        if not labels or len(set(labels)) < len(labels):
            raise ArgumentError(f"{config.kind}: labels: found {list(labels)}, expected one or more, each once")
        self.config, self.bins, self.labels = config, bins, labels
        self.stride, self.lookahead = stride, lookahead
        self.folded = False

    def init_parts(self, batch: int, *, device: torch.device | None, dtype: torch.dtype | None) -> State:
        """Return the states of the modules before the first frame."""
        raise NotImplementedError

    def run(self, frames: Tensor, parts: State, passage: Passage) -> tuple[Tensor, State]:
        """Run n > 0 steps: ``frames (B, n stride, M)`` -> logits ``(B, n, C)`` and the new states of the modules."""
        raise NotImplementedError

    def products(self) -> list[Product]:
        """Return the matrix products of one step."""
        raise NotImplementedError

    def fold(self: N) -> N:
        """Return a copy with folded batch norms; its outputs equal those of this network in evaluation."""
        raise NotImplementedError

    def init_state(
        self, batch: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> NetworkState:
        """Return the state before the first frame."""
        waiting = torch.zeros(batch, self.stride - 1, self.bins, device=device, dtype=dtype)
        zeros = torch.zeros(batch, dtype=torch.int64, device=device)
        return NetworkState(waiting, zeros, zeros.clone(), self.init_parts(batch, device=device, dtype=dtype))

    def forward(
        self, frames: Tensor, state: NetworkState | None = None, *, ends: Tensor | None = None
    ) -> NetworkOutput:
        """Run a chunk of any number of frames, zero included.

        Args:
            frames: ``(B, T, M)``.
            state: the state after the previous chunk.
            ends: ``(B,)``, the number of valid frames of each row; the later frames are padding. Outputs, gradients and
                batch-norm statistics do not depend on padding. Frames before the end that do not fill a step are
                dropped. With ``ends``, the returned state must not be used.

        Raises:
            ArgumentError: frames or ends of a wrong shape.
            StateError: a state of another network or another batch size, or rows with different numbers of waiting
                frames.
        """
        state = self._checked(frames, state)
        if ends is not None and ends.shape != frames.shape[:1]:
            raise ArgumentError(
                f"{self.config.kind}: ends: found shape {tuple(ends.shape)}, expected ({frames.shape[0]},): one a row"
            )
        held = _common(state.held) if self.stride > 1 else 0
        known = frames if held == 0 else torch.cat([state.waiting[:, self.stride - 1 - held :], frames], 1)
        steps = known.shape[1] // self.stride
        used = steps * self.stride
        if self.stride > 1:
            latest = torch.cat([state.waiting, frames], 1)
            waiting = latest[:, latest.shape[1] - (self.stride - 1) :]
            state = state._replace(waiting=waiting, held=torch.full_like(state.held, known.shape[1] - used))
        if steps == 0:
            return NetworkOutput(frames.new_zeros(frames.shape[0], 0, len(self.labels)), state, {})
        end = None if ends is None else torch.div(ends + held, self.stride, rounding_mode="floor") * self.stride
        passage = Passage(state.seen if self.lookahead else None, end)
        logits, parts = self.run(known[:, :used], state.parts, passage)
        seen = (state.seen + used).clamp(max=self.lookahead) if self.lookahead else state.seen
        return NetworkOutput(logits, state._replace(seen=seen, parts=parts), passage.rates)

    def finish(self, state: NetworkState) -> Tensor:
        """Return the remaining logits at the end of a stream, ``(B, lookahead / stride, C)``. Frames that do not fill a
        step are dropped."""
        batch = state.held.shape[0]
        if self.lookahead == 0:
            return state.waiting.new_zeros(batch, 0, len(self.labels))
        frames = torch.zeros(batch, self.lookahead, self.bins, device=state.waiting.device, dtype=state.waiting.dtype)
        return self.run(frames, state.parts, Passage(state.seen, 0))[0]

    def whole(self, frames: Tensor) -> Tensor:
        """Return the logits of whole clips without delay, ``(B, T // stride, C)``; step j is at frame ``stride j``."""
        state = self._checked(frames, None)
        steps = frames.shape[1] // self.stride
        if steps == 0:
            return frames.new_zeros(frames.shape[0], 0, len(self.labels))
        used = frames[:, : steps * self.stride]
        if self.lookahead == 0:
            return self.run(used, state.parts, Passage(clip=True))[0]
        extended = torch.cat([used, used.new_zeros(used.shape[0], self.lookahead, self.bins)], 1)
        logits = self.run(extended, state.parts, Passage(state.seen, used.shape[1], clip=True))[0]
        return logits[:, self.lookahead // self.stride :]

    @torch.no_grad()
    def calibrate(self, batches: Iterable[Tensor] | Tensor) -> dict[str, Tensor]:
        """Set the running statistics of every batch norm to their mean over ``batches`` of whole clips ``(B, T, M)``.

        Returns:
            The spike rates of the last batch.
        """
        norms = [module for module in self.modules() if isinstance(module, SequenceBatchNorm)]
        momenta, was_training = [norm.momentum for norm in norms], self.training
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
        self.train()
        rates: dict[str, Tensor] = {}
        try:
            for frames in (batches,) if isinstance(batches, Tensor) else batches:
                ends = torch.full((frames.shape[0],), frames.shape[1], device=frames.device)
                waited = functional.pad(frames, (0, 0, 0, self.lookahead))
                rates = self(waited, ends=ends if self.lookahead else None).aux
        finally:
            self.train(was_training)
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
        return rates

    @property
    def parameter_count(self) -> int:
        """Number of trainable parameters."""
        return sum(parameter.numel() for parameter in self.parameters())

    @cached_property
    def _state_shapes(self) -> list[tuple[int, ...]]:
        """Cached, because a stream of single frames checks its state at every frame."""
        return [leaf.shape[1:] for leaf in leaves(self.init_state(0, device=torch.device("cpu")))]

    def _checked(self, frames: Tensor, state: NetworkState | None) -> NetworkState:
        kind = self.config.kind
        if frames.dim() != 3 or frames.shape[2] != self.bins:
            raise ArgumentError(
                f"{kind}: frames: found shape {tuple(frames.shape)}, expected (B, T, {self.bins}): T frames of "
                f"{self.bins} bins"
            )
        if state is None:
            return self.init_state(frames.shape[0], device=frames.device, dtype=frames.dtype)
        if not isinstance(state, NetworkState):
            raise StateError(
                f"{kind}: state: found {type(state).__name__}, expected NetworkState (init_state makes one)"
            )
        found = leaves(state)
        if [leaf.shape[1:] for leaf in found] != self._state_shapes:
            raise StateError(f"{kind}: state: its parts have other shapes: it is of another network")
        sizes = {leaf.shape[0] for leaf in found}
        if sizes != {frames.shape[0]}:
            raise StateError(f"{kind}: state: found batch size {max(sizes)}, expected {frames.shape[0]}")
        return state


def _common(held: Tensor) -> int:
    counts = held.unique().tolist()
    if len(counts) > 1:
        raise StateError(
            f"state: held: found rows that wait for different numbers of frames {counts}, expected one number: "
            "start and reset rows at multiples of the stride"
        )
    return int(counts[0]) if counts else 0


def from_fields(kind: type[NetworkConfig], values: dict[str, Any]) -> NetworkConfig:
    """Read a config from the output of :meth:`NetworkConfig.to_json`, without its kind.

    Raises:
        ArgumentError: a wrong field.
    """
    return from_json(kind, values, place=kind.kind)


def step_macs(module: nn.Module, positions: int = 1) -> int:
    """Return the multiply-adds of the module's weight at ``positions`` positions."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    return math.prod(weight.shape) * positions
