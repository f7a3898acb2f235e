"""Reading sound: every kind of bad file is named, and whatever is done to a good one is said."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile

from manyheads.core.errors import DataError
from manyheads.kws.audio import prepare, read_sound, resample

from .sounds import tone, write


@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_samples_come_back_as_written(tmp_path, suffix):
    samples = np.round(tone(440) * 32768) / 32768
    sound = read_sound(write(tmp_path / f"a{suffix}", samples, subtype="PCM_16"), 8000)
    np.testing.assert_array_equal(sound.samples, samples.astype(np.float32))
    assert (sound.sample_rate, sound.notes, sound.seconds) == (8000, (), 0.4)


def test_absent_file(tmp_path):
    with pytest.raises(DataError, match=r"gone\.wav: no such file"):
        read_sound(tmp_path / "gone.wav")


def test_empty_file(tmp_path):
    (tmp_path / "a.wav").touch()
    with pytest.raises(DataError, match=r"a\.wav is empty: expected a WAV or FLAC file"):
        read_sound(tmp_path / "a.wav")


def test_no_samples(tmp_path):
    with pytest.raises(DataError, match=r"a\.wav holds no samples"):
        read_sound(write(tmp_path / "a.wav", np.zeros(0, np.float32)))


def test_what_is_not_audio(tmp_path):
    (tmp_path / "a.wav").write_text("label,path\nyes,1.wav\n")
    with pytest.raises(DataError, match=r"a\.wav cannot be read as audio .*: expected a WAV or FLAC file"):
        read_sound(tmp_path / "a.wav")


@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_truncated_file(tmp_path, suffix):
    path = write(tmp_path / f"a{suffix}", np.random.default_rng(0).uniform(-0.5, 0.5, 8000))
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(DataError, match=rf"a\{suffix} (is truncated|cannot be read as audio)"):
        read_sound(path)


def test_channels_are_averaged_and_it_is_said(tmp_path):
    left, right = tone(440), tone(880)
    sound = read_sound(write(tmp_path / "a.wav", np.stack([left, right], 1), subtype="FLOAT"))
    np.testing.assert_allclose(sound.samples, (left + right) / 2, atol=1e-7)
    assert sound.notes == ("2 channels averaged to one",)


def test_other_rates_are_resampled_and_it_is_said(tmp_path):
    sound = read_sound(write(tmp_path / "a.wav", tone(440, rate=44100), 44100), 8000)
    assert sound.notes == ("resampled from 44100 to 8000 Hz",)
    assert sound.sample_rate == 8000
    clean = np.sin(2 * np.pi * 440 * np.arange(3200) / 8000) * 0.3
    assert np.abs(sound.samples - clean)[100:-100].max() < 0.02


def test_resampling_lets_nothing_fold_back():
    aliased = resample(np.sin(2 * np.pi * 7000 * np.arange(16000) / 16000), 16000, 8000)
    assert np.abs(aliased[200:-200]).max() < 0.01


def test_clipped_and_silent_files_are_said(tmp_path):
    clipped = np.clip(tone(440) * 20, -1, 1)
    assert "clipped" in read_sound(write(tmp_path / "a.wav", clipped)).notes[0]
    assert read_sound(write(tmp_path / "b.wav", np.zeros(4000))).notes == ("silent",)


def test_samples_that_are_not_finite(tmp_path):
    samples = tone(440)
    samples[[17, 19]] = np.nan
    soundfile.write(tmp_path / "a.wav", samples, 8000, subtype="FLOAT")
    with pytest.raises(DataError, match=r"a\.wav: sample 17 is nan, expected finite samples; 2 are not"):
        read_sound(tmp_path / "a.wav")


def test_prepare_says_all_that_it_does():
    sound = prepare(np.zeros((1600, 3), np.float32), 16000, 8000, "here")
    assert sound.notes == ("3 channels averaged to one", "silent", "resampled from 16000 to 8000 Hz")
    assert len(sound.samples) == 800
