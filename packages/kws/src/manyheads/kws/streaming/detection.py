"""Turn logits into detections: smoothing, threshold and refractory time, with a state of constant size.

With C labels, logits ``z[t]`` and a smoothing window of W steps (fewer at the start):

    p[t] = softmax(mean of z[t - W + 1 .. t])

A keyword is detected at step t if all of these hold:

- its score ``p[t]`` is the largest of all keywords and at least the threshold,
- the refractory time since the previous detection has passed,
- its score has fallen below the threshold since its own last detection, so that one long word is one detection.

Shapes: B streams, T steps, C labels.
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
    """Detection rule: when a score becomes a detection. Times are seconds of audio."""

    threshold: float = 0.8
    """Lowest score of a detection, from 0 to 1. Above 1 nothing is detected."""
    smoothing: float = 0.3
    """Window over which the logits are averaged."""
    refractory: float = 1.0
    """Time after a detection without another one."""
    background: tuple[str, ...] = ()
    """Labels that are never reported, such as silence."""
    scores: Literal["softmax", "sigmoid"] = "softmax"
    """Function from averaged logits to scores."""

    def check(self) -> Rule:
        """Return the rule itself. Raises :class:`ArgumentError` for values out of range."""
        if not self.threshold >= 0:
            raise ArgumentError(f"threshold: found {self.threshold}, expected 0 or more")
        for name, seconds in (("smoothing", self.smoothing), ("refractory", self.refractory)):
            if not 0 <= seconds < float("inf"):
                raise ArgumentError(f"{name}: found {seconds}, expected 0 or more seconds")
        return self


@dataclass(frozen=True)
class Detection:
    """One detected keyword."""

    label: str
    time: float
    """End of the deciding frame, in seconds since the start of the stream or its last reset."""
    score: float
    """Smoothed score, from 0 to 1."""
    latency: float
    """Seconds of audio received after ``time`` when the detection was reported: look-ahead and rest of the chunk."""
    stream: int = 0

    def __str__(self) -> str:
        prefix = f"stream {self.stream}  " if self.stream else ""
        return f"{prefix}{self.time:9.2f} s  {self.label:<12}  {self.score:.2f}"


class SmoothState(NamedTuple):
    """Logits in the smoothing window."""

    window: Tensor  # (B, W - 1, C)
    steps: Tensor  # (B,) int64, steps so far


class Smoother:
    """Moving average of the logits over ``window`` steps, and the scores from it.

    The first ``skip`` logits of a stream must be 0; they are not counted in the average.
    """

    def __init__(self, window: int, scores: str = "softmax", *, skip: int = 0) -> None:
        self.window, self.scores, self.skip = max(1, window), scores, skip

    def init_state(self, batch: int, labels: int, *, device=None, dtype=None) -> SmoothState:
        window = torch.zeros(batch, self.window - 1, labels, device=device, dtype=dtype)
        return SmoothState(window, torch.zeros(batch, dtype=torch.int64, device=device))

    def __call__(self, logits: Tensor, state: SmoothState) -> tuple[Tensor, SmoothState]:
        """Return scores ``(B, T, C)`` of logits ``(B, T, C)``, and the new state."""
        steps = logits.shape[1]
        known = torch.cat([state.window, logits], 1)
        after = SmoothState(known[:, steps:], state.steps + steps)
        if steps == 0:
            return logits, after
        # Number of logits in each window: smaller than W at the start of a stream.
        at = state.steps.unsqueeze(1) + torch.arange(1, steps + 1, device=logits.device)
        counted = (at - self.skip).clamp(min=1, max=self.window).unsqueeze(2).to(logits.dtype)
        mean = known.unfold(1, self.window, 1).sum(-1) / counted
        return (mean.sigmoid() if self.scores == "sigmoid" else mean.softmax(-1)), after


class Event(NamedTuple):
    """A detection by step number and label index."""

    step: int
    label: int
    score: float


class Trigger:
    """Threshold, refractory time and re-arming of one stream."""

    def __init__(self, threshold: float, refractory: int, keywords: Sequence[int]) -> None:
        self.threshold, self.refractory, self.keywords = threshold, refractory, list(keywords)
        self.reset()

    def reset(self) -> None:
        # First step that may detect again.
        self._first_allowed = 0
        # Label of the last detection, as long as its score has not fallen below the threshold.
        self._held: int | None = None

    def __call__(self, scores: np.ndarray, first: int) -> list[Event]:
        """Return the detections in ``scores (T, C)``, whose first row is step ``first``.

        The steps must continue where the last call ended.
        """
        events: list[Event] = []
        if not self.keywords:
            return events
        # Best keyword of each step, and whether it reaches the threshold.
        chosen = scores[:, self.keywords]
        best = chosen.argmax(1)
        high = chosen[np.arange(len(chosen)), best] >= self.threshold
        if self._held is None and not high.any():
            return events
        for offset in range(len(scores)):
            # Re-arm the label of the last detection once its score has fallen.
            if self._held is not None and scores[offset, self._held] < self.threshold:
                self._held = None
            if not high[offset]:
                continue
            step, label = first + offset, self.keywords[best[offset]]
            if step >= self._first_allowed and label != self._held:
                events.append(Event(step, label, float(scores[offset, label])))
                self._first_allowed, self._held = step + self.refractory, label
        return events


def keywords_of(labels: Sequence[str], background: Iterable[str]) -> list[int]:
    """Return the indices of the labels that are reported: all but ``background``.

    Raises :class:`ArgumentError` for a background label that is not in ``labels``.
    """
    background = tuple(background)
    unknown = [name for name in background if name not in labels]
    if unknown:
        raise ArgumentError(f"background: found {unknown[0]!r}, expected some of {', '.join(labels)}")
    return [index for index, label in enumerate(labels) if label not in background]
