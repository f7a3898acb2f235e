"""Multi-Dimensional Hyena for Spatial Inductive Bias (2309.13600): gates and long implicit convolutions on a grid.

    x_0, …, x_{O-1}, v = S * (W_in x)                                  S a depthwise convolution of 3 taps an axis
    v <- k_i * (v o x_i) + d_i o (v o x_i)      i = O - 1, …, 1        k_i as large as the grid
    y = W_out (v o x_0)

``(k * v)[p] = sum_{q <= p} k[p - q] v[q]``, with ``<=`` on every axis: a cell sees one quadrant. ``directions="all"``
runs the recurrence in all 2^r orthants with the same kernels, by flips of x_i and v, and adds the results with learned
weights.

The kernels are sampled from a function of the place t in [0, 1] on each axis, so that their parameters do not depend on
the grid, and any size is taken: a network of sines n and a window w.

    product    k[a, b] = n_1(t_a) w_1(t_a) n_2(t_b) w_2(t_b)           of rank 1 for each channel
    joint      k[a, b] = n(t_a, t_b) w(t_a, t_b)
    n(t) = U_3 sin(f o U_2 sin(f o U_1 sin(f o U_0 e(t)))),   e(t) = (t, cos 2 pi g t, -sin 2 pi g t)
    w(t) = exp(-|c| t) + s                                             c and s for each channel

Shapes: B batch, r axes, N cells, L the size of an axis, D width, O order, F width of the networks.

Cost: time ``O(O N D log N + N D^2)``, memory ``O(N D)``. All directions take ``2^r`` times the first part for an order
above 2; for order 2 they are one convolution with the sum of their kernels. Joint kernels add ``O(N F^2)``.

The layer keeps no state: each output needs the whole history, so a step of a stream would cost as much as the whole.

A state dict of the authors' ``HyenaOperator2d`` maps so (``from_reference``): ``in_proj, out_proj`` -> ``input,
output``, ``short_filter`` -> ``short``, ``filter_fn.bias`` -> ``skip``, ``linear_mix`` -> ``mixing`` with another order
of the directions, ``filter_fn.Ximplicit_filter, Yimplicit_filter`` -> ``networks.0, networks.1``,
``filter_fn.implicit_filter`` -> ``networks.0``; in a network ``0, 2, 4, 6`` -> ``first, second, third, last`` and
``1.freq`` -> ``frequency``; ``deltas`` and ``shift`` of a learned window -> ``decay`` and ``shift``. The scale of their
kernels goes into the last map.

Differs from the paper: see ``info.deviations``.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from manyheads.core.errors import ArgumentError
from manyheads.core.fields import argument
from manyheads.core.functional.fft_convolution import fast_length, grid_fft_convolution
from manyheads.core.layer import Causality, Grid, Layer, LayerInfo, LayerOutput
from manyheads.core.mask import Mask
from manyheads.core.state import State

if TYPE_CHECKING:
    from jaxtyping import Float, Shaped

_CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
# rate of decay of the first and of the last channel: down to 1 % after 1.5 and after 0.3 of the axis
_SLOWEST, _FASTEST = -math.log(1e-2) / 1.5, -math.log(1e-2) / 0.3


def _flops(config: dict[str, Any], grid: Grid) -> float:
    dim, order, tokens, rank = config["dim"], config.get("order", 2), math.prod(grid), len(grid)
    width, kernels = config.get("filter_width", 64), config["dim"] * (config.get("order", 2) - 1)
    inputs = 2 * config.get("bands", 1) + 1
    product = config.get("filter", "product") == "product"
    samples, features = (sum(grid), inputs) if product else (tokens, inputs * rank)
    networks = 2.0 * samples * width * (features + 2 * width + kernels) + tokens * kernels
    padded = math.prod(fast_length(2 * size - 1) for size in grid)
    runs = 1 if config.get("directions", "one") == "one" or order == 2 else 2**rank
    # a real transform of n cells is 2.5 n log2 n
    transform = 2.5 * padded * math.log2(max(padded, 2))
    convolutions = kernels * (transform + runs * (2 * transform + 3.0 * padded + 4.0 * tokens))
    projections = 2.0 * tokens * dim * dim * (order + 2) + 2.0 * 3**rank * tokens * dim * (order + 1)
    return projections + networks + convolutions


class HyenaND(Layer):
    """Gated long convolutions on a grid; see the module for equation, shapes and the map of state dicts.

    Raises:
        ArgumentError: more than three axes, a causal layer of all directions, a symmetric window of product kernels.
    """

    info = LayerInfo(
        name="hyena-nd",
        title="Multi-Dimensional Hyena for Spatial Inductive Bias",
        arxiv="2309.13600",
        formula=(
            r"\begin{aligned} x_0, \dots, x_{O-1}, v &= S * (W_{in} x) \\"
            r" v &\leftarrow k_i * (v \odot x_i) + d_i \odot v \odot x_i, \quad i = O-1, \dots, 1 \\"
            r" y &= W_{out} (v \odot x_0), \qquad (k * v)_p = \sum_{q \le p} k_{p-q}\, v_q \end{aligned}"
        ),
        good_for="Small image sets, where near cells belong together: the whole grid at N log N, in 1, 2 or 3 axes.",
        not_for="Padded batches and streams, as a kernel spans the grid. Take axial for masks, lmu for streams.",
        cost="time N D log N + N D^2, memory N D; the parameters do not depend on N",
        flops=_flops,
        at_length=lambda n: {"plain": {}, "all": {"directions": "all"}, "causal": {"axes": 1, "causal": True}},
        grid_ranks=(1, 2, 3),
        causal=("no", "strict"),
        positional=True,
        full_context=False,
        lengths="any: the kernels are sampled on the grid, from 0 to 1 along each axis",
        deviations=(
            "here the long convolution is one; the authors' code divides the spectrum of the kernels by 2L and then "
            "takes a scaled inverse: its kernels are 1 / 2L of those that it computes",
            "causal is ours: the short convolution then looks back only; in the paper it is centred, so that even one "
            "direction sees a cell ahead on each axis",
            "here the grid need not be square, nor of the size that the layer was built for: the kernels stretch",
            "here the angle of e(t) is 2 pi g t with t from 0 to 1; the authors' code has 2 pi g (L - 1) t / L, and "
            "trains e(t) at a rate of 1e-5",
            "here each network has its own frequencies; the authors' code shares them between the two",
            "here the weights of the directions start equal, the authors' at random",
            "here the directions one and all; the authors' code has three more: seq, parallel and 4dirp",
            "here a symmetric window for joint kernels only, as in the authors' code",
            "here no free kernels (direct parametrisation), no square root of the window and no dropout",
        ),
    )

    axes: int = argument(default=2, least=1)
    """r: axes of the grid, 1 to 3."""
    order: int = argument(default=2, least=2)
    """O: gates; one long convolution fewer."""
    directions: Literal["one", "all"] = "one"
    """Which orthants a cell sees: that of the earlier cells, or all."""
    causal: bool = False
    """The short convolution looks back only; with one direction, no cell then sees a later one on any axis."""
    filter: Literal["product", "joint"] = "product"
    """Kernels as a product of one function for each axis, or as one function of all axes."""
    window: Literal["exponential", "learned", "symmetric", "none"] = "exponential"
    """w: fixed rates of decay; learned rates and shifts; these with one rate for all axes and distances in cells; 1."""
    filter_width: int = argument(default=64, least=1)
    """F: width of the networks of the kernels."""
    bands: int = argument(default=1, least=1)
    """Frequencies g of the embedding of places, from 1e-4 to ``bands - 1``."""

    def setup(self) -> None:
        if self.axes > 3:
            raise ArgumentError(f"hyena-nd: axes: found {self.axes}, expected 1 to 3")
        if self.causal and self.directions == "all":
            raise ArgumentError("hyena-nd: causal: found True with directions='all', expected 'one'")
        if self.window == "symmetric" and self.filter == "product":
            raise ArgumentError("hyena-nd: window: found 'symmetric' with filter='product', expected filter='joint'")
        inner, kernels = (self.order + 1) * self.dim, (self.order - 1) * self.dim
        self.input, self.output = nn.Linear(self.dim, inner), nn.Linear(self.dim, self.dim)
        self.short = _CONVOLUTIONS[self.axes](inner, inner, 3, padding=0 if self.causal else 1, groups=inner)
        features, functions = 2 * self.bands + 1, 1
        if self.filter == "joint":
            features *= self.axes
        else:
            functions = self.axes
        self.networks = nn.ModuleList(SineNetwork(features, self.filter_width, kernels) for _ in range(functions))
        self.skip = nn.Parameter(torch.randn(kernels))
        if self.window in ("learned", "symmetric"):
            rates = torch.linspace(_SLOWEST, _FASTEST, kernels)
            self.decay = nn.Parameter(rates.repeat(1 if self.window == "symmetric" else self.axes, 1))
            self.shift = nn.Parameter(torch.rand(functions, kernels))
        if self.directions == "all":
            self.mixing = nn.Linear(2**self.axes, 1)
            nn.init.constant_(self.mixing.weight, 0.5**self.axes)
            nn.init.zeros_(self.mixing.bias)

    @property
    def grid_ranks(self) -> tuple[int, ...]:
        return (self.axes,)

    @property
    def causality(self) -> Causality:
        return "strict" if self.causal else "no"

    def kernels(self, grid: Grid) -> Float[Tensor, "o d *grid"]:
        """The kernels of the long convolutions on a grid, in float32 at least."""
        wide = torch.promote_types(self.skip.dtype, torch.float32)
        places = [torch.linspace(0, 1, size, dtype=wide, device=self.skip.device) for size in grid]
        embedded = [self._embedded(place) for place in places]
        windows = [self._decayed(place, axis) for axis, place in enumerate(places)]
        if self.filter == "product":
            lines = []
            for axis, features in enumerate(embedded):
                window = self._shifted(windows[axis], axis)
                lines.append(_on_axis(self.networks[axis](features) * window, axis, len(grid)))
            kernel = math.prod(lines[1:], start=lines[0])
        else:
            joint = [_on_axis(features, axis, len(grid)) for axis, features in enumerate(embedded)]
            features = torch.cat([one.expand(*grid, -1) for one in joint], -1)
            decayed = [_on_axis(window, axis, len(grid)) for axis, window in enumerate(windows)]
            kernel = self.networks[0](features) * self._shifted(math.prod(decayed[1:], start=decayed[0]), 0)
        return kernel.movedim(-1, 0).unflatten(0, (self.order - 1, self.dim))

    def from_reference(self, state: Mapping[str, Shaped[Tensor, "..."]]) -> dict[str, Shaped[Tensor, "..."]]:
        """Rename and rescale a state dict of the authors' ``HyenaOperator2d`` for ``load_state_dict``.

        Raises:
            ArgumentError: a layer that has not two axes.
        """
        if self.axes != 2:
            raise ArgumentError(f"hyena-nd: from_reference: found a layer of {self.axes} axes, expected 2")
        names = {"in_proj": "input", "out_proj": "output", "short_filter": "short"}
        places = ("first", "second", "third", "last")
        size = state["filter_fn.pos_emb.z"].shape[1]
        learned = self.window in ("learned", "symmetric")
        found: dict[str, Tensor] = {}
        for name, tensor in state.items():
            part, _, rest = name.partition(".")
            inside = re.fullmatch(r"filter_fn\.([XY]?)implicit_filter\.(\d+)\.(weight|bias|freq)", name)
            window = re.fullmatch(r"filter_fn\.([XY]?)modulation\.([XY]?)(deltas|shift)", name)
            if part in names:
                found[f"{names[part]}.{rest}"] = tensor
            elif part == "linear_mix":
                # theirs: none, both axes, the last, the first
                found[f"mixing.{rest}"] = tensor[:, [0, 2, 3, 1]] if rest == "weight" else tensor
            elif name == "filter_fn.bias":
                found["skip"] = tensor
            elif inside is not None:
                network, place = f"networks.{int(inside[1] == 'Y')}", int(inside[2])
                if inside[3] == "freq":
                    found[f"{network}.frequency"] = tensor.flatten()
                else:
                    found[f"{network}.{places[place // 2]}.{inside[3]}"] = tensor
            elif window is not None and learned:
                key = "shift" if window[3] == "shift" else "decay"
                axis = (window[1] or window[2]) == "Y"
                rows = found.setdefault(key, torch.empty_like(getattr(self, key)))
                rows[int(axis)] = tensor.flatten().abs() if key == "decay" else tensor.flatten()
        found["networks.0.last.weight"] = found["networks.0.last.weight"] / (2 * size)
        return found

    def mix(self, x: Tensor, state: State, context: Tensor | None, mask: Mask) -> LayerOutput:
        grid = tuple(x.shape[1:-1])
        u = self.input(x).movedim(-1, 1)
        if self.causal:
            u = functional.pad(u, (2, 0) * self.axes)
        u = self.short(u)
        kernels = self.kernels(grid)
        if self.directions == "one":
            y = self._recurrence(u, kernels)
        elif self.order == 2:
            y = self._at_once(u, kernels[0])
        else:
            runs = self._recurrence(torch.stack([u.flip(axes) for axes in self._flips()]).flatten(0, 1), kernels)
            apart = runs.unflatten(0, (2**self.axes, -1)).unbind(0)
            back = [run.flip(axes) for run, axes in zip(apart, self._flips(), strict=True)]
            y = self.mixing(torch.stack(back, -1)).squeeze(-1)
        return LayerOutput(self.output(y.movedim(1, -1)))

    def _flips(self) -> list[list[int]]:
        """The axes that each direction flips, counted from the end; the first flips none."""
        every = itertools.product((False, True), repeat=self.axes)
        return [[axis - self.axes for axis in range(self.axes) if flips[axis]] for flips in every]

    def _at_once(self, u: Tensor, kernel: Tensor) -> Tensor:
        """All directions of order 2: they have the same input, so one convolution with the sum of their kernels."""
        first, second, v = u.split(self.dim, 1)
        v, weights, grid = v * second, self.mixing.weight[0].to(kernel.dtype), kernel.shape[1:]
        parts = []
        for weight, axes in zip(weights, self._flips(), strict=True):
            # the kernel of the direction on the offsets from 1 - L to L - 1
            sides = [
                (0, grid[axis] - 1) if axis in axes else (grid[axis] - 1, 0) for axis in range(-1, -1 - self.axes, -1)
            ]
            parts.append(functional.pad(weight * kernel.flip(axes), list(itertools.chain.from_iterable(sides))))
        both = grid_fft_convolution(
            v, sum(parts[1:], parts[0]), axes=self.axes, centre=tuple(size - 1 for size in grid)
        )
        skip = self.skip.view(-1, *[1] * self.axes)
        mixed = both.to(v.dtype) + self.mixing.weight.sum() * skip * v
        return mixed * first + self.mixing.bias

    def _recurrence(self, u: Tensor, kernels: Tensor) -> Tensor:
        *gates, v = u.split(self.dim, 1)
        skips = self.skip.view(self.order - 1, self.dim, *[1] * self.axes)
        for gate, kernel, skip in zip(reversed(gates[1:]), kernels, skips, strict=True):
            v = v * gate
            v = grid_fft_convolution(v, kernel, axes=self.axes).to(v.dtype) + skip * v
        return v * gates[0]

    def _embedded(self, place: Tensor) -> Tensor:
        """``e(t)``: ``(L,)`` to ``(L, 2 bands + 1)``."""
        turns = torch.linspace(1e-4, max(self.bands - 1, 1e-4), self.bands, dtype=place.dtype, device=place.device)
        angle = 2 * math.pi * place.unsqueeze(1) * turns
        return torch.cat([place.unsqueeze(1), angle.cos(), -angle.sin()], 1)

    def _decayed(self, place: Tensor, axis: int) -> Tensor:
        """``exp(-|c| t)`` of an axis, ``(L, channels of the kernels)``; 1 without a window."""
        kernels = self.skip.numel()
        if self.window == "none":
            return place.new_ones(len(place), kernels)
        if self.window == "exponential":
            rates = torch.linspace(_SLOWEST, _FASTEST, kernels, dtype=place.dtype, device=place.device)
        else:
            rates = self.decay[0 if self.window == "symmetric" else axis].to(place.dtype).abs()
        if self.window == "symmetric":
            place = torch.arange(len(place), dtype=place.dtype, device=place.device)
        return torch.exp(-place.unsqueeze(1) * rates)

    def _shifted(self, window: Tensor, function: int) -> Tensor:
        return window + self.shift[function] if self.window in ("learned", "symmetric") else window


class SineNetwork(nn.Module):
    """Three hidden layers of sines, computed in the dtype of the input, which may be wider than that of the weights."""

    def __init__(self, inputs: int, width: int, outputs: int) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Linear(size, width) for size in (inputs, width, width))
        self.last = nn.Linear(width, outputs, bias=False)
        self.frequency = nn.Parameter(torch.ones(width))

    def forward(self, x: Float[Tensor, "*cells e"]) -> Float[Tensor, "*cells m"]:
        """Evaluate the functions at each place."""
        frequency = self.frequency.to(x.dtype)
        for one in (self.first, self.second, self.third):
            x = torch.sin(frequency * functional.linear(x, one.weight.to(x.dtype), one.bias.to(x.dtype)))
        return functional.linear(x, self.last.weight.to(x.dtype))


def _on_axis(line: Tensor, axis: int, rank: int) -> Tensor:
    """``(L, C)`` to ``(1, …, L, …, 1, C)``."""
    return line.view(*(len(line) if place == axis else 1 for place in range(rank)), -1)
