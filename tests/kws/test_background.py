"""Background noise of a stream: the quietest window against brute force, in any chunks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from manyheads.core import state as states
from manyheads.kws.streaming.background import BELOW, FRAMES, background, follow, no_background

BINS = 6
RANDOM = np.random.default_rng(0)
LOG_MEL = torch.from_numpy(
    RANDOM.normal(size=(3, 160, BINS)) + 4 * np.sin(np.arange(160) / [[9], [15], [22]])[..., None]
)


def heard(frames, sizes):
    state = no_background(len(frames), BINS, dtype=frames.dtype)
    for part in frames.split(sizes, 1):
        state = follow(part, state)
    return state


@pytest.mark.parametrize("sizes", [160, 1, 7, 60])
def test_background_is_the_quietest_window(sizes):
    state = heard(LOG_MEL, sizes)
    for row, frames in enumerate(LOG_MEL):
        windows = [frames[start : start + FRAMES] for start in range(160 - FRAMES + 1)]
        quietest = min(windows, key=lambda window: window.mean())
        torch.testing.assert_close(state.frames[row], quietest)
        torch.testing.assert_close(state.level[row], quietest.mean())
        torch.testing.assert_close(state.peak[row], max(window.mean() for window in windows))


def test_streams_with_different_starts_do_not_affect_each_other():
    early, late = heard(LOG_MEL[:1, :90], 90), heard(LOG_MEL[1:2, :11], 11)
    both = follow(LOG_MEL[:2, 90:130], states.concat([early, late]))
    alone = follow(LOG_MEL[1:2, 90:130], late)
    for found, expected in zip(states.leaves(both), states.leaves(alone), strict=True):
        torch.testing.assert_close(found[1:], expected)


def test_stream_without_background_ends_in_the_quiet_of_training():
    """Three cases: too short for a window; constant level, possibly speech throughout; digital silence."""
    quiet = torch.full((1, 40, BINS), -8.0, dtype=torch.float64)
    loud = torch.full((1, 60, BINS), 2.0, dtype=torch.float64)
    silence = torch.full((1, 60, BINS), -16.0, dtype=torch.float64)
    for frames in (loud[:, : FRAMES - 1], loud, loud + 0.9 * BELOW * (torch.arange(60) < 30).view(1, -1, 1)):
        assert torch.equal(background(heard(frames, 60), quiet), quiet)
    assert torch.equal(background(heard(torch.cat([silence, loud], 1), 60), quiet), quiet)


def test_a_background_is_repeated_to_the_length_of_the_quiet():
    quiet = torch.full((3, 2 * FRAMES + 4, BINS), -30.0, dtype=torch.float64)
    state = heard(LOG_MEL, 160)
    found = background(state, quiet)
    torch.testing.assert_close(found, torch.cat([state.frames, state.frames, state.frames[:, :4]], 1))
