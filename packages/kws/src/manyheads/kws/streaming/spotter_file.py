"""Spotter file: tensors in safetensors, everything else as JSON in its header."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from manyheads.core.errors import ArgumentError, CheckpointError, ManyheadsError
from manyheads.kws.audio.features import Features
from manyheads.kws.models import config_from_json
from manyheads.kws.streaming.detection import Rule
from manyheads.kws.streaming.stream_state import Surround
from manyheads.lab.data.fields import from_json
from manyheads.lab.data.storage import checked_tensors, load_tensors, save_tensors

if TYPE_CHECKING:
    from manyheads.kws.streaming.spotter import KeywordSpotter

KIND = "keyword spotter"
VERSION = 1


def write_spotter(spotter: KeywordSpotter, path: str | Path) -> None:
    """Write a spotter to ``path``.

    Raises :class:`ArgumentError` for a folded network: its weights do not fit its configuration.
    """
    if spotter.network.folded:
        raise ArgumentError("network: found one without its batch norm (folded), expected the one that was trained")
    header = {
        "version": VERSION,
        "model": spotter.network.config.to_json(),
        "labels": spotter.labels,
        "features": asdict(spotter.features),
        "tau": spotter.tau,
        "rule": asdict(spotter.rule),
        "surround": asdict(spotter.surround),
        "trained": spotter.trained,
    }
    save_tensors(path, spotter.network.state_dict(), header, kind=KIND)


def read_spotter(
    path: str | Path, build: type[KeywordSpotter], *, labels: Sequence[str] | None = None, **changes: Any
) -> KeywordSpotter:
    """Read a spotter file; ``changes`` as for :meth:`KeywordSpotter.load`.

    Raises :class:`CheckpointError` with the name of the file, if it is no spotter, has another version or other labels.
    """
    fix = "name a file that 'manyheads kws train' or KeywordSpotter.save wrote"
    tensors, header = load_tensors(path, kind=KIND, fix=fix)
    if header.get("version") != VERSION:
        raise CheckpointError(
            f"{path}: found version {header.get('version')}, this package reads version {VERSION}: "
            "install the manyheads-kws that wrote it, or train again"
        )
    found = tuple(map(str, header.get("labels") or ()))
    if labels is not None and tuple(labels) != found:
        raise CheckpointError(
            f"{path}: found the labels {', '.join(found)}, expected {', '.join(labels)}: it was trained on another set"
        )
    rule_changes = {name: changes.pop(name) for name in [f.name for f in fields(Rule)] if name in changes}
    try:
        features = from_json(Features, header["features"])
        config = config_from_json(header["model"])
        network = config.make(features.bins, found)
        network.load_state_dict(checked_tensors(config.renamed(tensors), network.state_dict()))
        stored: dict[str, Any] = {
            "tau": float(header["tau"]),
            "surround": from_json(Surround, header["surround"]),
            "trained": dict(header["trained"]),
        }
        rule = from_json(Rule, header["rule"]).check()
        spotter = build(network, features, rule=rule, **stored)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, OverflowError, ManyheadsError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"{path}: its weights and its description do not fit each other ({reason})") from error
    if not changes and not rule_changes:
        return spotter
    return build(network, features, rule=replace(rule, **rule_changes), **stored, **changes)
