"""The stems of LMUFormer: convolutions over time with mel bins as channels ("1d"), or over time and mel bins ("2d").

    x <- site(conv_n(x)), n = 1 …;   y = x + position(x)                 without spikes
    x <- site(conv_n(x)), n = 1 … L - 1;   z = conv_L(x);   y = z + position(site(z))    spiking (membrane shortcut)

The "1d" stem has the given kernels. The "2d" stem has kernels 3 x 5, then 3 x 3; each convolution halves the bins, and
a linear map of the flattened rest gives the channels. ``position`` has kernel 3. The second convolution may have a
stride of 2 frames. The look-ahead is given to the first convolutions, to each at most the amount that centres it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from manyheads.core.blocks.causal_convolution import CausalConvolution, CausalConvolution2d
from manyheads.core.errors import ArgumentError
from manyheads.core.state import State
from manyheads.kws.models.network import Passage, Product, step_macs
from manyheads.kws.models.sites import Site, SpikeSite, add_to, fold_after, fold_alone, fold_before

# Channels of the "2d" stem.
PLANES = (16, 32, 48)


def share_lookahead(kind: str, lookahead: int, kernels: Sequence[int], strides: Sequence[int]) -> list[int]:
    """Distribute a look-ahead in frames over the convolutions; each share is in frames of its input."""
    total = 1
    for stride in strides:
        total *= stride
    left, rate, shares = lookahead, 1, []
    for kernel, stride in zip(kernels, strides, strict=True):
        # a delay before the stride must be a whole number of steps
        unit = total // rate
        share = min((kernel - 1) // 2, left // rate) // unit * unit
        shares.append(share)
        left -= share * rate
        rate *= stride
    if lookahead < 0 or left:
        raise ArgumentError(
            f"{kind}: lookahead: found {lookahead} frames, expected 0 to {lookahead - left if left > 0 else 0} in "
            f"multiples of the stride {total}: these convolutions can look no further"
        )
    return shares


class Stem(nn.Module):
    """The stem, ``(B, T, M) -> (B, T / stride, C)``; equations in the module.

    ``delay`` is the delay of its output in frames.
    """

    def __init__(
        self,
        bins: int,
        channels: int,
        *,
        form: str,
        kernels: Sequence[int],
        stride: int,
        lookahead: int,
        spiking: bool,
        published: bool,
    ) -> None:
        super().__init__()
        if form not in ("1d", "2d"):
            raise ArgumentError(f"stem: found {form!r}, expected '1d' or '2d'")
        flat = form == "1d"
        kernels = tuple(kernels) if flat else (3,) * len(PLANES)
        if not kernels or stride not in (1, 2) or (stride == 2 and len(kernels) < 2):
            raise ArgumentError(
                f"lmuformer: found kernels {kernels} and stride {stride}, expected one kernel or more and a stride of "
                "1, or of 2 with a second convolution"
            )
        self.strides = [stride if n == 1 else 1 for n in range(len(kernels))]
        shares = share_lookahead("lmuformer", lookahead, [*kernels, 3], [*self.strides, 1])
        self.flat, self.spiking, self.delay = flat, spiking, lookahead
        self.convolutions, self.sites = nn.ModuleList(), nn.ModuleList()
        self.bins = [bins]
        self.flatten: nn.Linear | None = None
        width = bins if flat else 1
        for n, (kernel, step, share) in enumerate(zip(kernels, self.strides, shares, strict=False)):
            if flat:
                made: nn.Module = CausalConvolution(width, channels, kernel, stride=step, lookahead=share, bias=False)
                width = channels
                self.bins.append(1)
            else:
                made = CausalConvolution2d(
                    width, PLANES[n], (3, 5 if n == 0 else 3), stride=step, bin_stride=2, lookahead=share, bias=False
                )
                width = PLANES[n]
                self.bins.append(made.bins_after(self.bins[-1]))
            self.convolutions.append(made)
            last = flat and n == len(kernels) - 1
            if not (spiking and last):
                self.sites.append(self._site(f"stem{n + 1}", width, spiking, published, self.bins[-1]))
        if not flat:
            self.flatten = nn.Linear(width * self.bins[-1], channels, bias=False)
            if not spiking:
                self.sites.append(self._site(f"stem{len(kernels) + 1}", channels, spiking, published, 1))
        self.position = CausalConvolution(channels, channels, 3, lookahead=shares[-1], bias=False)
        self.position_site = SpikeSite("position", channels) if spiking else None
        self.shortcut = True

    @staticmethod
    def _site(name: str, width: int, spiking: bool, published: bool, positions: int) -> Site | SpikeSite:
        return SpikeSite(name, width, positions=positions) if spiking else Site(width, "relu", norm_last=published)

    @property
    def each_convolution(self) -> list[CausalConvolution | CausalConvolution2d]:
        return cast("list[CausalConvolution | CausalConvolution2d]", list(self.convolutions))

    @property
    def each_site(self) -> list[Site | SpikeSite]:
        return cast("list[Site | SpikeSite]", list(self.sites))

    def init_state(self, batch: int, *, device: torch.device | None, dtype: torch.dtype | None) -> State:
        windows = []
        for convolution, bins in zip(self.each_convolution, self.bins, strict=False):
            if isinstance(convolution, CausalConvolution2d):
                windows.append(convolution.init_state(batch, bins, device=device, dtype=dtype))
            else:
                windows.append(convolution.init_state(batch, device=device, dtype=dtype))
        sites = tuple(site.init_state(batch, device=device, dtype=dtype) for site in self.each_site)
        position = self.position.init_state(batch, device=device, dtype=dtype)
        site = self.position_site
        membrane = () if site is None else site.init_state(batch, device=device, dtype=dtype)
        # the residual path is delayed by the look-ahead of the position convolution
        late, width = self.position.lookahead, self.position.inputs
        held = torch.zeros(batch, late, width, device=device, dtype=dtype) if late else ()
        return tuple(windows), sites, position, membrane, held

    def forward(self, frames: Tensor, state: State, passage: Passage) -> tuple[Tensor, State]:
        windows, sites, position, membrane, held = state
        windows, sites = list(windows), list(sites)
        x = passage.enter(frames) if self.flat else passage.enter(frames).unsqueeze(3)
        delay, rate = 0, 1
        convolutions, each_site = self.each_convolution, self.each_site
        for n, convolution in enumerate(convolutions):
            x, windows[n] = convolution(x, windows[n])
            delay += convolution.lookahead * rate
            rate *= convolution.stride
            if n < len(each_site):
                x, sites[n] = each_site[n](x, sites[n], passage, delay, rate)
            x = passage.blank(x, delay, rate)
        if self.flatten is not None:
            x = self.flatten(x.flatten(2))
            if len(each_site) > len(convolutions):
                x, sites[-1] = each_site[-1](x, sites[-1], passage, delay, rate)
            x = passage.blank(x, delay, rate)
        y = x
        if self.position_site is not None:
            y, membrane = self.position_site(x, membrane, passage, delay, rate)
        y, position = self.position(y, position)
        if self.shortcut:
            if self.position.lookahead:
                known = torch.cat([held.to(x.dtype), x], 1)
                x, held = known[:, : x.shape[1]], known[:, x.shape[1] :]
            y = add_to(x, y)
        return y, (tuple(windows), tuple(sites), position, membrane, held)

    def products(self) -> list[Product]:
        """Return the products of one step."""
        found: list[Product] = []
        source: str | None = None
        each_rate = list(itertools.accumulate(reversed(self.strides), lambda a, b: a * b))[::-1]
        for n, convolution in enumerate(self.each_convolution):
            # outputs of this convolution per step of the network
            runs = each_rate[n + 1] if n + 1 < len(each_rate) else 1
            found.append(Product(f"stem{n + 1}", step_macs(convolution, runs * self.bins[n + 1]), source))
            site = self.each_site[n] if n < len(self.sites) else None
            source = site.name if isinstance(site, SpikeSite) else None
        if self.flatten is not None:
            found.append(Product("flatten", step_macs(self.flatten), source))
        source = self.position_site.name if self.position_site is not None else None
        return [*found, Product("position", step_macs(self.position), source)]

    def fold(self) -> None:
        """Fold the batch norms in place."""
        producers = [*self.each_convolution, *([] if self.flatten is None else [self.flatten])]
        followers = [*producers[1:], self.position]
        for n, site in enumerate(self.each_site):
            if isinstance(site, SpikeSite) or not site.norm_last:
                fold_after(producers[n], site)
        if self.position_site is not None:
            fold_alone(self.position_site)
            return
        self._join_shortcut()
        for site, follower in zip(self.each_site, followers, strict=True):
            if isinstance(site, Site) and isinstance(follower, CausalConvolution):
                fold_before(site, follower)
            else:
                fold_alone(site)

    def _join_shortcut(self) -> None:
        """Fold ``x + position(x)`` into one convolution."""
        tap = self.position.kernel - 1 - self.position.lookahead
        with torch.no_grad():
            self.position.weight[:, :, tap] += torch.eye(self.position.inputs).to(self.position.weight)
        self.shortcut = False
