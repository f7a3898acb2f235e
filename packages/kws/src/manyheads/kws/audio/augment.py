"""Augmentation of spoken words in the domain of power spectra: another speaker, another pace, another microphone,
another room, for the price of one product with a filterbank of each clip's own.

Shapes: B clips, T frames, F spectral lines, M mel bins. Every function that changes clips is told how; only
:func:`augmented` draws, from torch's global generator, which checkpoints hold, so that a resumed run goes on exactly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from manyheads.core.errors import ArgumentError
from manyheads.kws.audio.features import FLOOR, Features, mel_triangles

WARPS = 61  # filterbanks on a logarithmic grid of warps
CONTROL_POINTS = 5  # of an equaliser's curve
TINY = 1e-10  # power of a spectral line far below that of digital silence with dither


@dataclass(frozen=True)
class Augmentation:
    """How strongly training clips are changed; all zero or one changes nothing."""

    tempo: float = 1.0
    """Pace, drawn log-uniformly between 1 / tempo and tempo."""
    warp: float = 1.0
    """Length of the vocal tract: the frequency axis is scaled by a factor between 1 / warp and warp."""
    gain: float = 0.0
    """Loudness in nats of power, either way."""
    equaliser: float = 0.0
    """Standard deviation in nats of a smooth random curve over the mel bins."""
    noise: float = 0.0
    """Share of the clips that get stationary coloured noise."""
    snr: tuple[float, float] = (5.0, 45.0)
    """Its signal-to-noise ratio in dB, uniform between the two."""
    masks: int = 0
    """SpecAugment: so many masks in frequency and as many in time, each of them filled with the mean."""
    mask_bins: int = 6
    mask_frames: int = 8
    mixup: float = 0.0
    """Share of the clips that are mixed with another one of the batch; the labels are shared likewise."""
    mixup_shape: float = 10.0
    """The share of the second clip is drawn from Beta(shape, shape)."""
    blend: float = 0.0
    """Share of the clips that become a word between two speakers: another clip of the same word in the batch, brought
    to the same length, mixed with this one as geometric mean of their spectra, in shares uniform from 0 to 1."""
    shift: int = 0
    """The clip begins up to so many frames earlier (its beginning is cut off) or later."""
    position: int = 0
    """The clip begins up to so many frames later, after quiet."""
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
HEAVY = replace(
    LIGHT, tempo=1.25, warp=1.25, gain=1.0, equaliser=0.7, noise=0.8, masks=2, mixup=0.5
)  # helps with noise, costs on unseen speakers (docs/kws.md)


class Placed(NamedTuple):
    """Clips in windows of one length; the rest of a window is quiet."""

    power: Tensor  # (B, T, F)
    lengths: Tensor  # (B,) frames that count: the quiet before, the clip, the quiet after


def place(
    power: Tensor, lengths: Tensor, pace: Tensor, onset: Tensor, trail: int, quiet: Tensor, longest: int = 0
) -> Placed:
    """Each clip played ``pace`` times as fast, from frame ``onset`` on (below 0 its beginning is cut off).

    Frames between two of the clip are interpolated linearly. ``quiet (B,)`` is the power of each line before the clip
    and in the ``trail`` frames after it. Windows end after ``longest`` frames, unless that is 0.
    """
    heard = ((lengths - 1) / pace).floor().long() + 1
    ends = (onset + heard).clamp_min(1) + trail
    ends = ends.clamp_max(longest) if longest else ends
    frame = torch.arange(int(ends.max()), device=power.device)
    source = (frame - onset.unsqueeze(1)) * pace.unsqueeze(1)
    last = (lengths - 1).unsqueeze(1)
    inside = (source >= 0) & (source <= last)
    source = source.clamp_min(0).minimum(last)
    left = source.floor().long()
    rows = torch.arange(len(power), device=power.device).unsqueeze(1)
    before, after = power[rows, left], power[rows, (left + 1).minimum(last.long())]
    played = torch.lerp(before, after, (source - left).to(power).unsqueeze(2))
    return Placed(torch.where(inside.unsqueeze(2), played, quiet.view(-1, 1, 1)), ends)


def warped_triangles(features: Features, factor: float) -> Tensor:
    """``(M, F)``: the filterbank with which a speaker whose formants lie ``factor`` times as high sounds like the one
    recorded; line f is read as ``f * factor`` up to 0.8 of the band, and linearly from there to its top."""
    plain = mel_triangles(features)
    lines = torch.arange(plain.shape[1], dtype=torch.float64)
    top = lines[-1]
    knee = 0.8 * top * min(1.0, 1.0 / factor)
    beyond = knee * factor + (lines - knee) * (top - knee * factor) / (top - knee)
    where = torch.where(lines <= knee, lines * factor, beyond).clamp(0, float(top))
    left = where.floor().long().clamp_max(len(lines) - 2)
    return torch.lerp(plain[:, left], plain[:, left + 1], (where - left).unsqueeze(0))


def warped_filterbanks(features: Features, largest: float) -> Tensor:
    """``(WARPS, F, M)`` float32 for factors from 1 / largest to largest, the middle one plain."""
    grid = [largest ** (2 * i / (WARPS - 1) - 1) for i in range(WARPS)] if largest > 1 else [1.0]
    return torch.stack([warped_triangles(features, factor).T for factor in grid]).float()


def equaliser_curves(points: Tensor, bins: int) -> Tensor:
    """Control points ``(B, P)`` in nats, evenly spaced over the bins and joined linearly -> gains ``(B, M)``."""
    joined = torch.nn.functional.interpolate(points.unsqueeze(1), bins, mode="linear", align_corners=True)
    return joined.squeeze(1).exp()


def coloured_noise(placed: Placed, slope: Tensor, snr: Tensor) -> Tensor:
    """Noise spectra ``(B, T, F)``, power falling as ``line^-slope``, at ``snr`` dB below the mean power of each clip;
    each line of each frame is exponentially distributed, as the spectrum of Gaussian noise is."""
    power, lengths = placed
    lines = torch.arange(1, power.shape[2] + 1, device=power.device, dtype=power.dtype)
    shape = lines ** -slope.unsqueeze(1)
    shape = shape / shape.sum(1, keepdim=True)
    inside = torch.arange(power.shape[1], device=power.device) < lengths.unsqueeze(1)
    signal = (power.sum(2) * inside).sum(1) / lengths
    level = shape * (signal * 10 ** (-snr / 10)).unsqueeze(1)
    return torch.empty_like(power).exponential_() * level.unsqueeze(1)


def mixed(first: Tensor, second: Tensor, share: Tensor) -> Tensor:
    """``(1 - share) first + share second``, share ``(B,)`` along the first axis: of power spectra, and of labels."""
    share = share.view(-1, *([1] * (first.dim() - 1)))
    return first + share * (second - first)


def blended(power: Tensor, lengths: Tensor, partner: Tensor, share: Tensor) -> Tensor:
    """Each clip with its ``partner``, stretched linearly to the clip's length: ``a^(1 - share) b^share``, each line."""
    ratio = (lengths[partner] - 1) / (lengths - 1).clamp_min(1)
    source = (torch.arange(power.shape[1], device=power.device) * ratio.unsqueeze(1)).to(power)
    last = lengths[partner].unsqueeze(1) - 1
    source = source.minimum(last.to(source))
    left = source.floor().long()
    other = power[partner]
    rows = torch.arange(len(power), device=power.device).unsqueeze(1)
    stretched = torch.lerp(other[rows, left], other[rows, (left + 1).minimum(last)], (source - left).unsqueeze(2))
    log_a, log_b = power.clamp_min(TINY).log(), stretched.clamp_min(TINY).log()
    return torch.lerp(log_a, log_b, share.view(-1, 1, 1)).exp()


