"""Augmentation: each change of a clip, on spectra with a known result."""

from __future__ import annotations

import pytest
import torch

from manyheads.core.errors import ArgumentError
from manyheads.kws.audio.augment import (
    HEAVY,
    LIGHT,
    NONE,
    WARPS,
    Augmentation,
    Placed,
    augmented,
    blended,
    coloured_noise,
    equaliser_curves,
    masked,
    mixed,
    partners,
    place,
    spec_augment,
    warped_filterbanks,
    warped_triangles,
)
from manyheads.kws.audio.features import FLOOR, Features, mel_triangles

FEATURES = Features(sample_rate=8000)
LINES = 129


def ramp(*lengths):
    """Return clips whose power at frame t is t + 1 in every line; the padding has another value."""
    power = torch.full((len(lengths), max(lengths), LINES), 1e9)
    for row, length in enumerate(lengths):
        power[row, :length] = torch.arange(1.0, length + 1).unsqueeze(1)
    return power, torch.tensor(lengths)


def placed(power, lengths, *, pace=1.0, onset=0, trail=0, quiet=0.5, longest=0):
    batch = len(power)
    return place(
        power,
        lengths,
        torch.full((batch,), pace),
        torch.full((batch,), onset),
        trail,
        torch.full((batch,), quiet),
        longest,
    )


def test_place_without_change_keeps_the_clip_and_adds_quiet():
    window, lengths = placed(*ramp(5, 3))
    assert lengths.tolist() == [5, 3]
    assert window[0, :, 0].tolist() == [1, 2, 3, 4, 5]
    assert window[1, :, 7].tolist() == [1, 2, 3, 0.5, 0.5]


def test_tempo_interpolates_between_frames():
    window, lengths = placed(*ramp(5), pace=0.5)
    assert window[0, :, 0].tolist() == [1, 1.5, 2, 2.5, 3, 3.5, 4, 4.5, 5]
    faster, shorter = placed(*ramp(5), pace=2.0)
    assert faster[0, :, 0].tolist() == [1, 3, 5]
    assert (lengths.item(), shorter.item()) == (9, 3)


def test_position_puts_quiet_before_and_after():
    window, lengths = placed(*ramp(2), onset=2, trail=1)
    assert window[0, :, 0].tolist() == [0.5, 0.5, 1, 2, 0.5]
    assert lengths.item() == 5


def test_negative_shift_cuts_the_beginning():
    window, lengths = placed(*ramp(5), onset=-2, trail=1)
    assert window[0, :, 0].tolist() == [3, 4, 5, 0.5]
    assert lengths.item() == 4


def test_windows_are_cut_at_the_largest_length():
    window, lengths = placed(*ramp(9, 3), longest=4)
    assert window.shape[1] == 4
    assert lengths.tolist() == [4, 3]


