"""Every forecasting model by name.

``fit_model("nlinear-cf", history, [96, 192], look_back=336)`` gives a fitted model a horizon. The module behind a name
is imported when it is first fitted: only the models trained by gradient descent load torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from manyheads.core.errors import UnknownNameError
from manyheads.forecasting.series import FittedModel, History
from manyheads.lab.domain import load


@dataclass(frozen=True)
class ModelSpec:
    """A model and the function that fits it:
    ``fit(history, horizons, *, look_back, seed, **options) -> dict[horizon, FittedModel]``."""

    name: str
    title: str
    kind: Literal["naive", "closed-form", "gradient"]
    fit: str  # "module:function"
    options: Mapping[str, Any] = field(default_factory=dict)
    joint: bool = False  # one fit serves all horizons


_NAIVE = "manyheads.forecasting.models.naive:fit_naive"
_CLOSED = "manyheads.forecasting.closed_form:fit_family"
_AUTO = "manyheads.forecasting.closed_form:fit_auto_maps"
_GRADIENT = "manyheads.forecasting.train:fit_gradient"
_FORMS = {"linear": "Linear", "nlinear": "NLinear", "dlinear": "DLinear", "rlinear": "RLinear"}


def _entries() -> list[ModelSpec]:
    naive = [
        ModelSpec("repeat", "Repeat the last value", "naive", _NAIVE, {"name": "repeat"}),
        ModelSpec("seasonal-naive", "Repeat the last season", "naive", _NAIVE, {"name": "seasonal-naive"}),
        ModelSpec("drift", "Line through first and last value", "naive", _NAIVE, {"name": "drift"}),
        ModelSpec("window-mean", "Mean of the look-back", "naive", _NAIVE, {"name": "window-mean"}),
    ]
    family = [
        ModelSpec(
            form + ("-i" if individual else "") + suffix,
            f"{title}{', per channel' if individual else ''}, {how}",
            kind,
            path,
            {"form": form, "individual": individual},
        )
        for form, title in _FORMS.items()
        for individual in (False, True)
        for suffix, how, kind, path in (
            ("-cf", "closed form", "closed-form", _CLOSED),
            ("", "gradient descent", "gradient", _GRADIENT),
        )
    ]
    auto = [
        ModelSpec("closed-form-auto", "One rule, nothing to tune", "closed-form", _AUTO, joint=True),
        ModelSpec(
            "closed-form-auto-train",
            "The same rule, validation rows not used",
            "closed-form",
            _AUTO,
            {"train_only": True},
            joint=True,
        ),
    ]
    return [*naive, *family, *auto]


MODELS: dict[str, ModelSpec] = {spec.name: spec for spec in _entries()}


def find_model(name: str) -> ModelSpec:
    """The model of that name; raises :class:`UnknownNameError` with the nearest."""
    if name not in MODELS:
        raise UnknownNameError("model", name, MODELS)
    return MODELS[name]


def fit_model(
    name: str, history: History, horizons: Sequence[int], *, look_back: int, seed: int = 0
) -> dict[int, FittedModel]:
    """Fits the model ``name`` for each of ``horizons``."""
    spec = find_model(name)
    return load(spec.fit)(history, horizons, look_back=look_back, seed=seed, **spec.options)
