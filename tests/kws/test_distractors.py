"""Synthetic distractor sounds: their form, and their use for training only."""

from __future__ import annotations

import numpy as np
import pytest

from manyheads.kws.audio.distractors import KINDS, LEVEL, distractors
from manyheads.kws.audio.features import Features
from manyheads.kws.training.stream_data import OTHER, SpottingSet

from .sounds import word_folder


@pytest.mark.parametrize("rate", [8000, 16000, 44100])
def test_each_distractor_has_the_requested_length(rate):
    for sound in distractors(3 * len(KINDS), rate, seconds=0.7):
        assert sound.shape == (round(0.7 * rate),)
        assert sound.dtype == np.float32
        assert np.abs(sound).max() <= 1
        power = 10 * np.log10(np.square(sound).mean())
        assert power <= LEVEL[1] + 0.01
        assert power > LEVEL[0] - 30  # clicks at full scale hold little power


def test_same_seed_gives_the_same_distractors():
    first, again, other = distractors(8, 8000), distractors(8, 8000), distractors(8, 8000, seed=1)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_distractors_are_used_for_training_only(tmp_path):
    folder = str(word_folder(tmp_path, speakers=10))
    with_sounds, without = (
        SpottingSet(folder, Features(sample_rate=8000), distractors=count).open() for count in (16, 0)
    )
    assert len(with_sounds.train) == len(without.train) + 16
    assert (len(with_sounds.validation), len(with_sounds.test)) == (len(without.validation), len(without.test))
    label = with_sounds.facts["labels"].index(OTHER)
    assert with_sounds.train.targets[with_sounds.train.indices[-16:]].tolist() == [label] * 16


def test_opening_a_set_does_not_use_the_global_generator(tmp_path):
    import torch

    folder = str(word_folder(tmp_path, speakers=10))
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    SpottingSet(folder, Features(sample_rate=8000), distractors=8).open()
    assert torch.get_rng_state().equal(before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