def test_warp_of_one_gives_the_plain_filterbank():
    assert warped_triangles(FEATURES, 1.0).equal(mel_triangles(FEATURES))
    banks = warped_filterbanks(FEATURES, 1.2)
    assert len(banks) == WARPS
    torch.testing.assert_close(banks[WARPS // 2], mel_triangles(FEATURES).T.float())
    assert warped_filterbanks(FEATURES, 1.0).shape == (1, LINES, 40)


@pytest.mark.parametrize("factor", [0.8, 0.9, 1.1, 1.25])
def test_warped_filterbank_scales_the_frequency_axis(factor):
    """A tone at line f in the warped filterbank gives the same energies as a tone at f * factor in the plain one."""
    warped, plain = warped_triangles(FEATURES, factor), mel_triangles(FEATURES)
    for line in (20, 40, 60):
        peak = warped[:, line].argmax()
        assert abs(peak - plain[:, round(line * factor)].argmax()) <= 1
    assert (peak - plain[:, 60].argmax()).sign() == (1 if factor > 1 else -1)


def test_equaliser_curve_passes_through_its_control_points():
    points = torch.tensor([[0.0, 1.0, -1.0, 2.0, 0.5]])
    curve = equaliser_curves(points, 41).log()
    torch.testing.assert_close(curve[:, ::10], points)
    torch.testing.assert_close(curve[0, 5], torch.tensor(0.5))


@pytest.mark.parametrize("slope", [0.0, 1.0, 2.0])
def test_noise_has_the_requested_snr_and_colour(slope):
    torch.manual_seed(0)
    power, lengths = torch.full((2, 4000, LINES), 3.0), torch.tensor([4000, 2000])
    power[1, 2000:] = 1e9  # beyond the clip, and not heard
    noise = coloured_noise(Placed(power, lengths), torch.full((2,), slope), torch.tensor([10.0, 20.0]))
    ratio = noise.sum(2).mean(1) / (3.0 * LINES)
    torch.testing.assert_close(ratio, torch.tensor([0.1, 0.01]), rtol=0.03, atol=0)
    mean = noise[0].mean(0)
    assert mean[0] / mean[99] == pytest.approx(100**slope, rel=0.15)


def test_mixup_mixes_power_and_labels_in_the_same_ratio():
    a, b = torch.rand(2, 4, LINES), torch.rand(2, 4, LINES)
    share = torch.tensor([0.0, 0.25])
    found = mixed(a, b, share)
    torch.testing.assert_close(found[0], a[0])
    torch.testing.assert_close(found[1], 0.75 * a[1] + 0.25 * b[1])
    labels = mixed(torch.eye(3)[:2], torch.eye(3)[1:], share)
    torch.testing.assert_close(labels, torch.tensor([[1, 0, 0], [0, 0.75, 0.25]]))


def test_blending_stretches_the_partner_and_takes_the_geometric_mean():
    power, lengths = ramp(5, 3)
    found = blended(power, lengths, torch.tensor([1, 0]), torch.tensor([0.5, 1.0]))
    expected = (torch.arange(1.0, 6) * torch.tensor([1, 1.5, 2, 2.5, 3])).sqrt()
    torch.testing.assert_close(found[0, :5, 0], expected)
    torch.testing.assert_close(found[1, :3, 0], torch.tensor([1.0, 3, 5]))


def test_partners_are_other_clips_of_the_same_label():
    torch.manual_seed(0)
    labels = torch.tensor([0, 1, 0, 1, 2, 0])
    for _ in range(20):
        found = partners(torch.nn.functional.one_hot(labels).float())
        assert labels[found].equal(labels)
        assert found[4] == 4
        assert (found != torch.arange(6))[[0, 1, 2, 3, 5]].all()


def test_masks_cover_the_given_range():
    frames = torch.ones(2, 4, 5)
    hidden = masked(frames, 2, torch.tensor([1, 4]), torch.tensor([2, 0]))
    assert hidden[0, 0].tolist() == [1, 0, 0, 1, 1]
    assert hidden[1].equal(frames[1])
    hidden = masked(frames, 1, torch.tensor([3, 0]), torch.tensor([9, 1]))
    assert hidden[:, :, 0].tolist() == [[1, 1, 1, 0], [0, 1, 1, 1]]


def test_spec_augment_masks_stay_within_the_largest_width():
    torch.manual_seed(0)
    frames, lengths = torch.ones(300, 50, 40), torch.full((300,), 50)
    hidden = spec_augment(frames, lengths, Augmentation(masks=1, mask_bins=6, mask_frames=8)) == 0
    in_bins, in_frames = hidden.all(1).sum(1), hidden.all(2).sum(1)
    assert (in_bins.min(), in_bins.max()) == (0, 6)
    assert (in_frames.min(), in_frames.max()) == (0, 8)


def run(config, *, seed=0, batch=64):
    torch.manual_seed(seed)
    power, lengths = torch.rand(batch, 30, LINES) + 0.1, torch.randint(10, 31, (batch,))
    target = torch.nn.functional.one_hot(torch.arange(batch) % 4, 4).float()
    banks = warped_filterbanks(FEATURES, config.warp)
    made = augmented(power, lengths, target, config, banks, lead=3, trail=5, quiet=1e-6)
    return power, lengths, target, made


def test_no_augmentation_is_log_mel_of_the_clip_in_quiet():
    power, lengths, target, made = run(NONE)
    bank = mel_triangles(FEATURES).T.float()
    for row in range(8):
        heard = made.frames[row, 3 : 3 + lengths[row]]
        torch.testing.assert_close(heard, (power[row, : lengths[row]] @ bank).log(), rtol=1e-5, atol=1e-5)
    quiet = (1e-6 * bank.sum(0)).clamp_min(FLOOR).log()
    torch.testing.assert_close(made.frames[:, :3], quiet.expand(64, 3, 40))
    assert made.lengths.equal(lengths + 8)
    assert made.target.equal(target)


@pytest.mark.parametrize("config", [LIGHT, HEAVY, Augmentation(blend=1.0, shift=5)], ids=["light", "heavy", "blend"])
def test_presets_change_every_clip_reproducibly_and_stay_finite(config):
    first, again, other = run(config)[3], run(config)[3], run(config, seed=1)[3]
    assert all(a.equal(b) for a, b in zip(first, again, strict=True))
    assert first.frames.shape != other.frames.shape or not first.frames.equal(other.frames)
    assert first.frames.isfinite().all()
    torch.testing.assert_close(first.target.sum(1), torch.ones(64))


def test_only_mixup_softens_labels():
    hard = run(LIGHT)[3].target
    soft = run(HEAVY)[3].target
    assert set(hard.unique().tolist()) == {0.0, 1.0}
    assert 0.2 < (soft.max(1).values < 1).float().mean() < 0.7


def test_gain_has_the_requested_range():
    made = run(Augmentation(gain=2.0), batch=400)[3]
    plain = run(NONE, batch=400)[3]
    change = (made.frames - plain.frames)[:, 5].mean(1)
    assert change.abs().max() <= 2.001
    assert change.std() == pytest.approx(4 / 12**0.5, rel=0.1)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tempo": 0.9}, "tempo: found 0.9, expected 1 or more"),
        ({"mixup": 1.5}, "mixup: found 1.5, expected a share of 0 to 1"),
        ({"masks": -1}, "masks: found -1, expected 0 or more"),
        ({"snr": (20.0, 5.0)}, "snr: found .*, expected the lower one first"),
    ],
)
def test_bad_augmentation_strengths_are_refused(values, message):
    with pytest.raises(ArgumentError, match=message):
        Augmentation(**values)
