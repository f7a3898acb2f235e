"""Split by speaker: no part is empty, and one line reports the speakers of each part."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from manyheads.kws.audio.clips import Clip, clips_of, hold_out
from manyheads.kws.audio.split import PARTS, parted, parts_of, separation, speaker_of, split_clips

WORDS = ("go", "stop")


def recorded(names, *, words=WORDS, count=20):
    """Return ``count`` clips of each word, assigned to the speakers in turn; None is a clip without a speaker name."""
    clips = []
    for word in words:
        for n in range(count):
            name = names[n % len(names)]
            path = Path(word) / (f"take{n}.wav" if name is None else f"{name}_nohash_{n}.wav")
            clips.append(Clip(path, word, speaker_of(word, path.stem), ""))
    return clips


def speakers_by_part(clips):
    return {part: {clip.speaker for clip in clips if clip.split == part} for part in PARTS}


@pytest.mark.parametrize("count", [1, 2, 3, 5, 10, 20])
def test_no_part_is_empty_and_every_word_is_trained_for_any_speakers(count):
    for case in range(300):
        clips = split_clips(recorded([f"person {case} {n}" for n in range(count)]))
        assert {clip.split for clip in clips} == set(PARTS)
        train = [clip for clip in clips if clip.split == "train"]
        assert {clip.label for clip in train} == set(WORDS)
        assert 4 * len(train) >= len(clips)
        if count >= 3:
            heard = speakers_by_part(clips)
            assert sum(len(part) for part in heard.values()) == count  # nobody is in two parts


def test_no_part_is_empty_without_speaker_names():
    for count in (3, 4, 7, 20):
        for case in range(100):
            clips = split_clips(recorded([None], words=(f"a{case}", f"b{case}"), count=count))
            for word in (f"a{case}", f"b{case}"):
                assert {clip.split for clip in clips if clip.label == word} == set(PARTS)


def test_many_speakers_are_split_by_the_hash_alone():
    """80 / 10 / 10, and a speaker added later moves no other."""
    names = [f"speaker {n}" for n in range(1000)]
    before, after = parts_of(names), parts_of([*names, *(f"late {n}" for n in range(500))])
    assert {name: after[name] for name in names} == before
    share = Counter(before.values())
    assert share["train"] == pytest.approx(800, abs=50)  # 4 standard deviations
    assert share["validation"] == pytest.approx(100, abs=38)


def test_word_of_a_single_speaker_is_in_training():
    """Ten speakers say two words, and one of them alone says a third: it is in training, whatever the hash."""
    for case in range(200):
        names = [f"{case} {n}" for n in range(10)]
        clips = split_clips([*recorded(names), *recorded(names[:1], words=("rare",), count=3)])
        assert {clip.label for clip in clips if clip.split == "train"} == {*WORDS, "rare"}
        assert {clip.split for clip in clips} == set(PARTS)


def test_speaker_of_nearly_all_clips_is_in_training():
    for case in range(100):
        clips = split_clips([*recorded([f"{case} a"], count=30), *recorded([f"{case} b", f"{case} c"], count=2)])
        assert 4 * sum(clip.split == "train" for clip in clips) >= len(clips)
        assert {clip.split for clip in clips} == set(PARTS)


SHARED = "train, validation and test hold other clips of the same"


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["anna"], f"1 speaker: {SHARED} speaker; accuracy on other people is unknown"),
        (["anna", "bert"], f"2 speakers: {SHARED} speakers; accuracy on other people is unknown"),
        (["anna", "bert", "carl"], "3 speakers: 1 in train, 1 in validation, 1 in test, none in two parts"),
        ([None], "no speaker is named"),
        (["anna", "bert", "carl", "dora", None], "clips name no speaker"),
    ],
)
def test_separation_reports_speakers_of_each_part(names, said):
    line = separation(split_clips(recorded(names)))
    assert said in line
    assert "\n" not in line


def test_separation_of_published_splits():
    assert separation(clips_of("arabic")) == "30 speakers: 18 in train, 6 in validation, 6 in test, none in two parts"
    assert (
        separation(hold_out(clips_of("arabic"), "00000003")) == "30 speakers: 29 in train, 1 in test, none in two parts"
    )


def test_a_set_without_a_split_of_its_own_gets_one():
    clips = clips_of("gsc_v001_sample")
    assert {clip.split for clip in clips} == {""}
    assert {clip.split for clip in parted(clips)} == set(PARTS)
    assert parted(clips_of("arabic")) == clips_of("arabic")