def partners(target: Tensor) -> Tensor:
    """For each row another one with the same label, drawn at random; itself where there is none."""
    same = (target @ target.T > 0.5).float()
    same.fill_diagonal_(1e-6)
    return torch.multinomial(same, 1).squeeze(1)


def masked(frames: Tensor, axis: int, start: Tensor, width: Tensor) -> Tensor:
    """Frames ``(B, T, M)``, centred, with ``start <= index < start + width`` on an axis set to 0, their mean."""
    index = torch.arange(frames.shape[axis], device=frames.device)
    hidden = (index >= start.unsqueeze(1)) & (index < (start + width).unsqueeze(1))
    return frames.masked_fill(hidden.unsqueeze(3 - axis), 0.0)


class Augmented(NamedTuple):
    """Log-mel frames that are not yet centred."""

    frames: Tensor  # (B, T, M)
    lengths: Tensor  # (B,)
    target: Tensor  # (B, C) shares of the labels


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
    """A batch of clips ``(B, T, F)`` changed at random as ``config`` says; the masks come after the frames are centred,
    by :func:`spec_augment`."""
    batch = len(power)
    if config.blend:
        share = torch.rand(batch) * (torch.rand(batch) < config.blend)
        power = blended(power, lengths, partners(target), share)
    pace = ((torch.rand(batch) * 2 - 1) * math.log(config.tempo)).exp()
    onset = lead + torch.randint(-config.shift, config.shift + 1, (batch,))
    onset = onset + torch.randint(0, config.position + 1, (batch,))
    level = quiet * (torch.randn(batch) * config.floor).exp()
    placed = place(power, lengths, pace, onset, trail, level, longest)
    power, lengths = placed
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
    bank = filterbanks[torch.randint(len(filterbanks), (batch,))]
    if config.equaliser:
        curves = equaliser_curves(torch.randn(batch, CONTROL_POINTS) * config.equaliser, bank.shape[2])
        bank = bank * curves.unsqueeze(1)
    return Augmented((power @ bank).clamp_min(FLOOR).log(), lengths, target)


def spec_augment(frames: Tensor, lengths: Tensor, config: Augmentation) -> Tensor:
    """``config.masks`` masks in frequency and as many in time, of random place and width."""
    batch, _, bins = frames.shape
    for _ in range(config.masks):
        width = torch.randint(0, config.mask_bins + 1, (batch,))
        frames = masked(frames, 2, (torch.rand(batch) * (bins - width + 1)).long(), width)
        width = torch.randint(0, config.mask_frames + 1, (batch,))
        frames = masked(frames, 1, (torch.rand(batch) * (lengths - width + 1).clamp_min(1)).long(), width)
    return frames
