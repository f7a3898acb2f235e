"""Kaldi-compatible log-mel features in plain torch, for whole recordings or chunks of any size.

Each frame has W samples (the window); frames start every S samples (the hop). The steps for one frame:

1. Subtract its mean.
2. Pre-emphasis: ``y[i] = x[i] - a x[i - 1]``, ``y[0] = (1 - a) x[0]``.
3. Multiply by the window, pad to a power of two, take the power spectrum.
4. Sum it with triangular weights on the mel scale ``m = 1127 ln(1 + f / 700)``.
5. Take the natural logarithm, with a floor.

Frames lie wholly inside the signal (``snip_edges`` of Kaldi): N samples give ``1 + floor((N - W) / S)`` frames. Frame t
is known S t + W samples after the start.

Shapes: B batch, N samples, T frames, W samples of a frame, F spectral lines, M mel bins. Samples are in [-1, 1].
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from manyheads.core.errors import ArgumentError
from manyheads.kws.audio.containers import RATES

# Longest window in milliseconds.
LONGEST = 1000.0
# Floor of a mel energy, as in Kaldi: the float32 epsilon.
FLOOR = 1.1920928955078125e-07


@dataclass(frozen=True)
class Features:
    """Configuration of log-mel features; times in milliseconds, frequencies in Hz.

    The defaults are those of Kaldi, but with 40 mel bins and without dither.
    """

    sample_rate: int = 16000
    bins: int = 40
    window: float = 25.0
    hop: float = 10.0
    low: float = 20.0
    high: float = 0.0
    """Upper edge of the last mel bin. 0 or below: an offset from half the sample rate."""
    shape: Literal["povey", "hanning"] = "povey"
    preemphasis: float = 0.97

    @property
    def window_samples(self) -> int:
        return int(self.sample_rate * self.window / 1000)

    @property
    def hop_samples(self) -> int:
        return int(self.sample_rate * self.hop / 1000)

    @property
    def fft_samples(self) -> int:
        return 1 << (self.window_samples - 1).bit_length()

    @property
    def top(self) -> float:
        """Upper edge of the last mel bin in Hz."""
        return self.high if self.high > 0 else self.sample_rate / 2 + self.high

    def frames(self, samples: int) -> int:
        """Return the number of frames in this many samples."""
        return 0 if samples < self.window_samples else 1 + (samples - self.window_samples) // self.hop_samples


class SampleState(NamedTuple):
    """Last samples of a stream, needed by the next frames."""

    samples: Tensor  # (B, fewer than W + S)


class LogMel(nn.Module):
    """Log-mel features: samples ``(B, N)`` to frames ``(B, T, M)``. The module docstring lists the steps.

    ``forward(samples, state)`` continues a stream. Chunks of any size, also empty ones, give the frames of the whole.

    Accuracy in float32: mel energies equal those of kaldi-native-fbank within 5e-5 of the strongest bin of the frame,
    and chunks equal the whole within 2e-6 of it. A bin far below the strongest one loses its digits in rounding, so
    its logarithm may differ by more.

    Raises:
        ArgumentError: a sample rate out of range, a hop or window below one sample or above one second, frequencies
            out of order, or so many mel bins that one of them contains no spectral line.
    """

    window: Tensor
    triangles: Tensor

    def __init__(self, features: Features = Features()) -> None:
        super().__init__()
        if not RATES[0] <= features.sample_rate <= RATES[1]:
            raise ArgumentError(
                f"features: sample_rate: found {features.sample_rate}, expected {RATES[0]} to {RATES[1]} Hz"
            )
        if not 0 < features.hop <= features.window <= LONGEST or features.hop_samples < 1:
            raise ArgumentError(
                f"features: found a window of {features.window} and a hop of {features.hop} ms, expected a hop of at "
                f"least a sample and a window from the hop to {LONGEST:g} ms"
            )
        if not 1 <= features.bins <= features.fft_samples // 2:
            raise ArgumentError(
                f"features: bins: found {features.bins}, expected 1 to {features.fft_samples // 2}, a line each"
            )
        if not 0 <= features.low < features.top <= features.sample_rate / 2:
            raise ArgumentError(
                f"features: found low={features.low} and high={features.top} Hz, expected 0 <= low < high <= "
                f"{features.sample_rate / 2}"
            )
        self.features = features
        self.register_buffer("window", _window(features.window_samples, features.shape), persistent=False)
        self.register_buffer("triangles", mel_triangles(features).float().T.contiguous(), persistent=False)

    def init_state(self, batch: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None):
        """Return the state before the first sample."""
        return SampleState(torch.zeros(batch, 0, device=device, dtype=dtype))

    def forward(self, samples: Tensor, state: SampleState | None = None) -> tuple[Tensor, SampleState]:
        """Return frames ``(B, T, M)`` of samples ``(B, N)``, and the new state; T may be 0."""
        if samples.dim() != 2:
            raise ArgumentError(f"samples: found shape {tuple(samples.shape)}, expected (B, N)")
        known = samples if state is None else torch.cat([state.samples, samples], 1)
        features = self.features
        count = features.frames(known.shape[1])
        rest = SampleState(known[:, count * features.hop_samples :])
        if count == 0:
            return known.new_zeros(known.shape[0], 0, features.bins), rest
        frames = known.unfold(1, features.window_samples, features.hop_samples)
        return self.log_mel(self.power(frames)), rest

    def power(self, frames: Tensor) -> Tensor:
        """Return power spectra ``(…, F)`` of frames ``(…, W)``: mean removal, pre-emphasis, window, FFT."""
        centred = frames - frames.mean(-1, keepdim=True)
        before = torch.cat([centred[..., :1], centred[..., :-1]], -1)
        shaped = (centred - self.features.preemphasis * before) * self.window
        return torch.view_as_real(torch.fft.rfft(shaped, n=self.features.fft_samples)).square().sum(-1)

    def log_mel(self, power: Tensor) -> Tensor:
        """Return log-mel energies ``(…, M)`` of power spectra ``(…, F)``."""
        return (power @ self.triangles).clamp_min(FLOOR).log()


def mel_triangles(features: Features) -> Tensor:
    """Return the mel filterbank ``(M, F)`` in float64: triangles that are linear on the mel scale.

    The line at half the sample rate has weight 0, as in Kaldi. Raises :class:`ArgumentError` for a bin without a line.
    """
    lines = torch.arange(features.fft_samples // 2, dtype=torch.float64) * features.sample_rate / features.fft_samples
    low, high = _mel(features.low), _mel(features.top)
    step = (high - low) / (features.bins + 1)
    left = low + step * torch.arange(features.bins, dtype=torch.float64).unsqueeze(1)
    mel = 1127.0 * torch.log1p(lines / 700.0)
    weights = torch.minimum((mel - left) / step, (left + 2 * step - mel) / step).clamp_min(0.0)
    empty = (weights.sum(1) == 0).nonzero().flatten().tolist()
    if empty:
        raise ArgumentError(
            f"features: bins: found {features.bins}, but bin {empty[0]} holds no line of a spectrum of "
            f"{features.fft_samples} samples at {features.sample_rate} Hz: take fewer bins or a longer window"
        )
    return torch.cat([weights, torch.zeros(features.bins, 1, dtype=torch.float64)], 1)


def _mel(frequency: float) -> float:
    return 1127.0 * math.log1p(frequency / 700.0)


def _window(samples: int, shape: str) -> Tensor:
    hann = torch.hann_window(samples, periodic=False, dtype=torch.float64)
    return (hann**0.85 if shape == "povey" else hann).float()


class MeanState(NamedTuple):
    """Running sums of :class:`RunningMean`; the mean is ``total / weight``."""

    total: Tensor  # (B, M): m[t]
    weight: Tensor  # (B, 1): w[t]


class RunningMean(nn.Module):
    """Subtract the running mean of each mel bin (causal mean normalisation):

        m[t] = d m[t - 1] + (1 - d) x[t],   w[t] = d w[t - 1] + (1 - d),   y[t] = x[t] - m[t] / w[t]

    with ``d = exp(-1 / tau)`` and ``tau`` in frames. Input and output are ``(B, T, M)``. The sums are computed in
    blocks of frames, so that long inputs need no loop over single frames.
    """

    BLOCK = 64
    powers: Tensor
    decays: Tensor

    def __init__(self, tau: float = 50.0) -> None:
        super().__init__()
        if not tau > 0:
            raise ArgumentError(f"tau: found {tau}, expected more than 0 frames")
        self.tau = tau
        # powers[t, s] = (1 - d) d^(t - s) for s <= t: weight of frame s in the mean after frame t of a block.
        decay = math.exp(-1.0 / tau)
        lag = torch.arange(self.BLOCK, dtype=torch.float64)
        distance = lag.unsqueeze(1) - lag
        powers = torch.where(distance >= 0, (1 - decay) * decay ** distance.clamp_min(0), 0.0)
        self.register_buffer("powers", powers.float(), persistent=False)
        self.register_buffer("decays", (decay ** (lag + 1)).float(), persistent=False)

    def init_state(self, batch: int, bins: int, *, device: torch.device | None = None, dtype=None) -> MeanState:
        """Return the state before the first frame."""
        made = (torch.zeros(batch, width, device=device, dtype=dtype) for width in (bins, 1))
        return MeanState(*made)

    def forward(self, frames: Tensor, state: MeanState | None = None) -> tuple[Tensor, MeanState]:
        """Return centred frames ``(B, T, M)`` and the new state."""
        batch, _, bins = frames.shape
        state = self.init_state(batch, bins, device=frames.device, dtype=frames.dtype) if state is None else state
        if frames.shape[1] == 0:
            return frames, state
        # A column of ones beside the bins gives w[t] by the same sums as m[t].
        one = torch.ones_like(frames[..., :1])
        sums, parts = torch.cat(state, 1), []
        for block in torch.cat([frames, one], 2).split(self.BLOCK, 1):
            length = block.shape[1]
            powers, decays = self.powers[:length, :length].to(block), self.decays[:length].to(block)
            running = powers @ block + decays.unsqueeze(1) * sums.unsqueeze(1)
            sums = running[:, -1]
            parts.append(running)
        running = torch.cat(parts, 1)
        return frames - running[..., :-1] / running[..., -1:], MeanState(sums[:, :-1], sums[:, -1:])
