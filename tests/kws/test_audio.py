"""Reading sound files: every bad file is named, and every change to a good one is noted."""

from __future__ import annotations

import io
import itertools
import tracemalloc

import numpy as np
import pytest
import soundfile

from manyheads.core.errors import ArgumentError, DataError
from manyheads.kws.audio.reading import prepare, read_sound, resample
from tests.fuzz.audio import damaged_audio

from .sounds import tone, write


@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_samples_come_back_as_written(tmp_path, suffix):
    samples = np.round(tone(440) * 32768) / 32768
    sound = read_sound(write(tmp_path / f"a{suffix}", samples, subtype="PCM_16"), 8000)
    np.testing.assert_array_equal(sound.samples, samples.astype(np.float32))
    assert (sound.sample_rate, sound.notes, sound.seconds) == (8000, (), 0.4)


def test_absent_file_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"gone\.wav: no such file"):
        read_sound(tmp_path / "gone.wav")


def test_empty_file_is_refused(tmp_path):
    (tmp_path / "a.wav").touch()
    with pytest.raises(DataError, match=r"a\.wav is empty: expected a WAV, FLAC, OGG, MP3, AIFF or AU file"):
        read_sound(tmp_path / "a.wav")


def test_file_without_samples_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"a\.wav holds no samples"):
        read_sound(write(tmp_path / "a.wav", np.zeros(0, np.float32)))


def test_file_that_is_not_audio_is_refused(tmp_path):
    (tmp_path / "a.wav").write_text("label,path\nyes,1.wav\n")
    with pytest.raises(DataError, match=r"a\.wav cannot be read as audio .*: expected a WAV, FLAC"):
        read_sound(tmp_path / "a.wav")


@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_truncated_file_is_refused(tmp_path, suffix):
    path = write(tmp_path / f"a{suffix}", np.random.default_rng(0).uniform(-0.5, 0.5, 8000))
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(DataError, match=rf"a\{suffix} (is truncated|cannot be read as audio)"):
        read_sound(path)


def test_channels_are_averaged_with_a_note(tmp_path):
    left, right = tone(440), tone(880)
    sound = read_sound(write(tmp_path / "a.wav", np.stack([left, right], 1), subtype="FLOAT"))
    np.testing.assert_allclose(sound.samples, (left + right) / 2, atol=1e-7)
    assert sound.notes == ("2 channels averaged to one",)


def test_other_sample_rates_are_resampled_with_a_note(tmp_path):
    sound = read_sound(write(tmp_path / "a.wav", tone(440, rate=44100), 44100), 8000)
    assert sound.notes == ("resampled from 44100 to 8000 Hz",)
    assert sound.sample_rate == 8000
    clean = np.sin(2 * np.pi * 440 * np.arange(3200) / 8000) * 0.3
    assert np.abs(sound.samples - clean)[100:-100].max() < 0.02


def test_resampling_does_not_alias():
    aliased = resample(np.sin(2 * np.pi * 7000 * np.arange(16000) / 16000), 16000, 8000)
    assert np.abs(aliased[200:-200]).max() < 0.01


def test_clipped_and_silent_files_get_a_note(tmp_path):
    clipped = np.clip(tone(440) * 20, -1, 1)
    assert "clipped" in read_sound(write(tmp_path / "a.wav", clipped)).notes[0]
    assert read_sound(write(tmp_path / "b.wav", np.zeros(4000))).notes == ("silent",)


def test_samples_that_are_not_finite_are_refused(tmp_path):
    samples = tone(440)
    samples[[17, 19]] = np.nan
    soundfile.write(tmp_path / "a.wav", samples, 8000, subtype="FLOAT")
    with pytest.raises(DataError, match=r"a\.wav: sample 17 is nan, expected finite samples; 2 are not"):
        read_sound(tmp_path / "a.wav")


def test_prepare_notes_every_change():
    sound = prepare(np.zeros((1600, 3), np.float32), 16000, 8000, "here")
    assert sound.notes == ("3 channels averaged to one", "silent", "resampled from 16000 to 8000 Hz")
    assert len(sound.samples) == 800


def wav(samples, *, subtype="PCM_16", rate=8000, **fields):
    """Return the bytes of a WAV file with header fields set: ``riff`` and ``data`` sizes, ``rate``, ``channels``."""
    made = io.BytesIO()
    soundfile.write(made, samples, rate, format="WAV", subtype=subtype)
    content = bytearray(made.getvalue())
    places = {"riff": (4, 4), "channels": (22, 2), "claimed_rate": (24, 4), "data": (40, 4)}
    for name, value in fields.items():
        at, width = places[name]
        content[at : at + width] = value.to_bytes(width, "little")
    return bytes(content)


