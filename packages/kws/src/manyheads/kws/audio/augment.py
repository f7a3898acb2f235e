"""Augmentation of spoken words on power spectra: vocal tract length, tempo, equaliser, noise, mixup, SpecAugment.

The cost is one product of each clip with its own filterbank.

Only :func:`augmented`, :func:`spec_augment`, :func:`coloured_noise` and :func:`partners` draw random numbers. They use
the global generator of torch. Checkpoints contain its state, so that a resumed run continues exactly. All other
functions take their parameters as arguments.

Shapes: B clips, T frames, F spectral lines, M mel bins, C labels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from manyheads.core.errors import ArgumentError
from manyheads.kws.audio.features import FLOOR, Features, mel_triangles

# Number of filterbanks, on a logarithmic grid of warp factors.
WARPS = 61
# Number of control points of an equaliser curve.
CONTROL_POINTS = 5
# Lower bound of the power of a spectral line, far below that of digital silence with dither.
TINY = 1e-10


@dataclass(frozen=True)
class Augmentation:
    """Strength of each augmentation of training clips. The defaults change nothing."""

    tempo: float = 1.0
    """Largest change of tempo: the factor is log-uniform between 1 / tempo and tempo."""
    warp: float = 1.0
    """Largest vocal tract length perturbation: the frequency axis is scaled by a factor between 1 / warp and warp."""
    gain: float = 0.0
    """Largest change of loudness in nats of power, up or down."""
    equaliser: float = 0.0
    """Standard deviation in nats of a smooth random curve over the mel bins."""
    noise: float = 0.0
    """Share of the clips that get stationary coloured noise."""
    snr: tuple[float, float] = (5.0, 45.0)
    """Lowest and highest signal-to-noise ratio of the noise in dB; uniform between them."""
    masks: int = 0
    """SpecAugment: number of frequency masks, and of time masks. Each is filled with the mean."""
    mask_bins: int = 6
    """Largest width of a frequency mask in mel bins."""
    mask_frames: int = 8
    """Largest width of a time mask in frames."""
    mixup: float = 0.0
    """Share of the clips that are mixed with another clip of the batch. The labels are mixed in the same ratio."""
    mixup_shape: float = 10.0
    """The ratio of the second clip is drawn from Beta(shape, shape)."""
    blend: float = 0.0
    """Share of the clips that are blended with another clip of the same word in the batch: a voice between two
    speakers. The other clip is stretched to the same length. The result is the geometric mean of the spectra, with
    a ratio uniform from 0 to 1."""
    shift: int = 0
    """Largest shift of the start in frames: earlier (the beginning is cut off) or later."""
    position: int = 0
    """Largest delay of the start in frames, after quiet."""
    floor: float = 0.0
    """Standard deviation in nats of the level of the quiet around the clip."""

    def __post_init__(self) -> None:
        for name in ("tempo", "warp"):
            if getattr(self, name) < 1:
                raise ArgumentError(f"augmentation: {name}: found {getattr(self, name)}, expected 1 or more")
        for name in ("noise", "mixup", "blend"):
            if not 0 <= getattr(self, name) <= 1:
                raise ArgumentError(f"augmentation: {name}: found {getattr(self, name)}, expected a share of 0 to 1")
        for name in ("gain", "equaliser", "masks", "shift", "position", "floor"):
            if getattr(self, name) < 0:
                raise ArgumentError(f"augmentation: {name}: found {getattr(self, name)}, expected 0 or more")
        if self.snr[0] > self.snr[1]:
            raise ArgumentError(f"augmentation: snr: found {self.snr}, expected the lower one first")


NONE = Augmentation()
LIGHT = Augmentation(tempo=1.15, warp=1.12, gain=0.5, equaliser=0.3, masks=1, floor=1.0)
# Better in noise, worse on unseen speakers (benchmarks/notes/keyword-recipes.md).
HEAVY = replace(LIGHT, tempo=1.25, warp=1.25, gain=1.0, equaliser=0.7, noise=0.8, masks=2, mixup=0.5)


class Placed(NamedTuple):
    """Clips padded with quiet frames to one length."""

    power: Tensor  # (B, T, F)
    lengths: Tensor  # (B,) number of valid frames: quiet before, clip, quiet after


def place(
    power: Tensor, lengths: Tensor, pace: Tensor, onset: Tensor, trail: int, quiet: Tensor, longest: int = 0
) -> Placed:
    """Change the tempo of each clip and place it in quiet.

    Args:
        power: ``(B, T, F)`` power spectra.
        lengths: ``(B,)`` frames of each clip.
        pace: ``(B,)`` tempo factors. Frames in between are interpolated linearly.
        onset: ``(B,)`` first frame of each clip. Below 0 its beginning is cut off.
        trail: number of quiet frames after the clip.
        quiet: ``(B,)`` power of each spectral line in the quiet frames.
        longest: largest number of frames; 0 for no limit.
    """
    # Valid frames: onset, the clip at its new tempo, and the quiet after it.
    played_frames = ((lengths - 1) / pace).floor().long() + 1
    ends = (onset + played_frames).clamp_min(1) + trail
    ends = ends.clamp_max(longest) if longest else ends
    # Fractional source frame of each output frame.
    frame = torch.arange(int(ends.max()), device=power.device)
    source = (frame - onset.unsqueeze(1)) * pace.unsqueeze(1)
    last = (lengths - 1).unsqueeze(1)
    inside = (source >= 0) & (source <= last)
    # Linear interpolation between the two neighbouring frames; quiet outside the clip.
    source = source.clamp_min(0).minimum(last)
    left = source.floor().long()
    rows = torch.arange(len(power), device=power.device).unsqueeze(1)
    before, after = power[rows, left], power[rows, (left + 1).minimum(last.long())]
    played = torch.lerp(before, after, (source - left).to(power).unsqueeze(2))
    return Placed(torch.where(inside.unsqueeze(2), played, quiet.view(-1, 1, 1)), ends)


def warped_triangles(features: Features, factor: float) -> Tensor:
    """Return the mel filterbank ``(M, F)`` for vocal tract length perturbation by ``factor``.

    The filterbank maps a speaker whose formants are ``factor`` times as high to the recorded speaker. Spectral line f
    is read as ``f * factor`` up to a knee at 0.8 of the band, and linearly from there to the top of the band.
    """
    plain = mel_triangles(features)
    lines = torch.arange(plain.shape[1], dtype=torch.float64)
    top = lines[-1]
    knee = 0.8 * top * min(1.0, 1.0 / factor)
    beyond = knee * factor + (lines - knee) * (top - knee * factor) / (top - knee)
    position = torch.where(lines <= knee, lines * factor, beyond).clamp(0, float(top))
    left = position.floor().long().clamp_max(len(lines) - 2)
    return torch.lerp(plain[:, left], plain[:, left + 1], (position - left).unsqueeze(0))


def warped_filterbanks(features: Features, largest: float) -> Tensor:
    """Return filterbanks ``(WARPS, F, M)`` float32 for factors from 1 / largest to largest.

    The middle one is not warped. If ``largest`` is 1, this is the only one.
    """
    grid = [largest ** (2 * i / (WARPS - 1) - 1) for i in range(WARPS)] if largest > 1 else [1.0]
    return torch.stack([warped_triangles(features, factor).T for factor in grid]).float()


def equaliser_curves(points: Tensor, bins: int) -> Tensor:
    """Return gains ``(B, M)`` from control points ``(B, P)`` in nats, evenly spaced and interpolated linearly."""
    joined = torch.nn.functional.interpolate(points.unsqueeze(1), bins, mode="linear", align_corners=True)
    return joined.squeeze(1).exp()


def coloured_noise(placed: Placed, slope: Tensor, snr: Tensor) -> Tensor:
    """Return noise spectra ``(B, T, F)`` whose power falls as ``line^-slope``, ``snr`` dB below each clip's mean power.

    Each line of each frame is drawn from an exponential distribution: the power spectrum of Gaussian noise.
    """
    power, lengths = placed
    # Shape of the spectrum, of sum 1.
    lines = torch.arange(1, power.shape[2] + 1, device=power.device, dtype=power.dtype)
    shape = lines ** -slope.unsqueeze(1)
    shape = shape / shape.sum(1, keepdim=True)
    # Mean power of each clip over its valid frames.
    inside = torch.arange(power.shape[1], device=power.device) < lengths.unsqueeze(1)
    signal = (power.sum(2) * inside).sum(1) / lengths
    level = shape * (signal * 10 ** (-snr / 10)).unsqueeze(1)
    return torch.empty_like(power).exponential_() * level.unsqueeze(1)


def mixed(first: Tensor, second: Tensor, share: Tensor) -> Tensor:
    """Return ``(1 - share) first + share second``, with share ``(B,)``: mixup of power spectra or of labels."""
    share = share.view(-1, *([1] * (first.dim() - 1)))
    return first + share * (second - first)


def blended(power: Tensor, lengths: Tensor, partner: Tensor, share: Tensor) -> Tensor:
    """Blend each clip a with its partner b, line by line: ``a^(1 - share) b^share``.

    The partner is first stretched linearly to the length of the clip. ``partner (B,)`` are indices, ``share (B,)``.
    """
    # Stretch the partner.
    ratio = (lengths[partner] - 1) / (lengths - 1).clamp_min(1)
    source = (torch.arange(power.shape[1], device=power.device) * ratio.unsqueeze(1)).to(power)
    last = lengths[partner].unsqueeze(1) - 1
    source = source.minimum(last.to(source))
    left = source.floor().long()
    other = power[partner]
    rows = torch.arange(len(power), device=power.device).unsqueeze(1)
    stretched = torch.lerp(other[rows, left], other[rows, (left + 1).minimum(last)], (source - left).unsqueeze(2))
    # Geometric mean: interpolate the logarithms.
    log_a, log_b = power.clamp_min(TINY).log(), stretched.clamp_min(TINY).log()
    return torch.lerp(log_a, log_b, share.view(-1, 1, 1)).exp()


def partners(target: Tensor) -> Tensor:
    """Draw for each row of ``target (B, C)`` another row with the same label; the row itself if there is none."""
    same = (target @ target.T > 0.5).float()
    same.fill_diagonal_(1e-6)
    return torch.multinomial(same, 1).squeeze(1)


def masked(frames: Tensor, axis: int, start: Tensor, width: Tensor) -> Tensor:
    """Set ``start <= index < start + width`` on one axis of centred frames ``(B, T, M)`` to 0, which is their mean."""
    index = torch.arange(frames.shape[axis], device=frames.device)
    hidden = (index >= start.unsqueeze(1)) & (index < (start + width).unsqueeze(1))
    return frames.masked_fill(hidden.unsqueeze(3 - axis), 0.0)


class Augmented(NamedTuple):
    """Log-mel frames before the running mean is subtracted."""

    frames: Tensor  # (B, T, M)
    lengths: Tensor  # (B,)
    target: Tensor  # (B, C) probabilities of the labels


def augmented(
    power: Tensor,
    lengths: Tensor,
    target: Tensor,
    config: Augmentation,
    filterbanks: Tensor,
    *,
    lead: int,
    trail: int,
    quiet: float,
    longest: int = 0,
) -> Augmented:
    """Augment a batch of clips at random.

    The SpecAugment masks are not included: :func:`spec_augment` applies them after the running mean is subtracted.

    Args:
        power: ``(B, T, F)`` power spectra.
        lengths: ``(B,)`` frames of each clip.
        target: ``(B, C)`` probabilities of the labels.
        config: strength of each augmentation.
        filterbanks: ``(W, F, M)`` from :func:`warped_filterbanks`; one is drawn for each clip.
        lead: number of quiet frames before each clip.
        trail: number of quiet frames after each clip.
        quiet: mean power of each spectral line in the quiet frames.
        longest: largest number of frames; 0 for no limit.
    """
    batch = len(power)
    # Blend with another speaker of the same word.
    if config.blend:
        share = torch.rand(batch) * (torch.rand(batch) < config.blend)
        power = blended(power, lengths, partners(target), share)
    # Tempo, position in the window, and level of the quiet.
    pace = ((torch.rand(batch) * 2 - 1) * math.log(config.tempo)).exp()
    onset = lead + torch.randint(-config.shift, config.shift + 1, (batch,))
    onset = onset + torch.randint(0, config.position + 1, (batch,))
    level = quiet * (torch.randn(batch) * config.floor).exp()
    placed = place(power, lengths, pace, onset, trail, level, longest)
    power, lengths = placed
    # Loudness.
    power = power * ((torch.rand(batch, 1, 1) * 2 - 1) * config.gain).exp()
    if config.mixup:
        partner = torch.randperm(batch)
        shape = torch.full((batch,), config.mixup_shape)
        share = torch.distributions.Beta(shape, shape, validate_args=False).sample()
        share = share * (torch.rand(batch) < config.mixup)
        power, target = mixed(power, power[partner], share), mixed(target, target[partner], share)
        lengths = torch.where(share > 0, lengths.maximum(lengths[partner]), lengths)
    if config.noise:
        low, high = config.snr
        noise = coloured_noise(Placed(power, lengths), torch.rand(batch) * 2, low + torch.rand(batch) * (high - low))
        power = power + noise * (torch.rand(batch, 1, 1) < config.noise)
    # Vocal tract length and equaliser, both in the filterbank.
    bank = filterbanks[torch.randint(len(filterbanks), (batch,))]
    if config.equaliser:
        curves = equaliser_curves(torch.randn(batch, CONTROL_POINTS) * config.equaliser, bank.shape[2])
        bank = bank * curves.unsqueeze(1)
    return Augmented((power @ bank).clamp_min(FLOOR).log(), lengths, target)


def spec_augment(frames: Tensor, lengths: Tensor, config: Augmentation) -> Tensor:
    """Apply SpecAugment: ``config.masks`` frequency masks and as many time masks, of random position and width.

    ``frames (B, T, M)`` are centred; time masks stay within ``lengths (B,)``.
    """
    batch, _, bins = frames.shape
    for _ in range(config.masks):
        width = torch.randint(0, config.mask_bins + 1, (batch,))
        frames = masked(frames, 2, (torch.rand(batch) * (bins - width + 1)).long(), width)
        width = torch.randint(0, config.mask_frames + 1, (batch,))
        frames = masked(frames, 1, (torch.rand(batch) * (lengths - width + 1).clamp_min(1)).long(), width)
    return frames
