"""Every model by name, with its usual settings. The module of a model is imported at first use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from manyheads.core.errors import ArgumentError, UnknownNameError
from manyheads.lab.domain import load

if TYPE_CHECKING:
    from manyheads.recsys.models.common import Config


@dataclass(frozen=True)
class ModelSpec:
    """A model with its settings."""

    name: str
    title: str
    paper: str
    """arXiv id, or a reference if there is none."""
    config: str
    """``module:class`` of the config."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings that differ from the defaults of the config."""


_HERE = "manyheads.recsys.models"
_FIELDS = f"{_HERE}.transformer:TransformerConfig"
_PLUS = {"tower": (400, 400, 400)}


def _entries() -> list[ModelSpec]:
    attention = [
        ModelSpec(f"{name}{suffix}", f"{title}{beside}", "2311.05884", _FIELDS, {**settings, **extra})
        for name, title, settings in (
            ("vanilla", "Transformer with weights shared by the fields", {"layer": "vanilla"}),
            ("heterogeneous", "Transformer with weights for each field", {"layer": "heterogeneous"}),
            ("hiformer", "Hiformer, composite projections", {"layer": "hiformer"}),
            ("hiformer-lowrank", "Hiformer, composite projections of rank 32", {"layer": "hiformer", "rank": 32}),
        )
        for suffix, beside, extra in (("", "", {}), ("+", ", beside a tower", _PLUS))
    ]
    plus = {"layers": 5, "scale": True, "layer_norm": True, "hidden": (400, 400, 400), "dropout": 0.1}
    return [
        ModelSpec("lr", "Logistic regression", "", f"{_HERE}.linear:LRConfig"),
        ModelSpec("fm", "Factorization machine", "Rendle, ICDM 2010", f"{_HERE}.linear:FMConfig"),
        ModelSpec("dnn", "Tower over the embeddings", "", f"{_HERE}.deep:DNNConfig"),
        ModelSpec("deepfm", "DeepFM", "1703.04247", f"{_HERE}.deep:DeepFMConfig"),
        ModelSpec("dcnv2", "DCN V2, cross layers beside a tower", "2008.13535", f"{_HERE}.dcn:DCNv2Config"),
        ModelSpec("dlrm", "DLRM, products of all pairs", "1906.00091", f"{_HERE}.dlrm:DLRMConfig"),
        ModelSpec("autoint", "AutoInt", "1810.11921", f"{_HERE}.autoint:AutoIntConfig"),
        ModelSpec("autoint+", "AutoInt beside a tower", "1810.11921", f"{_HERE}.autoint:AutoIntConfig", plus),
        ModelSpec("final-mlp", "FinalMLP, two gated towers", "2304.00902", f"{_HERE}.final_mlp:FinalMLPConfig"),
        *attention,
    ]


MODELS: dict[str, ModelSpec] = {spec.name: spec for spec in _entries()}


def config_of(name: str, settings: Mapping[str, Any] | None = None) -> Config:
    """Return the config of a model by name, with changed ``settings``.

    Raises:
        UnknownNameError: an unknown model or setting.
        ArgumentError: a setting that the config does not accept.
    """
    if name not in MODELS:
        raise UnknownNameError("model", name, MODELS)
    spec = MODELS[name]
    kind = load(spec.config)
    known = {f.name for f in fields(kind)}
    for key in settings or {}:
        if key not in known:
            raise UnknownNameError(f"setting of {name}", key, known)
    try:
        return replace(kind(**spec.settings), **dict(settings or {}))
    except TypeError as error:
        raise ArgumentError(f"{name}: settings: {error}") from error