def test_header_without_lengths_is_read_to_the_end_with_a_note(tmp_path):
    samples = np.round(tone(440) * 32768) / 32768
    for sizes in (
        {"riff": 0, "data": 0},
        {"riff": 2**32 - 1, "data": 2**32 - 1},
        {"data": 2**31},
        {"data": 0x7FFFF000},
    ):
        (tmp_path / "a.wav").write_bytes(wav(samples, **sizes))
        sound = read_sound(tmp_path / "a.wav")
        np.testing.assert_array_equal(sound.samples, samples.astype(np.float32))
        assert sound.notes == ("no length in its header: read to the end of the file",)


@pytest.mark.parametrize("riff", [0, 36, 6444, 6445, 10**6, 2**32 - 1])
def test_wrong_riff_size_is_ignored_if_the_data_size_is_right(tmp_path, riff):
    samples = np.round(tone(440) * 32768) / 32768
    (tmp_path / "a.wav").write_bytes(wav(samples, riff=riff))
    sound = read_sound(tmp_path / "a.wav")
    np.testing.assert_array_equal(sound.samples, samples.astype(np.float32))
    assert sound.notes == ()


def test_samples_beyond_the_header_length_are_an_error(tmp_path):
    (tmp_path / "a.wav").write_bytes(wav(tone(440), data=1000))
    with pytest.raises(DataError, match=r"a\.wav: found 5400 bytes after its 1000 bytes of samples, expected the end"):
        read_sound(tmp_path / "a.wav")
    (tmp_path / "b.wav").write_bytes(wav(tone(440)) * 2)
    with pytest.raises(DataError, match=r"b\.wav: found 6444 bytes after its 6400 bytes of samples"):
        read_sound(tmp_path / "b.wav")
    (tmp_path / "c.wav").write_bytes(wav(tone(440), data=6399))
    assert read_sound(tmp_path / "c.wav").notes == ("bytes after the last whole sample",)


def test_chunks_after_the_samples_are_not_read_as_samples(tmp_path):
    samples = np.round(tone(440) * 32768) / 32768
    (tmp_path / "a.wav").write_bytes(wav(samples) + b"LIST\x04\0\0\0INFO" + b"id3 \x03\0\0\0abc\0")
    np.testing.assert_array_equal(read_sound(tmp_path / "a.wav").samples, samples.astype(np.float32))


@pytest.mark.parametrize("suffix", [".ogg", ".opus", ".mp3", ".aiff", ".au", ".flac", ".wav"])
def test_every_format_is_read_and_a_truncated_file_is_refused(tmp_path, suffix, capfd):
    rate = 16000
    samples = tone(440, seconds=1.5, rate=rate)
    form = {".ogg": "OGG", ".opus": "OGG", ".aiff": "AIFF"}.get(suffix, suffix[1:].upper())
    path = write(tmp_path / f"a{suffix}", samples, rate, format=form, subtype="OPUS" if suffix == ".opus" else None)
    sound = read_sound(path)
    assert (len(sound.samples), sound.sample_rate, sound.notes) == (len(samples), rate, ())
    middle = slice(4000, -4000)
    error = np.sqrt(np.square(sound.samples - samples)[middle].mean() / np.square(samples).mean())
    assert error < (0.2 if suffix in (".ogg", ".opus", ".mp3") else 1e-3)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 3 // 5])
    with pytest.raises(DataError, match=r"a\.\w+(:| is| cannot)") as caught:
        read_sound(path)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", ""), "a decoder speaks past Python"


