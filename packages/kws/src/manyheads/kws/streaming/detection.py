"""From logits to detections: smoothing, a threshold, a refractory time, all with a state of constant size.

With C labels, logits ``z[t]`` and a window of W steps (fewer at the start):

    p[t] = softmax(mean of z[t - W + 1 .. t])

A label is detected at step t where its ``p[t]`` is the largest of all keywords and at least the threshold, the
refractory time since the detection before has passed, and its score has been below the threshold since it was last
detected (one word that is held long is one detection). Shapes: B streams, T steps, C labels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from manyheads.core.errors import ArgumentError


@dataclass(frozen=True)
class Rule:
    """When a score becomes a detection; times in seconds of audio."""

    threshold: float = 0.8
    """From 0 to 1; above 1 nothing is ever detected."""
    smoothing: float = 0.3
    """Window over which the logits are averaged."""
    refractory: float = 1.0
    """After a detection none is reported for so long."""
    background: tuple[str, ...] = ()
    """Labels that are never reported, such as silence."""
    scores: Literal["softmax", "sigmoid"] = "softmax"
    """What turns averaged logits into scores."""

    def check(self) -> Rule:
        """Itself. Raises :class:`ArgumentError`."""
        if not self.threshold >= 0:
            raise ArgumentError(f"threshold: found {self.threshold}, expected 0 or more")
        for name, seconds in (("smoothing", self.smoothing), ("refractory", self.refractory)):
            if not 0 <= seconds < float("inf"):
                raise ArgumentError(f"{name}: found {seconds}, expected 0 or more seconds")
        return self


@dataclass(frozen=True)
class Detection:
    """A keyword was heard."""

    label: str
    time: float
    """Seconds since the start of the stream (or its last reset): the end of the frame that decided."""
    score: float
    """Smoothed, from 0 to 1."""
    latency: float
    """Seconds of audio that had come in beyond ``time`` when it was reported: look-ahead, and the rest of the chunk."""
    stream: int = 0

    def __str__(self) -> str:
        where = f"stream {self.stream}  " if self.stream else ""
        return f"{where}{self.time:9.2f} s  {self.label:<12}  {self.score:.2f}"


class SmoothState(NamedTuple):
    """The logits that later means still need."""

    window: Tensor  # (B, W - 1, C)
    steps: Tensor  # (B,) int64, steps so far


class Smoother:
    """Running mean of logits over a window of steps, and the scores made of it; the first ``skip`` logits of a stream
    are 0 and not counted."""

    def __init__(self, window: int, scores: str = "softmax", *, skip: int = 0) -> None:
        self.window, self.scores, self.skip = max(1, window), scores, skip

    def init_state(self, batch: int, labels: int, *, device=None, dtype=None) -> SmoothState:
        window = torch.zeros(batch, self.window - 1, labels, device=device, dtype=dtype)
        return SmoothState(window, torch.zeros(batch, dtype=torch.int64, device=device))

    def __call__(self, logits: Tensor, state: SmoothState) -> tuple[Tensor, SmoothState]:
        """Logits ``(B, T, C)`` -> scores ``(B, T, C)`` and the state."""
        steps = logits.shape[1]
        known = torch.cat([state.window, logits], 1)
        after = SmoothState(known[:, steps:], state.steps + steps)
        if steps == 0:
            return logits, after
        at = state.steps.unsqueeze(1) + torch.arange(1, steps + 1, device=logits.device)
        counted = (at - self.skip).clamp(min=1, max=self.window).unsqueeze(2).to(logits.dtype)
        mean = known.unfold(1, self.window, 1).sum(-1) / counted
        return (mean.sigmoid() if self.scores == "sigmoid" else mean.softmax(-1)), after


class Event(NamedTuple):
    """A detection in steps and indices."""

    step: int
    label: int
    score: float


class Trigger:
    """Threshold, refractory time and release of one stream."""

    def __init__(self, threshold: float, refractory: int, keywords: Sequence[int]) -> None:
        self.threshold, self.refractory, self.keywords = threshold, refractory, list(keywords)
        self.reset()

    def reset(self) -> None:
        self._quiet_until = 0  # the first step that may detect
        self._held: int | None = None  # the label of the last detection while its score stays up

    def __call__(self, scores: np.ndarray, first: int) -> list[Event]:
        """``scores (T, C)`` of the steps from ``first`` on, which go on where the last call ended."""
        events: list[Event] = []
        if not self.keywords:
            return events
        chosen = scores[:, self.keywords]
        best = chosen.argmax(1)
        high = chosen[np.arange(len(chosen)), best] >= self.threshold
        if self._held is None and not high.any():
            return events
        for offset in range(len(scores)):
            if self._held is not None and scores[offset, self._held] < self.threshold:
                self._held = None
            if not high[offset]:
                continue
            step, label = first + offset, self.keywords[best[offset]]
            if step >= self._quiet_until and label != self._held:
                events.append(Event(step, label, float(scores[offset, label])))
                self._quiet_until, self._held = step + self.refractory, label
        return events


def keywords_of(labels: Sequence[str], background: Iterable[str]) -> list[int]:
    """The indices of the labels that are reported. Raises :class:`ArgumentError` for a background that is no label."""
    background = tuple(background)
    unknown = [name for name in background if name not in labels]
    if unknown:
        raise ArgumentError(f"background: found {unknown[0]!r}, expected some of {', '.join(labels)}")
    return [index for index, label in enumerate(labels) if label not in background]
