"""Streaming keyword spotter with constant memory: ``KeywordSpotter.load("spotter.safetensors").stream(chunk)``."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from manyheads.core import state as states
from manyheads.core.errors import ArgumentError, ManyheadsWarning
from manyheads.kws.audio.features import Features, LogMel, RunningMean, SampleState
from manyheads.kws.streaming.background import background, follow, no_background
from manyheads.kws.streaming.detection import Detection, Rule, Smoother, Trigger, keywords_of
from manyheads.kws.streaming.spotter_file import read_spotter, write_spotter
from manyheads.kws.streaming.stream_state import Group, Heard, Prediction, StreamState, Surround, joined, samples_of

if TYPE_CHECKING:
    from manyheads.kws.models.network import Network

# Seconds of audio processed at once. Bounds the memory of a long chunk.
PIECE = 10.0
# Seconds of background noise, beyond the look-ahead, added at the end of a stream to detect its last word.
AFTER = 0.5


class RejectionWarning(ManyheadsWarning):
    """Warning: a stream is given to a network that has no label for other words or sounds."""


class KeywordSpotter:
    """Keyword spotter: a network, its input features, and the rule that turns its logits into detections.

    Before the first sample the network is fed the same quiet frames as before a training clip. They are not part of the
    stream: times count from its first sample.

    Args:
        network: maps frames to logits.
        features: log-mel features; ``features.sample_rate`` is the sample rate of the chunks in Hz.
        tau: time constant of the running mean that is subtracted from each mel bin, in frames.
        rule: smoothing, threshold and refractory time. By default labels that begin with an underscore are not
            reported.
        streams: number of streams in one batch.
        surround: quiet frames around a clip, as in training. A stream begins and ends with them.
        trained: facts about the training; stored in the spotter file.

    Raises:
        ArgumentError: another number of mel bins than the network's, a bad rule, fewer than one stream.
    """

    def __init__(
        self,
        network: Network,
        features: Features,
        *,
        tau: float = 50.0,
        rule: Rule | None = None,
        streams: int = 1,
        surround: Surround | None = None,
        trained: Mapping[str, Any] | None = None,
    ) -> None:
        if network.bins != features.bins:
            raise ArgumentError(f"features: found {features.bins} bins, the network reads {network.bins}")
        if streams < 1:
            raise ArgumentError(f"streams: found {streams}, expected 1 or more")
        self.network, self.features, self.tau = network.eval(), features, tau
        self.surround, self.trained, self.streams = surround or Surround(), dict(trained or {}), streams
        self._warned = False
        parameter = next(network.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype
        self.log_mel = LogMel(features).to(self.device)
        self.running_mean = RunningMean(tau).to(self.device)
        unreported = tuple(label for label in network.labels if label.startswith("_"))
        self.rule = rule or Rule(background=unreported)

    @classmethod
    def from_network(cls, network: Network, features: Features, **others: Any) -> KeywordSpotter:
        """Build a spotter from a network; same arguments as the class."""
        return cls(network, features, **others)

    @classmethod
    def load(cls, path: str | Path, *, labels: Sequence[str] | None = None, **changes: Any) -> KeywordSpotter:
        """Load a spotter that :meth:`save` wrote.

        ``changes`` are ``streams`` or fields of the rule, such as ``threshold``.

        Raises :class:`CheckpointError` for a file that is no spotter, has another version, or has other labels than
        ``labels``.
        """
        return read_spotter(path, cls, labels=labels, **changes)

    def save(self, path: str | Path) -> None:
        """Write one safetensors file with JSON in its header. The write is atomic; nothing is pickled."""
        write_spotter(self, path)

    @property
    def labels(self) -> tuple[str, ...]:
        return self.network.labels

    @property
    def keywords(self) -> list[str]:
        """Labels that are reported."""
        return [label for label in self.labels if label not in self.rule.background]

    @property
    def sample_rate(self) -> int:
        return self.features.sample_rate

    @property
    def rejects(self) -> bool:
        """Whether the spotter has a label for other sounds, that is one that is never reported."""
        return bool(self.rule.background)

    @property
    def rejection_note(self) -> str:
        """Warning about false alarms on a stream; empty for a spotter that rejects other sounds."""
        if self.rejects:
            return ""
        return (
            f"labels: found no label for other sounds beside {', '.join(self.labels[:4])}"
            f"{', …' if len(self.labels) > 4 else ''}, expected one such as _other_: every sound of a stream is taken "
            "for one of them: train a spotter that rejects (manyheads kws train arabic-spotter data.set=FOLDER)"
        )

    @property
    def step_seconds(self) -> float:
        """Seconds between two outputs."""
        return self.network.stride * self.features.hop_samples / self.sample_rate

    @property
    def lookahead_seconds(self) -> float:
        """Seconds of audio after a frame that its output needs."""
        return self.network.lookahead * self.features.hop_samples / self.sample_rate

    @property
    def rule(self) -> Rule:
        return self._rule

    @rule.setter
    def rule(self, rule: Rule) -> None:
        """Set the rule and reset all streams."""
        self._rule = rule.check()
        self._keywords = keywords_of(self.labels, rule.background)
        # With a look-ahead, the first outputs belong to no frame of the stream.
        self._delay = self.network.lookahead // self.network.stride
        self._smoother = Smoother(round(rule.smoothing / self.step_seconds), rule.scores, skip=self._delay)
        self.reset()

    def change_rule(self, **changes: Any) -> None:
        """Change fields of the rule and reset all streams."""
        self.rule = replace(self.rule, **changes)

    def triggers(self, count: int, threshold: float | None = None) -> list[Trigger]:
        """Return one new :class:`Trigger` for each of ``count`` streams."""
        refractory = round(self.rule.refractory / self.step_seconds)
        level = self.rule.threshold if threshold is None else threshold
        return [Trigger(level, refractory, self._keywords) for _ in range(count)]

    def reset(self, streams: int | Iterable[int] | None = None) -> None:
        """Reset these streams, or all by default. The other streams are not affected.

        Raises :class:`ArgumentError` for a stream that does not exist.
        """
        if streams is None:
            self._groups = [Group(list(range(self.streams)), self._initial_state(self.streams))]
            self._triggers, self._received = self.triggers(self.streams), [0] * self.streams
            return
        rows = [streams] if isinstance(streams, int) else sorted(set(streams))
        for row in rows:
            if not 0 <= row < self.streams:
                raise ArgumentError(f"streams: found {row}, expected 0 to {self.streams - 1}")
            self._triggers[row].reset()
            self._received[row] = 0
        # Take the reset rows out of their groups; they form a new group, because their hop boundaries differ.
        groups = []
        for group in self._groups:
            kept = [index for index, row in enumerate(group.rows) if row not in rows]
            if kept:
                state = states.select(group.state, torch.tensor(kept, device=self.device))
                groups.append(Group([group.rows[index] for index in kept], state))
        self._groups = [*groups, Group(rows, self._initial_state(len(rows)))] if rows else groups

    def stream(self, chunk: Any, sample_rate: int | None = None) -> list[Detection]:
        """Process the next chunk of every stream and return its detections in the order of time.

        Args:
            chunk: ``(N,)`` samples of a single stream, or ``(streams, N)``: floats in [-1, 1] or int16 or int32 at full
                scale. N is any number; samples that do not fill a hop are kept for the next chunk.
            sample_rate: sample rate of the chunk in Hz, if known; it is checked.

        Raises:
            ArgumentError: another shape or rate, samples that are masked or not finite, floats far beyond [-1, 1].

        Warns :class:`RejectionWarning` once if the network has no label for other sounds.
        """
        self._warn()
        return self._process(self._samples(chunk, sample_rate), None)

    def hear(self, chunk: Any, sample_rate: int | None = None) -> tuple[list[Detection], list[Heard]]:
        """Process the next chunk like :meth:`stream`; also return the scores of each stream."""
        self._warn()
        parts: list[list[Heard]] = [[] for _ in range(self.streams)]
        detections = self._process(self._samples(chunk, sample_rate), parts)
        return detections, [joined(row) for row in parts]

    @torch.no_grad()
    def finish(self) -> list[Detection]:
        """End all streams, return the remaining detections (such as a word at the very end), and reset.

        The network is fed half a second of the stream's own background noise, or of the quiet of training if the stream
        had no background. A detection in it gets the time of the end of the stream.
        """
        count = round(AFTER * self.sample_rate / self.features.hop_samples) + self.network.lookahead
        detections: list[Detection] = []
        for group in self._groups:
            frames = background(group.state.background, self._quiet(len(group.rows), count))
            detections += self._process_frames(group, frames, group.state.samples, None)
        self.reset()
        return sorted(detections, key=lambda found: (found.time, found.stream))

    def detect(self, samples: Any, sample_rate: int | None = None) -> list[Detection]:
        """Return all detections in a recording ``(N,)``.

        The recording is a separate stream: those of :meth:`stream` are not affected. Raises and warns like
        :meth:`stream`.
        """
        self._warn()
        single = self._single_stream()
        return single._process(single._samples(samples, sample_rate), None) + single.finish()

    def detect_file(self, path: str | Path) -> list[Detection]:
        """Return all detections in a sound file. Other sample rates are resampled and channels averaged.

        Raises :class:`DataError` for a file that is not audio.
        """
        from manyheads.kws.audio.reading import read_sound

        return self.detect(read_sound(path, self.sample_rate).samples)

    def scores(self, samples: Any, sample_rate: int | None = None) -> Heard:
        """Return the scores of a recording ``(N,)`` as a separate stream; those of :meth:`stream` are not affected."""
        single, parts = self._single_stream(), [[]]
        single._process(single._samples(samples, sample_rate), parts)
        return joined(parts[0])

    @torch.no_grad()
    def clip_frames(self, samples: np.ndarray) -> Tensor:
        """Return the log-mel frames ``(B, T, M)`` of clips ``(B, N)`` of one length, running mean subtracted.

        The quiet frames of training are added before and after.
        """
        frames = self.log_mel(torch.from_numpy(np.ascontiguousarray(samples, np.float32)).to(self.device))[0]
        lead, trail = (self._quiet(len(frames), count) for count in (self.surround.lead, self.surround.trail))
        return self.running_mean(torch.cat([lead, frames, trail], 1))[0].to(self.dtype)

    @torch.no_grad()
    def clip_logits(self, samples: np.ndarray) -> Tensor:
        """Return the logits ``(B, T, C)`` of clips ``(B, N)`` of one length, each from a fresh state.

        Step 0 is known :meth:`time_of_clip` (0) seconds after the first sample of the clip.
        """
        return self.network.whole(self.clip_frames(samples))

    def predict(self, samples: Any, sample_rate: int | None = None, *, notes: tuple[str, ...] = ()) -> Prediction:
        """Classify a clip ``(N,)``: the label with the largest mean logit over time.

        Raises :class:`ArgumentError` like :meth:`stream`, and for a clip too short for one output.
        """
        logits = self.clip_logits(self._samples(samples, sample_rate, 1).cpu().numpy())[0]
        if not len(logits):
            raise ArgumentError(f"samples: found too few for one output, expected at least {self.time_of(0):.3f} s")
        mean = logits.float().mean(0)
        scores = (mean.sigmoid() if self.rule.scores == "sigmoid" else mean.softmax(0)).tolist()
        best = int(mean.argmax())
        return Prediction(self.labels[best], scores[best], dict(zip(self.labels, scores, strict=True)), notes)

    def predict_file(self, path: str | Path) -> Prediction:
        """Classify the clip in a sound file.

        Other sample rates are resampled and channels averaged; the notes of the result mention it.

        Raises :class:`DataError` for a file that is not audio.
        """
        from manyheads.kws.audio.reading import read_sound

        sound = read_sound(path, self.sample_rate)
        return self.predict(sound.samples, notes=sound.notes)

    def time_of(self, step: int) -> float:
        """Return the end of the last frame of output ``step``, in seconds of audio.

        With a look-ahead the output is known ``lookahead_seconds`` later.
        """
        features = self.features
        frame = (step + 1) * self.network.stride - 1
        return (frame * features.hop_samples + features.window_samples) / self.sample_rate

    def time_of_clip(self, step: int) -> float:
        """Return :meth:`time_of` for a clip with quiet before it: below 0 if the output covers the quiet alone."""
        return self.time_of(step) - self.surround.lead * self.features.hop_samples / self.sample_rate

    @property
    def nbytes(self) -> int:
        """Size of the stream states in bytes."""
        return sum(states.nbytes(group.state) for group in self._groups)

    @torch.no_grad()
    def _process(self, samples: Tensor, keep: list[list[Heard]] | None) -> list[Detection]:
        self._merge()
        # Count the samples first: the latency of a detection depends on the whole chunk.
        self._received = [count + samples.shape[1] for count in self._received]
        detections: list[Detection] = []
        for piece in samples.split(int(PIECE * self.sample_rate), 1) if samples.shape[1] else (samples,):
            for group in self._groups:
                # Samples to log-mel frames; the background tracks them before the running mean is subtracted.
                frames, sample_state = self.log_mel(piece[group.rows], group.state.samples)
                group.state = group.state._replace(background=follow(frames, group.state.background))
                detections += self._process_frames(group, frames, sample_state, keep)
        return sorted(detections, key=lambda found: (found.time, found.stream))

    def _process_frames(
        self, group: Group, frames: Tensor, samples: SampleState, keep: list[list[Heard]] | None
    ) -> list[Detection]:
        """Return the detections in the next frames ``(B, T, M)`` of a group, and advance its state."""
        before = group.state.smooth.steps.tolist()
        # Subtract the running mean of each mel bin, then run the network.
        frames, mean = self.running_mean(frames, group.state.mean)
        logits, network = self.network(frames.to(self.dtype), group.state.network)[:2]
        # With a look-ahead, the first outputs belong to no frame of the stream: keep them out of the average.
        if self._delay:
            at = group.state.smooth.steps.unsqueeze(1) + torch.arange(logits.shape[1], device=self.device)
            logits = logits.masked_fill((at < self._delay).unsqueeze(2), 0.0)
        # Moving average of the logits, then softmax or sigmoid.
        scores, smooth = self._smoother(logits, group.state.smooth)
        group.state = StreamState(samples, group.state.background, mean, network, smooth)
        logits_BTC, scores_BTC = (tensor.float().cpu().numpy() for tensor in (logits, scores))
        detections: list[Detection] = []
        for index, row in enumerate(group.rows):
            # Number of the first real output in this chunk, and how many outputs before it belong to no frame.
            first, skipped = max(0, before[index] - self._delay), max(0, self._delay - before[index])
            steps = scores_BTC[index, skipped:]
            detections += self._detect(row, steps, first)
            if keep is not None:
                times = self.time_of(first) + np.arange(len(steps)) * self.step_seconds
                keep[row].append(Heard(times, steps, logits_BTC[index, skipped:]))
        return detections

    def _detect(self, row: int, scores: np.ndarray, first: int) -> list[Detection]:
        received = self._received[row] / self.sample_rate
        events = self._triggers[row](scores, first)
        # Frames added by finish() lie after the end of the stream: their detections get the time of the end.
        times = [min(self.time_of(event.step), received) for event in events]
        return [
            Detection(self.labels[event.label], time, event.score, received - time, row)
            for event, time in zip(events, times, strict=True)
        ]

    def _quiet(self, batch: int, count: int) -> Tensor:
        """Return log-mel frames ``(B, count, M)`` of the quiet around training clips."""
        lines = torch.full((self.features.fft_samples // 2 + 1,), self.surround.power, device=self.device)
        return self.log_mel.log_mel(lines).expand(batch, count, -1)

    @torch.no_grad()
    def _initial_state(self, streams: int) -> StreamState:
        """Return the state after the quiet frames before a clip, in whole steps of the network, as in training."""
        at: dict[str, Any] = {"device": self.device}
        lead = self._quiet(streams, self.surround.lead // self.network.stride * self.network.stride)
        frames, mean = self.running_mean(lead, self.running_mean.init_state(streams, self.features.bins, **at))
        network = self.network.init_state(streams, **at, dtype=self.dtype)
        return StreamState(
            self.log_mel.init_state(streams, **at),
            no_background(streams, self.features.bins, **at),
            mean,
            self.network(frames.to(self.dtype), network).state,
            self._smoother.init_state(streams, len(self.labels), **at, dtype=self.dtype),
        )

    def _single_stream(self) -> KeywordSpotter:
        """Return a spotter with the same network and rule, and one fresh stream."""
        return KeywordSpotter(self.network, self.features, tau=self.tau, rule=self.rule, surround=self.surround)

    def _warn(self) -> None:
        if not self._warned and self.rejection_note:
            warnings.warn(self.rejection_note, RejectionWarning, stacklevel=3)
        self._warned = True

    def _merge(self) -> None:
        """Join groups of streams that hold the same number of waiting samples and frames into one batch."""
        if len(self._groups) < 2:
            return
        alike: dict[tuple[int, int], list[Group]] = {}
        for group in self._groups:
            alike.setdefault((group.state.samples.samples.shape[1], int(group.state.network.held[0])), []).append(group)
        self._groups = [
            Group([row for g in groups for row in g.rows], states.concat([g.state for g in groups]))
            if len(groups) > 1
            else groups[0]
            for groups in alike.values()
        ]

    def _samples(self, chunk: Any, sample_rate: int | None, streams: int | None = None) -> Tensor:
        count = self.streams if streams is None else streams
        return samples_of(chunk, sample_rate, streams=count, expected_rate=self.sample_rate, device=self.device)
