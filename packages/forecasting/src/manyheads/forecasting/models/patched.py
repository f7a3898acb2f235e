"""A fitted model for some channels, the naive forecast for the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from manyheads.core.errors import ArgumentError
from manyheads.forecasting.models.linear_map import LinearMap
from manyheads.forecasting.models.stored import restored_model, stored_model
from manyheads.forecasting.series.panels import FittedModel


@dataclass(frozen=True)
class Patched:
    """A :class:`FittedModel` made of a model for some channels and the naive forecast for the others."""

    model: FittedModel
    columns: np.ndarray  # indices of the channels that the model reads
    kept: np.ndarray  # (C,) bool: channels whose forecast is that of the model
    naive: LinearMap  # for all channels

    KIND: ClassVar[str] = "patched"

    @property
    def look_back(self) -> int:
        return self.model.look_back

    @property
    def horizon(self) -> int:
        return self.model.horizon

    def forecast(self, windows_NLC: np.ndarray) -> np.ndarray:
        forecast = self.model.forecast(windows_NLC[:, :, self.columns])
        everything = self.naive.forecast(windows_NLC)
        everything[:, :, self.kept] = forecast[:, :, self.kept[self.columns]]
        return everything

    def stored(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Arrays by name, and a JSON document with that of the inner model."""
        inner, described = stored_model(self.model)
        naive, _ = self.naive.stored()
        arrays = {"columns": self.columns, "kept": self.kept}
        arrays |= {f"model.{name}": array for name, array in inner.items()}
        arrays |= {f"naive.{name}": array for name, array in naive.items()}
        return arrays, {"model": described}

    @classmethod
    def restored(
        cls, arrays: Mapping[str, np.ndarray], described: Mapping[str, Any], horizon: int, channels: int, rows: int
    ) -> Patched:
        """Rebuild the model from :meth:`stored`.

        Raises :class:`ArgumentError`, :class:`ValueError` or :class:`KeyError` for anything else.
        """
        columns, kept = arrays["columns"], arrays["kept"]
        whole = columns.dtype.kind == "i" and columns.ndim == 1 and kept.dtype == bool and kept.shape == (channels,)
        if not whole or len(set(columns.tolist()) & set(range(channels))) != len(columns):
            raise ArgumentError(
                f"columns, kept: found {columns.tolist()[:8]}, {kept.tolist()[:8]} of {channels} channels"
            )

        def under(prefix: str) -> dict[str, np.ndarray]:
            return {name.removeprefix(prefix): a for name, a in arrays.items() if name.startswith(prefix)}

        model = restored_model(under("model."), described["model"], horizon, len(columns), rows)
        return cls(model, columns, kept, LinearMap.restored(under("naive."), {}, horizon, channels, rows))
