"""Are Transformers Effective for Time Series Forecasting? (2205.13504): Linear, NLinear and DLinear as modules, and
RLinear (2305.10721), for training by gradient descent.

    Linear    y = W x + b
    NLinear   y = W (x - x_L) + b + x_L
    DLinear   y = W_s (x - A x) + b_s + W_t A x + b_t,    A a moving average over 25 steps, edges repeated
    RLinear   y = sd(x) (W (x - mean(x)) / sd(x) + b) + mean(x)

Shapes: N windows, L look-back, H horizon, C channels; ``(N, L, C) -> (N, H, C)``; channels never mix. With
``individual`` each channel has weights of its own. Parameters: ``H (L + 1)``, DLinear twice that; times C if so.

Differs from the papers: the last value, mean and deviation carry no gradient because the input has none; RLinear has no
learnt affine transform (it is absorbed by ``W`` and ``b``), and the deviation is floored at 1e-5.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from manyheads.core.errors import ArgumentError
from manyheads.forecasting.models.closed_form.normal_equations import Form, check_form, moving_average
from manyheads.forecasting.models.linear_map import LinearMap

_FLOOR = 1e-5


class ChannelLinear(nn.Module):
    """``(N, L, C) -> (N, H, C)``: one affine map along time, shared by the channels or one a channel; torch's own
    initialisation, uniform within ``1 / sqrt(L)``."""

    def __init__(self, look_back: int, horizon: int, channels: int | None) -> None:
        super().__init__()
        bound = look_back**-0.5
        sets = 1 if channels is None else channels
        self.weight = nn.Parameter(torch.empty(sets, look_back, horizon).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(sets, horizon).uniform_(-bound, bound))

    def forward(self, x_NLC: Tensor) -> Tensor:
        if len(self.weight) == 1:
            return (x_NLC.transpose(1, 2) @ self.weight[0] + self.bias[0]).transpose(1, 2)
        x_CNL = x_NLC.permute(2, 0, 1)
        return torch.baddbmm(self.bias.unsqueeze(1), x_CNL, self.weight).permute(1, 2, 0)


class LinearForecaster(nn.Module):
    """The linear family; see the module for the equations.

    Args:
        form: ``linear``, ``nlinear``, ``dlinear`` or ``rlinear``.
        look_back, horizon: steps L and H.
        channels: C for weights of its own for each channel, None for shared ones.
    """

    trend_matrix: Tensor

    def __init__(self, form: Form, look_back: int, horizon: int, channels: int | None = None) -> None:
        super().__init__()
        check_form(form)
        if look_back < 1 or horizon < 1:
            raise ArgumentError(f"look-back and horizon: found {look_back} and {horizon}, expected 1 or more")
        self.form: Form = form
        self.main = ChannelLinear(look_back, horizon, channels)
        self.trend = ChannelLinear(look_back, horizon, channels) if form == "dlinear" else None
        average = torch.from_numpy(moving_average(look_back)) if form == "dlinear" else torch.zeros(0)
        self.register_buffer("trend_matrix", average.to(torch.get_default_dtype()), persistent=False)

    def forward(self, x_NLC: Tensor) -> Tensor:
        if self.form == "nlinear":
            last = x_NLC[:, -1:]
            return self.main(x_NLC - last) + last
        if self.trend is not None:
            trend = torch.einsum("kl,nlc->nkc", self.trend_matrix, x_NLC)
            return self.main(x_NLC - trend) + self.trend(trend)
        if self.form == "rlinear":
            mean = x_NLC.mean(1, keepdim=True)
            deviation = x_NLC.std(1, keepdim=True, correction=0).clamp_min(_FLOOR)
            return self.main((x_NLC - mean) / deviation) * deviation + mean
        return self.main(x_NLC)

    @torch.no_grad()
    def as_linear_map(self) -> LinearMap:
        """The trained model as one matrix a channel (and, for RLinear, a bias that scales with the deviation)."""
        weight, bias = (t.double().numpy() for t in (self.main.weight.cpu(), self.main.bias.cpu()))
        look_back = weight.shape[1]
        if self.trend is not None:
            average = moving_average(look_back)
            trend = self.trend.weight.cpu().double().numpy()
            weight = (np.eye(look_back) - average).T @ weight + average.T @ trend
            return LinearMap(weight, bias + self.trend.bias.cpu().double().numpy())
        left = 1.0 - weight.sum(axis=1, keepdims=True)
        if self.form == "nlinear":
            weight = weight.copy()
            weight[:, -1:] += left
        elif self.form == "rlinear":
            return LinearMap(weight + left / look_back, np.zeros_like(bias), bias)
        return LinearMap(weight, bias)
