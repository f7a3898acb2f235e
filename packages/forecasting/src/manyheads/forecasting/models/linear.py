"""Are Transformers Effective for Time Series Forecasting? (2205.13504): Linear, NLinear and DLinear as modules.

With RLinear (2305.10721), for training by gradient descent:

    Linear    y = W x + b
    NLinear   y = W (x - x_L) + b + x_L
    DLinear   y = W_s (x - A x) + b_s + W_t A x + b_t,    A a moving average over 25 steps, edges repeated
    RLinear   y = sd(x) (W (x - mean(x)) / sd(x) + b) + mean(x)

Shapes: N windows, L look-back, H horizon, C channels; ``(N, L, C) -> (N, H, C)``. Channels never mix (channel
independence). The weights are shared by all channels or, with ``channels``, each channel has its own. Parameters:
``H (L + 1)``, DLinear twice that; times C with weights for each channel.

Differs from the papers: the last value, mean and standard deviation carry no gradient because the input has none.
RLinear has no learnt affine transform (``W`` and ``b`` absorb it), and its standard deviation is at least 1e-5.
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
    """An affine map along time, ``(N, L, C) -> (N, H, C)``, shared by the channels or one for each channel.

    Weights start uniform in ``+-1 / sqrt(L)``, as in :class:`torch.nn.Linear`.
    """

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
    """A member of the linear family; the module docstring has the equations.

    Args:
        form: ``linear``, ``nlinear``, ``dlinear`` or ``rlinear``.
        look_back, horizon: steps L and H.
        channels: C for weights for each channel, None for shared weights.

    Raises:
        ArgumentError: a look-back or horizon below 1.
        UnknownNameError: an unknown form.
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
        """The trained model as a :class:`LinearMap`: one matrix for each set of weights.

        RLinear has, in addition, a bias that is multiplied by the standard deviation of the window.
        """
        weight, bias = (t.double().numpy() for t in (self.main.weight.cpu(), self.main.bias.cpu()))
        look_back = weight.shape[1]
        if self.trend is not None:
            # W_s'(x - A x) + W_t'A x = ((I - A)'W_s + A'W_t)' x
            average = moving_average(look_back)
            trend = self.trend.weight.cpu().double().numpy()
            weight = (np.eye(look_back) - average).T @ weight + average.T @ trend
            return LinearMap(weight, bias + self.trend.bias.cpu().double().numpy())
        # W'(x - v'x) + v'x = (W + v (1 - sum_l W_l))' x, with v the last step or the mean
        left = 1.0 - weight.sum(axis=1, keepdims=True)
        if self.form == "nlinear":
            weight = weight.copy()
            weight[:, -1:] += left
        elif self.form == "rlinear":
            return LinearMap(weight + left / look_back, np.zeros_like(bias), bias)
        return LinearMap(weight, bias)
