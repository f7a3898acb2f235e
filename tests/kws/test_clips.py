"""Clips of data sets and folders, and their split."""

from __future__ import annotations

import shutil
from collections import Counter

import pytest

from manyheads.core.errors import ArgumentError, DataError, UnknownNameError
from manyheads.kws.audio.clips import clips_of, clips_of_folder, hold_out, labels_of, only, speech_commands

from .sounds import WORDS, speech_commands_folder, tone, word_folder, write


def test_arabic_is_split_by_speaker_as_published():
    clips = clips_of("arabic")
    assert Counter(clip.split for clip in clips) == {"train": 540, "validation": 180, "test": 180}
    speakers = {split: {c.speaker for c in clips if c.split == split} for split in ("train", "validation", "test")}
    assert [len(s) for s in speakers.values()] == [18, 6, 6]
    assert len(set.union(*speakers.values())) == 30
    assert len(labels_of(clips)) == 10


def test_speech_commands_are_split_by_the_official_lists(tmp_path):
    clips = speech_commands(speech_commands_folder(tmp_path))
    assert Counter(clip.split for clip in clips) == {"train": 12, "validation": 3, "test": 3}
    assert {c.speaker for c in clips if c.split == "validation"} == {"s04"}
    assert labels_of(clips) == tuple(sorted(WORDS))  # the noise is no word


def test_speech_commands_without_lists_are_refused(tmp_path):
    (speech_commands_folder(tmp_path) / "testing_list.txt").unlink()
    with pytest.raises(DataError, match=r"testing_list\.txt: no such file: expected the lists of Speech Commands"):
        speech_commands(tmp_path)


def test_folder_is_split_by_speaker_and_a_new_speaker_moves_no_other(tmp_path):
    clips = clips_of(str(word_folder(tmp_path, speakers=40)))
    before = {c.path: c.split for c in clips}
    assert len({(c.speaker, c.split) for c in clips}) == len({c.speaker for c in clips})
    shutil.copy(tmp_path / "low" / "s00_nohash_0.wav", tmp_path / "low" / "new_nohash_0.wav")
    after = {c.path: c.split for c in clips_of_folder(tmp_path)}
    assert {path: after[path] for path in before} == before


def test_folder_with_one_label_is_refused(tmp_path):
    word_folder(tmp_path)
    for word in ("middle", "high"):
        shutil.rmtree(tmp_path / word)
    with pytest.raises(DataError, match="found 1 labels, expected two or more folders"):
        clips_of_folder(tmp_path)


def test_label_with_one_file_is_refused(tmp_path):
    word_folder(tmp_path, speakers=40)
    for path in sorted((tmp_path / "low").iterdir())[1:]:
        path.unlink()
    with pytest.raises(DataError, match="low: found 1 clips, expected at least 3"):
        clips_of_folder(tmp_path)


def test_error_for_an_unknown_set_lists_the_known_sets():
    with pytest.raises(UnknownNameError, match="arabic_sc_10w"):
        clips_of("arabik")


def test_held_out_speaker_is_the_test_part():
    clips = hold_out(clips_of("arabic"), "00000003")
    assert {c.speaker for c in clips if c.split == "test"} == {"00000003"}
    assert Counter(c.split for c in clips) == {"train": 870, "test": 30}
    with pytest.raises(ArgumentError, match="held out: found 'nobody', expected one of 00000001"):
        hold_out(clips, "nobody")


def test_labels_select_clips():
    assert labels_of(only(clips_of("arabic"), ["yes", "no"])) == ("no", "yes")


def test_every_sound_format_is_a_clip_and_skipped_files_are_reported(tmp_path, capsys):
    word_folder(tmp_path, speakers=40)
    kinds = {"a.MP3": "MP3", "b.ogg": "OGG", "c.oga": "OGG", "d.aiff": "AIFF", "e.flac": "FLAC"}
    for name, form in kinds.items():
        write(tmp_path / "low" / name, tone(300), format=form)
    before = capsys.readouterr()
    assert len(clips_of_folder(tmp_path)) == 3 * 40 + 5
    assert (before.err, capsys.readouterr().err) == ("", "")
    (tmp_path / "low" / "notes.txt").write_text("three of these are mine")
    (tmp_path / "low" / "list.csv").write_text("a,b")
    (tmp_path / "low" / ".DS_Store").write_bytes(b"\0")
    write(tmp_path / "low" / "more" / "deep.wav", tone(300))
    write(tmp_path / "_background_noise_" / "hum.wav", tone(50))
    assert len(clips_of_folder(tmp_path)) == 3 * 40 + 5
    said = capsys.readouterr().err.splitlines()
    assert said == [
        f"{tmp_path}/low/list.csv (and 1 more): left out: no sound by its name",
        f"{tmp_path}/low/more/deep.wav: left out: not in the folder of a label: label/file",
    ]


def test_unreadable_recording_is_named(tmp_path):
    word_folder(tmp_path, speakers=40)
    (tmp_path / "low" / "new.m4a").write_bytes(b"\0\0\0\x20ftypM4A ")
    with pytest.raises(DataError, match=r"low/new\.m4a: found \.m4a, expected a WAV, FLAC, OGG, .*convert it"):
        clips_of_folder(tmp_path)
