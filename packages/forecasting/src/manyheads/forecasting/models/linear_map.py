"""A forecast that is linear in the look-back, as one matrix for each channel.

Repeat, seasonal naive, drift, window mean, Linear, NLinear, DLinear and their closed forms all reduce to this form
(2205.13504; equivalences in 2403.14587). RLinear has one more term: a bias times the standard deviation of the window.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np


@dataclass(frozen=True)
class LinearMap:
    """``y[n, h, c] = sum_l x[n, l, c] weight[c, l, h] + bias[c, h] + sd(x[n, :, c]) scale_bias[c, h]``

    The leading axis of each array is ``C``, or 1 if all channels share it.
    """

    weight: np.ndarray  # (C or 1, L, H)
    bias: np.ndarray  # (C or 1, H)
    scale_bias: np.ndarray | None = None  # (C or 1, H); sd is the population standard deviation of the look-back

    @property
    def look_back(self) -> int:
        return self.weight.shape[1]

    @property
    def horizon(self) -> int:
        return self.weight.shape[2]

    @property
    def shared(self) -> bool:
        return self.weight.shape[0] == 1

    KIND: ClassVar[str] = "linear-map"

    def stored(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Arrays by name, and a JSON document (empty here)."""
        arrays = {"weight": self.weight, "bias": self.bias, "scale_bias": self.scale_bias}
        return {name: array for name, array in arrays.items() if array is not None}, {}

    @classmethod
    def restored(
        cls, arrays: Mapping[str, np.ndarray], described: Mapping[str, Any], horizon: int, channels: int, rows: int
    ) -> LinearMap:
        """Rebuild the map from :meth:`stored`. Raises :class:`ValueError` or :class:`KeyError` for anything else."""
        shared, look_back = arrays["weight"].shape[0], arrays["weight"].shape[1]
        if shared not in (1, channels) or look_back < 1:
            raise ValueError(f"weight of shape {arrays['weight'].shape} for {channels} channels")
        shapes = {
            "weight": (shared, look_back, horizon),
            "bias": (shared, horizon),
            "scale_bias": (shared, horizon),
        }
        for name, array in arrays.items():
            if array.shape != shapes[name] or array.dtype != np.float64:
                raise ValueError(f"{name}: {array.dtype} of shape {array.shape}, expected float64 of {shapes[name]}")
            if not np.isfinite(array).all():
                raise ValueError(f"{name}: a number that is not finite")
        return cls(arrays["weight"], arrays["bias"], arrays.get("scale_bias"))

    def head(self, horizon: int) -> LinearMap:
        """The map of the first ``horizon`` steps of the forecast."""
        scale_bias = None if self.scale_bias is None else self.scale_bias[:, :horizon]
        return LinearMap(self.weight[:, :, :horizon], self.bias[:, :horizon], scale_bias)

    def channel(self, index: int) -> LinearMap:
        """The map of one channel."""
        pick = [0 if self.shared else index]
        scale_bias = None if self.scale_bias is None else self.scale_bias[pick]
        return LinearMap(self.weight[pick], self.bias[pick], scale_bias)

    def astype(self, dtype: type) -> LinearMap:
        """A copy in another floating-point type."""
        scale_bias = None if self.scale_bias is None else self.scale_bias.astype(dtype)
        return LinearMap(self.weight.astype(dtype), self.bias.astype(dtype), scale_bias)

    def forecast(self, windows_NLC: np.ndarray) -> np.ndarray:
        """Forecasts ``(N, H, C)`` of look-backs ``(N, L', C)``; only the last ``L <= L'`` steps are used."""
        windows_CNL = np.ascontiguousarray(windows_NLC[:, -self.look_back :, :].transpose(2, 0, 1))
        forecast_CNH = windows_CNL @ self.weight
        forecast_CNH += self.bias[:, None, :]
        if self.scale_bias is not None:
            forecast_CNH += windows_CNL.std(axis=2, keepdims=True) * self.scale_bias[:, None, :]
        return forecast_CNH.transpose(1, 2, 0)
