"""Log-mel features against Kaldi, and chunks against the whole."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from manyheads.core.errors import ArgumentError
from manyheads.kws.audio.features import Features, LogMel, RunningMean, mel_triangles

# Of the energy of a frame's strongest bin, as the docstring of LogMel promises. Kaldi rounds the mel scale to float32,
# to 1.2e-4 of a bin's 35 mel and more; a Fourier transform in float32 rounds less.
KALDI, CHUNKS = 5e-5, 2e-6


def sound(seconds=1.0, rate=16000, seed=0):
    generator = torch.Generator().manual_seed(seed)
    t = torch.arange(int(seconds * rate)) / rate
    tone = torch.sin(2 * torch.pi * (300 + 900 * t) * t) * (0.2 + 0.8 * torch.sin(2 * torch.pi * 3 * t).abs())
    return (0.4 * tone + 0.05 * torch.randn(len(t), generator=generator)).unsqueeze(0)


def kaldi_fbank(samples, rate, shape, bins):
    """Return log energies ``(T, M)`` of kaldi-native-fbank, without a floor."""
    kaldi = pytest.importorskip("kaldi_native_fbank")
    options = kaldi.FbankOptions()
    options.frame_opts.samp_freq, options.frame_opts.dither = rate, 0.0
    options.frame_opts.window_type, options.mel_opts.num_bins = shape, bins
    options.energy_floor = 0.0
    reference = kaldi.OnlineFbank(options)
    reference.accept_waveform(rate, samples[0].tolist())
    reference.input_finished()
    return np.stack([reference.get_frame(i) for i in range(reference.num_frames_ready)])


def check_energies(found, expected, tolerance):
    """Compare two sets of log energies ``(T, M)`` as energies, relative to the strongest bin of each frame.

    The rounding error of a float32 Fourier transform is proportional to the strongest line of the frame. So the
    logarithm of a bin far below it has no exact digits to compare.
    """
    found, expected = (np.exp(np.asarray(x, dtype=np.float64)) for x in (found, expected))
    assert found.shape == expected.shape
    peak = expected.max(-1, keepdims=True)
    np.testing.assert_array_less(np.abs(found - expected) / peak, tolerance)


@pytest.mark.parametrize("bins", [40, 80])
@pytest.mark.parametrize(("rate", "shape"), [(16000, "povey"), (16000, "hanning"), (8000, "povey")])
@pytest.mark.parametrize("seed", range(4))
def test_features_equal_kaldi(bins, rate, shape, seed):
    if (bins, rate) == (80, 8000):
        bins = 64  # 80 bins leave one of them empty there
    samples = sound(rate=rate, seed=seed)
    found, _ = LogMel(Features(rate, bins, shape=shape))(samples)
    check_energies(found[0], kaldi_fbank(samples, rate, shape, bins), KALDI)


def test_negative_control_a_shifted_filterbank_is_found():
    """The lower edge of the band is 20 Hz too high."""
    samples = sound()
    found, _ = LogMel(Features(low=40.0))(samples)
    with pytest.raises(AssertionError):
        check_energies(found[0], kaldi_fbank(samples, 16000, "povey", 40), KALDI)


@given(st.lists(st.integers(0, 900), min_size=1, max_size=12), st.sampled_from([8000, 16000]))
def test_chunks_of_any_size_give_the_frames_of_the_whole(sizes, rate):
    front = LogMel(Features(rate))
    samples = sound(rate=rate)[:, : sum(sizes)]
    whole, rest = front(samples)
    state, parts = front.init_state(1), []
    for chunk in samples.split(sizes, 1):
        frames, state = front(chunk, state)
        parts.append(frames)
    check_energies(torch.cat(parts, 1)[0], whole[0], CHUNKS)
    assert torch.equal(state.samples, rest.samples)
    assert state.samples.shape[1] < front.features.window_samples + front.features.hop_samples


def test_one_second_gives_98_frames_and_25_ms_one_frame():
    assert Features().frames(16000) == 98
    assert [Features().frames(n) for n in (399, 400, 559, 560)] == [0, 1, 1, 2]


def test_tone_peaks_in_its_mel_bin():
    features = Features(bins=40)
    t = torch.arange(16000) / 16000
    frames, _ = LogMel(features)(torch.sin(2 * torch.pi * 1000 * t).unsqueeze(0))
    line = round(1000 * features.fft_samples / 16000)
    assert set(frames[0].argmax(1).tolist()) == {int(mel_triangles(features)[:, line].argmax())}


def test_too_many_bins_are_refused_with_the_fix():
    with pytest.raises(ArgumentError, match=r"bins: found 128, but bin .* take fewer bins"):
        LogMel(Features(bins=128))


@pytest.mark.parametrize(
    ("features", "part"),
    [(Features(hop=0.0), "hop"), (Features(low=9000.0), "low="), (Features(window=5.0), "window")],
)
def test_bad_feature_settings_are_refused(features, part):
    with pytest.raises(ArgumentError, match=part):
        LogMel(features)


def explicit_mean(x, tau):
    d, out = np.exp(-1 / tau), []
    m, w = np.zeros(x.shape[1]), 0.0
    for row in x:
        m, w = d * m + (1 - d) * row, d * w + (1 - d)
        out.append(row - m / w)
    return np.stack(out)


@pytest.mark.parametrize("tau", [1.0, 50.0])
def test_running_mean_equals_its_recursion_in_any_chunks(tau):
    x = torch.randn(2, 200, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    layer = RunningMean(tau)
    whole, end = layer(x)
    for row in range(2):
        np.testing.assert_allclose(whole[row].numpy(), explicit_mean(x[row].numpy(), tau), atol=1e-6)
    state, parts = None, []
    for chunk in x.split([1, 70, 0, 64, 65], 1):
        y, state = layer(chunk, state)
        parts.append(y)
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=0, atol=1e-6)
    torch.testing.assert_close(state, end, rtol=0, atol=1e-6)


def test_running_mean_maps_a_constant_to_zero():
    y, _ = RunningMean()(torch.full((1, 90, 3), 4.0))
    assert y.abs().max() < 1e-5