@pytest.mark.parametrize("suffix", [".flac", ".ogg"])
def test_flipped_bit_is_found_in_formats_with_checksums(tmp_path, suffix):
    path = write(tmp_path / f"a{suffix}", tone(440, seconds=1.0), format=suffix[1:].upper())
    content = path.read_bytes()
    for at in range(200, len(content), len(content) // 25):
        changed = bytearray(content)
        changed[at] ^= 4
        path.write_bytes(changed)
        with pytest.raises(DataError, match=r"damaged|cannot be read|truncated"):
            read_sound(path)


@pytest.mark.parametrize("rate", [0, 1, 999, 768_001, 2**31 - 1, 2**31, 2**32 - 1])
def test_sample_rates_out_of_range_are_refused(tmp_path, rate):
    (tmp_path / "a.wav").write_bytes(wav(tone(440)[:400], claimed_rate=rate))
    with pytest.raises(DataError, match=rf"a\.wav(: sample rate: found {rate} Hz| cannot be read)"):
        read_sound(tmp_path / "a.wav", 16000)


@pytest.mark.parametrize("rate", [1000, 1009, 44_100, 44_101, 95_999, 767_999])
def test_resampling_filter_length_is_bounded(tmp_path, rate, monkeypatch):
    """The filter has 20 taps times the larger number of the ratio."""
    from scipy import signal

    asked = []
    monkeypatch.setattr(signal, "resample_poly", lambda x, up, down: asked.append((up, down)) or x)
    for target in (8000, 16000, 44_100):
        resample(np.zeros(400, np.float32), rate, target)
        up, down = asked.pop()
        assert max(up, down) <= 1 << 16
        assert up / down == pytest.approx(target / rate, rel=1e-5)
    with pytest.raises(ArgumentError, match="sample rate: found 2147483647 Hz"):
        resample(np.zeros(400, np.float32), rate, 2**31 - 1)


def outcome(path, rate=None):
    """Return the sound, or the error message."""
    try:
        return read_sound(path, rate)
    except DataError as error:
        return str(error)


def flac_of(samples, promised):
    """Return a FLAC file whose header promises ``promised`` samples."""
    made = io.BytesIO()
    soundfile.write(made, samples, 8000, format="FLAC")
    content = bytearray(made.getvalue())
    content[21] = content[21] & 0xF0 | promised >> 32
    content[22:26] = (promised & 0xFFFFFFFF).to_bytes(4, "big")
    return bytes(content)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("samples.wav", lambda: wav(tone(440)[:400], data=2**31 - 2**13)),
        ("streamed.wav", lambda: wav(tone(440)[:400], data=2**32 - 1)),
        ("channels.wav", lambda: wav(tone(440)[:400], channels=65535)),
        ("thousand.wav", lambda: wav(tone(440)[:400], channels=1000)),
        ("samples.flac", lambda: flac_of(tone(440)[:400], 2**36 - 1)),
        ("half.flac", lambda: flac_of(tone(440)[:400], 2**31)),
    ],
)
def test_memory_is_bounded_by_the_file_size_not_the_header(tmp_path, name, content):
    (tmp_path / name).write_bytes(content())
    tracemalloc.start()
    try:
        said = outcome(tmp_path / name)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert isinstance(said, str) or len(said.samples) <= 400
    assert peak < 32 << 20


def test_file_that_decodes_without_end_is_refused(tmp_path, monkeypatch):
    from manyheads.kws.audio import reading as audio

    write(tmp_path / "a.flac", np.zeros(200_000))
    assert (tmp_path / "a.flac").stat().st_size * 64 < 200_000
    assert read_sound(tmp_path / "a.flac").notes == ("silent",)
    monkeypatch.setattr(audio, "LONGEST", 100_000)
    with pytest.raises(DataError, match=r"a\.flac: found more than 100000 samples in its \d+ bytes: cut it"):
        read_sound(tmp_path / "a.flac")


def test_samples_far_beyond_full_scale_are_refused(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(440) * 32768, 8000, subtype="FLOAT")
    with pytest.raises(DataError, match=r"a\.wav: found a sample of \d+.*expected samples in \[-1, 1\]: divide them"):
        read_sound(tmp_path / "a.wav")


def test_format_whose_length_cannot_be_checked_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"a\.caf: found CAF .*, expected a WAV, FLAC, .* file: convert it"):
        read_sound(write(tmp_path / "a.caf", tone(440), format="CAF"))
    with pytest.raises(DataError, match="found a folder"):
        read_sound(tmp_path)


@pytest.mark.filterwarnings("error")
def test_damaged_files_give_an_error_or_finite_samples(tmp_path):
    """Ninety damaged files: each gives a one-line error, or samples that a spotter can process."""
    read = 0
    for description, content, suffix in itertools.islice(damaged_audio(seed=3), 90):
        path = tmp_path / f"a{suffix}"
        path.write_bytes(content)
        found = outcome(path, 16000)
        if isinstance(found, str):
            assert found.startswith(str(path)), description
            assert "\n" not in found, description
            continue
        read += 1
        assert np.isfinite(found.samples).all(), description
        assert 0 < len(found.samples) <= 16 * 64 * len(content), description
    assert 10 < read < 60
