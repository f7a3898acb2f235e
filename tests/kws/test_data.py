"""Training data: batches equal the features of the files, and changes to clips are reported."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from manyheads.core.errors import ArgumentError, DataError
from manyheads.kws.audio.augment import LIGHT, NONE
from manyheads.kws.audio.clips import clips_of, speech_commands
from manyheads.kws.audio.features import Features, LogMel, RunningMean
from manyheads.kws.audio.reading import read_sound
from manyheads.kws.training.data import ClipSet, Spectra, notes_of, splits_of
from manyheads.kws.training.digit_sequences import PixelDigits

from .sounds import WORDS, speech_commands_folder, tone, word_folder, write

TELEPHONE = Features(sample_rate=8000, bins=20)


@pytest.fixture
def words(tmp_path):
    return ClipSet(str(word_folder(tmp_path / "words", speakers=30)), TELEPHONE)


def test_evaluation_frames_equal_stream_frames(words):
    """The frames of a clip are its log-mel features with running mean, independent of the other clips in the batch."""
    part = words.open().test
    clips = [clip for clip in clips_of(words.set) if clip.split == "test"]
    batch = part.batch(torch.arange(len(part)))
    for row, clip in enumerate(clips):
        samples = torch.from_numpy(read_sound(clip.path, 8000).samples)[None]
        expected = RunningMean(50.0)(LogMel(TELEPHONE)(samples)[0])[0][0]
        assert batch.lengths[row] == len(expected)
        torch.testing.assert_close(batch.frames[row, : len(expected)], expected, rtol=1e-4, atol=1e-4)
        assert part.labels[batch.target[row].argmax()] == clip.label


def test_quiet_around_a_clip_has_the_requested_length(words):
    plain, around = words.open().test, replace(words, lead=4, trail=6).open().test
    rows = torch.arange(3)
    assert (around.batch(rows).lengths - plain.batch(rows).lengths).tolist() == [10, 10, 10]


def test_evaluation_draws_no_random_numbers(words):
    part = replace(words, augmentation=LIGHT).open().test
    state = torch.get_rng_state()
    assert part.batch(torch.arange(3)).frames.equal(part.batch(torch.arange(3)).frames)
    assert torch.get_rng_state().equal(state)


def test_training_batches_differ_and_are_reproducible(words):
    part = replace(words, augmentation=LIGHT).open().train
    torch.manual_seed(3)
    first, second = part.batch(torch.arange(4)), part.batch(torch.arange(4))
    torch.manual_seed(3)
    again = part.batch(torch.arange(4))
    assert first.frames.equal(again.frames)
    assert first.frames.shape != second.frames.shape or not first.frames.equal(second.frames)


def test_training_clips_are_cut_and_evaluation_clips_are_not(words):
    splits = replace(words, longest=20).open()
    assert splits.train.batch(torch.arange(8)).frames.shape[1] == 20
    assert splits.test.batch(torch.arange(len(splits.test))).frames.shape[1] > 20


def test_spectra_too_large_for_memory_are_computed_per_batch(words):
    sounds = [read_sound(clip.path, 8000) for clip in clips_of(words.set)]
    kept, computed = Spectra(sounds, TELEPHONE), Spectra(sounds, TELEPHONE, limit=0)
    assert (kept.cached, computed.cached) == (True, False)
    assert computed.content.dtype == torch.int16
    rows = torch.tensor([0, 40, 2, 70])
    (a, lengths), (b, same) = kept.batch(rows), computed.batch(rows)
    assert lengths.equal(same)
    for row, length in enumerate(lengths):
        torch.testing.assert_close(a[row, :length], b[row, :length], rtol=1e-2, atol=1e-5)


def test_arabic_parts_are_disjoint_in_speakers():
    splits = ClipSet("arabic").open()
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [540, 180, 180]
    assert splits.facts["bins"] == 40
    assert len(splits.facts["labels"]) == 10


def test_a_held_out_speaker_is_the_whole_test_part():
    clips = clips_of("arabic")
    splits = ClipSet("arabic", held_out="00000005").open()
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [870, 0, 30]
    assert {clips[i].speaker for i in splits.test.indices.tolist()} == {"00000005"}
    assert "00000005" not in {clips[i].speaker for i in splits.train.indices.tolist()}


def test_second_test_set_is_used_for_evaluation_only(words, tmp_path):
    other = word_folder(tmp_path / "other", speakers=30, rate=16000)
    for speaker in range(3):
        write(other / "stranger" / f"s{speaker:02}_nohash_0.wav", tone(50), 8000)
    splits = replace(words, elsewhere=str(other)).open()
    plain = words.open()
    assert len(splits.test.elsewhere) == 90  # every clip but the word that is none of the set's
    assert splits.test.elsewhere.labels == plain.test.labels
    assert splits.train.spectra.lengths.equal(plain.train.spectra.lengths)
    assert len(splits.test) == len(plain.test)


def test_auxiliary_set_is_for_training_only_and_never_predicted(words, tmp_path):
    other = word_folder(tmp_path / "other", speakers=30)
    plain, more = words.open(), replace(words, beside=str(other), elsewhere=str(other)).open()
    assert more.facts["labels"] == ("_high", "_low", "_middle", "high", "low", "middle")
    assert [len(a) - len(b) for a, b in zip(parts(more), parts(plain), strict=True)] == [90, 0, 0]
    for part in (more.test, more.test.elsewhere):
        said = {part.labels[i] for i in part.batch(torch.arange(len(part))).target.argmax(1).tolist()}
        assert said == set(part.words) == set(WORDS)
    added = more.train.batch(torch.arange(len(plain.train), len(more.train))).target.argmax(1)
    assert added.bincount().tolist() == [30, 30, 30]


def parts(splits):
    return splits.train, splits.validation, splits.test


def test_second_test_set_without_the_words_is_refused(words, tmp_path):
    other = word_folder(tmp_path / "other", speakers=30)
    shutil.rmtree(other / "low")
    with pytest.raises(DataError, match="other: found no clip of low, expected all words of"):
        replace(words, elsewhere=str(other)).open()


def test_labels_select_clips():
    config = ClipSet("arabic", labels=("yes", "no"))
    assert config.open().facts["labels"] == ("no", "yes")
    with pytest.raises(ArgumentError, match="labels: found 'maybe', expected some of close, down"):
        replace(config, labels=("yes", "maybe")).open()


def test_speech_commands_data_use_the_official_lists(tmp_path):
    splits = splits_of(speech_commands(speech_commands_folder(tmp_path)), ClipSet("speech-commands"))
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [12, 3, 3]
    assert splits.facts["labels"] == tuple(sorted(WORDS))


def test_changes_to_clips_are_counted_and_reported(tmp_path, capsys):
    folder = word_folder(tmp_path, speakers=30)
    stereo = np.stack([tone(300), tone(300)], 1)
    write(folder / "low" / "s00_nohash_0.wav", stereo)
    write(folder / "low" / "s01_nohash_0.wav", np.clip(tone(300) * 30, -1, 1))
    write(folder / "low" / "s02_nohash_0.wav", np.zeros(4000))
    for speaker in (3, 4):
        write(folder / "low" / f"s{speaker:02}_nohash_0.wav", tone(300, rate=16000), 16000)
    notes = ClipSet(str(folder), TELEPHONE).open().facts["notes"]
    assert notes == (
        "1 of 90 clips: 2 channels averaged to one",
        "1 of 90 clips: clipped",
        "2 of 90 clips: resampled from 16000 to 8000 Hz",
        "1 of 90 clips: silent",
    )
    said = capsys.readouterr().err
    assert all(note in said for note in notes)


def test_clean_clips_give_no_notes():
    assert notes_of([read_sound(clip.path) for clip in clips_of("arabic")[:5]]) == ()


def test_a_clip_shorter_than_a_frame_is_named(words):
    path = clips_of(words.set)[0].path
    write(path, tone(300, seconds=0.02))
    with pytest.raises(DataError, match=rf"{path.name}: found 160 samples at 8000 Hz, expected at least 200"):
        words.open()


@pytest.mark.parametrize("content", [b"", b"not audio", b"RIFF\x00\x10\x00\x00WAVEfmt "])
def test_a_bad_file_among_good_ones_is_named(words, content):
    path = clips_of(words.set)[7].path
    path.write_bytes(content)
    with pytest.raises(DataError, match=path.name):
        words.open()


def test_permuted_digits_are_the_same_pixels_in_another_order():
    plain, permuted = PixelDigits(permuted=False).open(), PixelDigits().open()
    assert [len(part) for part in (plain.train, plain.validation, plain.test)] == [1297, 100, 400]
    a, b = (splits.test.batch(torch.arange(50)) for splits in (plain, permuted))
    assert not a.frames.equal(b.frames)
    assert a.frames.sort(1).values.equal(b.frames.sort(1).values)
    assert a.target.equal(b.target)


def test_augmentation_changes_training_clips_only(words):
    loud = replace(words, augmentation=replace(NONE, gain=3.0))
    rows = torch.arange(4)
    assert loud.open().test.batch(rows).frames.equal(words.open().test.batch(rows).frames)
    assert not loud.open().train.batch(rows).frames.equal(words.open().train.batch(rows).frames)
