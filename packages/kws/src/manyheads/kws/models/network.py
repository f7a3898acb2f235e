"""The interface of a keyword network: frames in, logits out, in chunks of any size.

    out = network(frames)                 # (B, T, M) -> out.logits (B, T', C), out.state, out.aux
    out = network(more, out.state)        # goes on; chunks joined are the whole, exactly

A step is ``stride`` frames, T' = T // stride of all frames so far; frames that do not fill a step wait in the state.
With a look-ahead of a frames the logits of step j are meant for the frames up to a before it: they come a frames late,
and those of the first a frames, meant for none, are 0. :meth:`Network.finish` gives the last ones at the end of a
stream, :meth:`Network.whole` all of a clip in place. A clip's prediction is the argmax of the mean of its logits.

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
    """All that a stream has to remember; of constant size."""

    waiting: Tensor  # (B, stride - 1, M): the latest frames, of which the last ``held`` belong to the next step
    held: Tensor  # (B,) int64, the same in all rows
    seen: Tensor  # (B,) int64: frames so far, counted up to the look-ahead
    parts: State  # of the network's modules


class NetworkOutput(NamedTuple):
    """``aux`` holds the spikes a step and neuron by site, empty where nothing spikes."""

    logits: Tensor  # (B, T', C)
    state: NetworkState
    aux: dict[str, Tensor]


class Product(NamedTuple):
    """A matrix product of one step: its multiply-adds, and the site whose spikes are its input, None for real numbers
    (such a product stays dense)."""

    name: str
    macs: int
    source: str | None


class Passage:
    """The context of one call: start and end of the streams relative to their chunk, and the measured spike rates.

    ``seen (B,)`` counts the frames before the chunk, up to the look-ahead; None where nothing comes late. ``end``, an
    int or ``(B,)``, is the first frame of the chunk that is beyond a stream's end; None where they go on.
    """

    def __init__(self, seen: Tensor | None = None, end: Tensor | int | None = None, *, clip: bool = False) -> None:
        self.seen, self.end = seen, end  # both None: all frames are real
        self.clip = clip  # the stream begins and ends here: nobody asks for the states
        self.rates: dict[str, Tensor] = {}
        self._known: dict[tuple[int, int, int], Tensor | None] = {}  # every site of a stage asks the same

    def real(self, steps: int, delay: int, rate: int) -> Tensor | None:
        """``(B, steps)`` bool, True where a step of ``rate`` frames that is ``delay`` frames late lies in the stream;
        None where all do."""
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
        """The frames with 0 where they lie outside of the stream, whatever stood there."""
        return _zeroed(frames, self.real(frames.shape[1], 0, 1))

    def blank(self, x: Tensor, delay: int, rate: int) -> Tensor:
        """``x (B, T, …)`` with 0 where the step lies outside of the stream. Without a look-ahead ``x`` as it is: no
        step of a stream sees one beyond its end."""
        return x if self.seen is None else _zeroed(x, self.real(x.shape[1], delay, rate))


def _zeroed(x: Tensor, real: Tensor | None) -> Tensor:
    return x if real is None else x.masked_fill(~real.view(*real.shape, *[1] * (x.dim() - 2)), 0.0)


@dataclass(frozen=True)
class NetworkConfig:
    """Describes a network but for what the data decide; JSON-able."""

    kind: ClassVar[str] = ""

    def make(self, bins: int, labels: Sequence[str]) -> Network:
        """The network for so many bins and these labels."""
        raise NotImplementedError

    def build(self, splits: Splits) -> Network:
        """The network for some data, whose facts name ``bins`` and ``labels``."""
        return self.make(int(splits.facts["bins"]), tuple(splits.facts["labels"]))

    def renamed(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of a saved network under the names of this version."""
        return dict(tensors)

    def to_json(self) -> dict[str, Any]:
        """``{"kind": …, field: value}``; :func:`manyheads.kws.models.config_from_json` reads it."""
        return {"kind": self.kind, **asdict(self)}


N = TypeVar("N", bound="Network")


class Network(nn.Module):
    """Base of the keyword networks. A subclass has modules, sets ``stride`` and ``lookahead``, and implements
    :meth:`init_parts`, :meth:`run` and :meth:`products`.

    Args:
        config: what it was made from.
        bins: M.
        labels: the words, in the order of the logits.
        stride: frames a step.
        lookahead: frames that an output waits for.

    Raises:
        ArgumentError: no bins; labels that are none or repeat.
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
        """The states of the modules before the first frame."""
        raise NotImplementedError

    def run(self, frames: Tensor, parts: State, passage: Passage) -> tuple[Tensor, State]:
        """``frames (B, n stride, M)``, n above 0 -> logits ``(B, n, C)`` and the parts."""
        raise NotImplementedError

    def products(self) -> list[Product]:
        """The matrix products of one step."""
        raise NotImplementedError

    def fold(self: N) -> N:
        """A copy for evaluation without batch norm, equal to this network in evaluation."""
        raise NotImplementedError

    def init_state(
        self, batch: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> NetworkState:
        """Before the first frame."""
        waiting = torch.zeros(batch, self.stride - 1, self.bins, device=device, dtype=dtype)
        zeros = torch.zeros(batch, dtype=torch.int64, device=device)
        return NetworkState(waiting, zeros, zeros.clone(), self.init_parts(batch, device=device, dtype=dtype))

    def forward(
        self, frames: Tensor, state: NetworkState | None = None, *, ends: Tensor | None = None
    ) -> NetworkOutput:
        """Any number of frames, none included.

        ``ends (B,)`` are the frames of this call after which each stream is over: the later ones are padding, which no
        output, no gradient and no statistic of batch norm reads; those that do not fill a step are let go. Before its
        end a stream gives what it would give alone. The state is then of no use.

        Raises :class:`ArgumentError` for frames of another shape, :class:`StateError` for the state of another network
        or batch, and for rows that wait for different numbers of frames.
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
        """At the end of a stream the logits still owed, ``(B, lookahead / stride, C)``; frames that do not fill a step
        are let go."""
        batch = state.held.shape[0]
        if self.lookahead == 0:
            return state.waiting.new_zeros(batch, 0, len(self.labels))
        frames = torch.zeros(batch, self.lookahead, self.bins, device=state.waiting.device, dtype=state.waiting.dtype)
        return self.run(frames, state.parts, Passage(state.seen, 0))[0]

    def whole(self, frames: Tensor) -> Tensor:
        """The logits of whole clips in place, ``(B, T // stride, C)``: step j is that of frame ``stride j``."""
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
        """Sets the running statistics of every batch norm to those of ``batches`` of ``(B, T, M)``, averaged over
        them, each of its rows a whole clip, and gives the spike rates of the last one."""
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
        """Trained numbers."""
        return sum(parameter.numel() for parameter in self.parameters())

    @cached_property
    def _state_shapes(self) -> list[tuple[int, ...]]:
        """Found once, as a stream of single frames is checked at every one."""
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
    """A config from what :meth:`NetworkConfig.to_json` wrote, without its kind. Raises :class:`ArgumentError`."""
    return from_json(kind, values, place=kind.kind)


def step_macs(module: nn.Module, positions: int = 1) -> int:
    """Multiply-adds of a product with the module's weight at so many places."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    return math.prod(weight.shape) * positions
