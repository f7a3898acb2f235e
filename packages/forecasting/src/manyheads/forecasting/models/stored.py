"""Store any fitted model as arrays and JSON, and restore it.

A model that can be stored has a ``KIND``, a method ``stored() -> (arrays, JSON)`` and a class method
``restored(arrays, JSON, horizon, channels, rows)``. Its class is an entry of :data:`KINDS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from manyheads.core.errors import ArgumentError
from manyheads.forecasting.series.panels import FittedModel
from manyheads.lab.domain import load

_HERE = "manyheads.forecasting.models"
KINDS: Mapping[str, str] = {
    "linear-map": f"{_HERE}.linear_map:LinearMap",
    "network": f"{_HERE}.network_forecast:NetworkForecast",
    "patched": f"{_HERE}.patched:Patched",
}


def stored_model(model: FittedModel) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays by name, and a JSON document with the ``kind`` of the model.

    Raises :class:`ArgumentError` for a model that cannot be stored.
    """
    kind = getattr(model, "KIND", None)
    if kind not in KINDS:
        raise ArgumentError(
            f"found a {type(model).__name__}, expected a model that can be stored (KIND, stored, restored)"
        )
    arrays, described = model.stored()  # ty: ignore[missing-attribute]
    return arrays, {"kind": kind, **described}


def restored_model(
    arrays: Mapping[str, np.ndarray], described: Mapping[str, Any], horizon: int, channels: int, rows: int
) -> FittedModel:
    """Rebuild a model from :func:`stored_model`; ``rows`` is the number of past rows in the file.

    Raises :class:`ArgumentError`, :class:`ValueError` or :class:`KeyError` for arrays that do not fit the description.
    """
    kind = described["kind"]
    if kind not in KINDS:
        raise ArgumentError(f"kind: found {kind!r}, expected one of {', '.join(KINDS)}")
    return load(KINDS[kind]).restored(arrays, described, horizon, channels, rows)
