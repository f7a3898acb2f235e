"""Reference implementation of the published LMUFormer, forward only: the baseline of the speed benchmark.

Written from the description of the layers, for the benchmark only. Channels come first; every product of the stem, the
mixer and the feed-forward network is a ``conv1d``; batch norm is not folded. The memory is an FFT of the fixed length
128. Neurons loop over the steps with the operations of spikingjelly's torch backend. Weights are random.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from manyheads.core.functional.legendre import discretise, impulse_response, legendre_matrices

FRAMES = 128


class Neurons(nn.Module):
    """LIF neurons, ``(B, C, N)`` in and out; the time axis moves to the front and back, as in spikingjelly."""

    def __init__(self, threshold: float = 1.0) -> None:
        super().__init__()
        self.threshold = threshold

    def forward(self, x: Tensor) -> Tensor:
        steps = x.permute(2, 1, 0).contiguous()
        v, spikes = torch.zeros_like(steps[0]), []
        for x_t in steps:
            v = v + (x_t - v) / 2.0
            spike = (v >= self.threshold).to(x)
            v = (1.0 - spike) * v
            spikes.append(spike)
        return torch.stack(spikes).permute(2, 1, 0).contiguous()


class Cell(nn.Module):
    """The Legendre memory unit, ``(B, N, C)`` in and out."""

    def __init__(self, width: int, order: int, spiking: bool) -> None:
        super().__init__()
        transition, drive = discretise(*legendre_matrices(order, FRAMES))
        response = impulse_response(transition, drive, FRAMES).T.float()
        self.register_buffer("spectrum", torch.fft.rfft(response, n=2 * FRAMES))
        self.inner, self.hidden = nn.Linear(width, 1), nn.Linear(order + width, width)
        self.spiking = spiking
        self.norms = nn.ModuleList(nn.BatchNorm1d(n) for n in (1, order, width)) if spiking else None
        self.neurons = Neurons()

    def site(self, n: int, x: Tensor) -> Tensor:
        """Apply nonlinearity ``n`` to ``(B, N, C)``: ReLU (not on the memory), or batch norm and neurons."""
        if self.norms is None:
            return torch.relu(x) if n != 1 else x
        return self.neurons(self.norms[n](x.mT.contiguous())).mT.contiguous()

    def forward(self, x: Tensor) -> Tensor:
        u = self.site(0, self.inner(x))
        spectrum = torch.fft.rfft(u.mT, n=2 * FRAMES, dim=-1)
        m = torch.fft.irfft(spectrum * self.spectrum.unsqueeze(0), n=2 * FRAMES, dim=-1)[:, :, :FRAMES].mT
        m = self.site(1, m)
        return self.site(2, self.hidden(torch.cat([m, x], -1)))


class Reference(nn.Module):
    """The published network: frames ``(B, 128, 128)`` to logits ``(B, 35)``."""

    def __init__(self, *, spiking: bool, bins: int = 128, width: int = 256, labels: int = 35) -> None:
        super().__init__()
        self.spiking = spiking
        self.stem = nn.ModuleList(
            nn.Conv1d(bins if n == 0 else width, width, 3, padding=1, bias=False) for n in range(4)
        )
        self.stem_norms = nn.ModuleList(nn.BatchNorm1d(width) for _ in range(4))
        self.position = nn.Conv1d(width, width, 3, padding=1, bias=False)
        self.cell = Cell(width, 2 * width if spiking else width, spiking)
        self.mix, self.mix_norm = nn.Conv1d(width, width, 1), nn.BatchNorm1d(width)
        self.widen, self.narrow = nn.Conv1d(width, 4 * width, 1), nn.Conv1d(4 * width, width, 1)
        self.ffn_norms = nn.ModuleList(
            nn.BatchNorm1d(n) for n in ((width, 4 * width) if spiking else (4 * width, width))
        )
        self.entry_norm = nn.BatchNorm1d(width) if spiking else None
        self.head_norm = nn.BatchNorm1d(width) if spiking else None
        self.neurons, self.early = Neurons(), Neurons(0.5)
        self.head = nn.Linear(width, labels)

    def forward(self, frames: Tensor) -> Tensor:
        x = frames.permute(0, 2, 1).contiguous()
        for n, (convolution, norm) in enumerate(zip(self.stem, self.stem_norms, strict=True)):
            if not self.spiking:
                x = norm(torch.relu(convolution(x)))
            else:
                x = convolution(x)
                side = self.neurons(norm(x))
                x = side if n < 3 else x + self.position(side)
        if not self.spiking:
            x = x + self.position(x)
        y = x if self.entry_norm is None else self.early(self.entry_norm(x))
        y = self.cell(y.permute(0, 2, 1).contiguous()).permute(0, 2, 1).contiguous()
        x = x + self.mix_norm(self.mix(y))
        first, second = self.ffn_norms
        if self.spiking:
            y = self.narrow(self.neurons(second(self.widen(self.neurons(first(x))))))
        else:
            y = torch.relu(second(self.narrow(functional.gelu(first(self.widen(x))))))
        x = x + y
        if self.head_norm is not None:
            x = self.neurons(self.head_norm(x))
        return self.head(x.permute(0, 2, 1).contiguous()).mean(1)
