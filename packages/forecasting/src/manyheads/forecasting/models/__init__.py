"""The registry of forecasting models.

``fit_models(["nlinear-cf"], history, [96, 192], look_back=336)`` returns one fitted model for each name and horizon.
The module behind a name is imported at the first fit: only the models trained by gradient descent load torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from manyheads.core.errors import ArgumentError, UnknownNameError
from manyheads.forecasting.models.networks import NETWORKS
from manyheads.forecasting.series.panels import FittedModel, History
from manyheads.lab.domain import load


@dataclass(frozen=True)
class ModelSpec:
    """A model and the function that fits it.

    The signature is ``fit(history, horizons, *, look_back, seed, **options) -> dict[horizon, FittedModel]``. A
    ``family`` of models shares its work: ``fit(history, horizons, members, *, look_back)`` takes the options of several
    models and returns one such dict for each.
    """

    name: str
    title: str
    kind: Literal["naive", "closed-form", "gradient"]
    fit: str  # "module:function"
    options: Mapping[str, Any] = field(default_factory=dict)
    joint: bool = False  # one fit serves all horizons
    family: bool = False  # models with the same ``fit`` are fitted together
    own_look_back: bool = False  # the model chooses its look-back; a requested one is not used
    usual_look_back: int = 336  # default look-back, at most


_NAIVE = "manyheads.forecasting.models.naive:fit_naive"
_CLOSED = "manyheads.forecasting.models.closed_form:fit_family"
_CHOSEN = "manyheads.forecasting.models.closed_form:fit_chosen"
_AUTO = "manyheads.forecasting.models.closed_form:fit_auto_maps"
_GRADIENT = "manyheads.forecasting.training.windows:fit_gradient"
_NETWORK = "manyheads.forecasting.training.networks:fit_network"
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
            family=kind == "closed-form",
        )
        for form, title in _FORMS.items()
        for individual in (False, True)
        for suffix, how, kind, path in (
            ("-cf", "closed form", "closed-form", _CLOSED),
            ("", "gradient descent", "gradient", _GRADIENT),
        )
    ]
    chosen = [
        ModelSpec(
            f"{form}-chosen-cf",
            f"{title}, look-back and sharing chosen on validation, closed form",
            "closed-form",
            _CHOSEN,
            {"form": form},
            own_look_back=True,
        )
        for form, title in _FORMS.items()
    ]
    auto = [
        ModelSpec(
            "closed-form-auto",
            "Averaged ridge regressions, nothing to tune",
            "closed-form",
            _AUTO,
            joint=True,
            own_look_back=True,
        ),
        ModelSpec(
            "closed-form-auto-train",
            "The same, validation rows not used",
            "closed-form",
            _AUTO,
            {"train_only": True},
            joint=True,
            own_look_back=True,
        ),
    ]
    networks = [
        ModelSpec(
            name + suffix,
            network.title + size,
            "gradient",
            _NETWORK,
            {"network": name, "published": bool(suffix)},
            usual_look_back=network.look_back,
        )
        for name, network in NETWORKS.items()
        for suffix, size in (("", ""), ("-published", ", published size"))
    ]
    return [*naive, *family, *chosen, *auto, *networks]


MODELS: dict[str, ModelSpec] = {spec.name: spec for spec in _entries()}


def find_model(name: str) -> ModelSpec:
    """Look a model up by name; ``transformer:routing`` is the network ``transformer`` around the layer ``routing``.

    Raises :class:`UnknownNameError` with the nearest name, and :class:`ArgumentError` for a layer in a model that is
    not a network.
    """
    plain, colon, layer = name.partition(":")
    if plain not in MODELS:
        raise UnknownNameError("model", plain, MODELS)
    spec = MODELS[plain]
    if not colon:
        return spec
    if spec.fit != _NETWORK:
        raise ArgumentError(f"model: found the layer {layer!r} with {plain!r}, expected one of {', '.join(NETWORKS)}")
    from manyheads.core.registry import find_layer

    find_layer(layer)
    return replace(spec, name=name, title=f"{spec.title}, with {layer}", options={**spec.options, "layer": layer})


def fitted_together(names: Sequence[str]) -> list[list[str]]:
    """Group the names by the call that fits them: the members of a family together, every other model alone."""
    groups: dict[str, list[str]] = {}
    for name in dict.fromkeys(names):
        spec = find_model(name)
        groups.setdefault(spec.fit if spec.family else name, []).append(name)
    return list(groups.values())


def fit_models(
    names: Sequence[str], history: History, horizons: Sequence[int], *, look_back: int, seed: int = 0
) -> dict[str, dict[int, FittedModel]]:
    """Fit several models, each for all of ``horizons``; returns the fitted models by name and horizon."""
    fitted: dict[str, dict[int, FittedModel]] = {}
    for group in fitted_together(names):
        specs = [find_model(name) for name in group]
        fit = load(specs[0].fit)
        if specs[0].family:
            found = fit(history, horizons, [spec.options for spec in specs], look_back=look_back)
        else:
            found = [fit(history, horizons, look_back=look_back, seed=seed, **specs[0].options)]
        fitted |= dict(zip(group, found, strict=True))
    return fitted


def fit_model(
    name: str, history: History, horizons: Sequence[int], *, look_back: int, seed: int = 0
) -> dict[int, FittedModel]:
    """Fit one model for each of ``horizons``; returns the fitted models by horizon."""
    return fit_models([name], history, horizons, look_back=look_back, seed=seed)[name]
