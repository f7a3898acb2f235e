"""Recordings: triples and observations inside an episode, held-out episodes, the file."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from manyheads.core.errors import ArgumentError, CheckpointError, DataError
from manyheads.rl.pretraining.data import RecordingData, TriplePart
from manyheads.rl.pretraining.recording import Recording

from .play import moving_ball


@pytest.mark.parametrize(("stack", "gap"), [(3, 3), (1, 1), (4, 2), (3, 0)])
def test_a_triple_reads_frames_of_one_episode_and_every_such_centre_is_used(stack, gap):
    play = moving_ball()
    centres = play.centres(stack=stack, gap=gap)
    whole = [
        t
        for t in range(len(play))
        if t - gap - stack + 1 >= 0
        and t + gap < len(play)
        and len({int(e) for e in play.episodes[t - gap - stack + 1 : t + gap + 1]}) == 1
    ]
    assert centres.tolist() == whole


def test_the_first_and_the_last_centre_touch_the_ends_of_their_episode():
    play = moving_ball((20, 30))
    first = play.centres(stack=3, gap=3, episodes=np.array([1]))
    assert (first[0], first[-1]) == (20 + 3 + 2, 50 - 1 - 3)
    batch = TriplePart(play, first, 3).batch(torch.tensor([0, len(first) - 1]))
    assert batch.shape == (2, 3, 3, 14, 14)
    assert (batch[0, 0, 0].numpy() == play.frames[20]).all()
    assert (batch[1, 2, 2].numpy() == play.frames[49]).all()


def test_an_episode_shorter_than_a_triple_gives_none():
    play = moving_ball((8, 30, 3))
    assert set(play.episodes[play.centres(stack=3, gap=3)]) == {1}


def test_an_observation_ends_at_its_frame():
    play = moving_ball((20,))
    (seen,) = play.observations(np.array([7]), stack=3)
    assert (seen == play.frames[5:8]).all()


def test_held_out_episodes_are_the_last_ones_with_at_least_their_share():
    play = moving_ball((40, 9, 60, 55, 50))
    fitted, held = play.split(0.25)
    assert (fitted.tolist(), held.tolist()) == ([0, 1, 2], [3, 4])
    with pytest.raises(DataError, match="found 1 episodes"):
        moving_ball((40,)).split(0.25)


def test_a_file_gives_the_same_recording_and_a_damaged_one_is_refused(tmp_path):
    play, path = moving_ball(), tmp_path / "x.safetensors"
    play.save(path)
    again = Recording.load(path)
    assert (again.digest, again.facts) == (play.digest, play.facts)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="digest"):
        Recording.load(path)


def test_wrong_arrays_and_settings_are_refused(tmp_path):
    play = moving_ball((10, 10))
    with pytest.raises(DataError, match="out of order"):
        Recording(play.frames, play.actions, play.rewards, play.episodes[::-1].copy(), play.ram)
    with pytest.raises(DataError, match="frames: found float64"):
        Recording(play.frames.astype(float), play.actions, play.rewards, play.episodes, play.ram)
    with pytest.raises(ArgumentError, match="stack 0"):
        play.centres(stack=0)
    play.save(tmp_path / "x.safetensors")
    with pytest.raises(DataError, match="size: found 14, expected 84"):
        RecordingData(path=tmp_path / "x.safetensors").open()
