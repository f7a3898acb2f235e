"""Distractor words: speakers, label, and that they are never reported."""

from __future__ import annotations

import pytest
import torch

from manyheads.kws.audio.clips import clips_of
from manyheads.kws.audio.features import Features
from manyheads.kws.commands.evaluate import negatives_of
from manyheads.kws.models import LMUFormerConfig
from manyheads.kws.streaming.spotter import KeywordSpotter
from manyheads.kws.training.stream_data import OTHER, SpottingSet, other_words


@pytest.fixture(scope="module")
def splits():
    return SpottingSet("arabic", labels=("yes", "no"), others="gsc_v001_sample", repeat=2).open()


def test_distractor_words_share_one_label(splits):
    assert splits.facts["labels"] == (OTHER, "no", "yes")


def test_distractor_words_exclude_keywords_and_parts_share_no_speaker():
    words = other_words("gsc_v001_sample", ["yes", "no"])
    plain = {clip.path: clip for clip in clips_of("gsc_v001_sample")}
    assert {clip.label for clip in words} == {OTHER}
    assert {plain[clip.path].label for clip in words} == {clip.label for clip in plain.values()} - {"yes", "no"}
    speakers = {part: {c.speaker for c in words if c.split == part} for part in ("train", "validation", "test")}
    assert all(speakers.values())
    assert not speakers["train"] & speakers["validation"]
    assert not (speakers["train"] | speakers["validation"]) & speakers["test"]


def test_distractor_words_are_repeated_as_requested(splits):
    words = other_words("gsc_v001_sample", ["yes", "no"])
    count = {part: sum(clip.split == part for clip in words) for part in ("train", "test")}
    for part, times in (("train", 2), ("test", 1)):
        chosen = getattr(splits, part)
        labels = chosen.targets[chosen.indices]
        assert int((labels == 0).sum()) == times * count[part]
        assert int((labels != 0).sum()) == {"train": 108, "test": 36}[part]


def test_underscore_labels_are_neither_reported_nor_negatives():
    network = LMUFormerConfig(channels=8, memories=1, order=4).make(40, (OTHER, "no", "yes"))
    spotter = KeywordSpotter(network, Features())
    assert spotter.rule.background == (OTHER,)
    with torch.no_grad():
        network.head.bias.copy_(torch.tensor([20.0, 0.0, 0.0]))
    assert spotter.stream(torch.zeros(16000).numpy()) == []
    tests = negatives_of("gsc_v001_sample", spotter.labels, "test")
    assert {clip.split for clip in tests} == {"test"}
    assert len(negatives_of("gsc_v001_sample", spotter.labels, "all")) == 280
