"""Save and load a fitted recommender.

The folder has ``model.safetensors``, ``encoder.json``, ``encoder.safetensors``, ``labels.json`` and
``fitted.safetensors``. It has the format of a seed's folder of ``manyheads recsys train``; settings and calibration are
added to the header of the weights.
"""

from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from manyheads.core.errors import CheckpointError, ManyheadsError
from manyheads.lab.data.fields import plain
from manyheads.lab.data.storage import MODEL_FILE, checked_tensors, load_model, save_model
from manyheads.lab.training.experiment import type_name
from manyheads.recsys.features import fitted_rows
from manyheads.recsys.features.encoder import Encoder
from manyheads.recsys.features.labels import Labels
from manyheads.recsys.training.calibration import Calibration
from manyheads.recsys.training.objective import config_from

if TYPE_CHECKING:
    from manyheads.recsys.training.recommender import Recommender

FORMAT = 1


def save(recommender: Recommender, folder: Path) -> None:
    """Write each file atomically, the weights last."""
    config, kind = recommender.config_, type(recommender.config_)
    described = {"type": type_name(kind)}
    described |= {f.name: plain(getattr(config, f.name)) for f in fields(config)}
    settings = {k: plain(v) for k, v in recommender.get_params().items() if k not in ("spec", "verbose")}
    about = {"format": FORMAT, "settings": settings, "calibration": [asdict(c) for c in recommender.calibration_]}
    header = {"experiment": {"model": described}, "recommender": about}
    beside = {
        **recommender.encoder_.files(),
        **recommender.labels_.files(),
        **fitted_rows.files(recommender.fitted_rows_),
    }
    save_model(folder, recommender.network_.state_dict(), header, beside)


def load(folder: Path, build: type[Recommender]) -> Recommender:
    """Load the estimator of a folder.

    Raises:
        CheckpointError: a folder that :func:`save` or a run did not write.
    """
    if not (folder / MODEL_FILE).is_file():
        runs = sorted(folder.glob("**/seed-*/model.safetensors"))
        advice = f"name {runs[0].parent}" if runs else "fit or train one first"
        if (folder / "network.onnx").is_file():
            advice = (
                "it was exported and is for bench, serve and Ranker.load; name the folder that it was exported from"
            )
        raise CheckpointError(f"{folder} holds no model.safetensors: {advice}")
    fix = "fit or train again"
    tensors, header = load_model(folder, fix=fix)
    try:
        about = dict(header.get("recommender", {}))
        if about.get("format", FORMAT) != FORMAT:
            raise CheckpointError(f"{folder} has format {about['format']}, this version reads {FORMAT}: fit again")
        encoder, labels, rows = Encoder.load(folder), Labels.load(folder), fitted_rows.load(folder)
        config = config_from(dict(header.get("experiment", {})).get("model", {}))
        network = config.make(encoder.layout(labels.tasks))
        network.load_state_dict(checked_tensors(config.renamed(tensors), network.state_dict()))
        stored = about.get("calibration") or [{} for _ in labels.tasks]
        calibrations = [Calibration.from_dict(values) for values in stored]
        if len(calibrations) != len(labels.tasks):
            raise ValueError(f"{len(calibrations)} calibrations for {len(labels.tasks)} tasks")
        settings: dict[str, Any] = {**dict(about.get("settings", {})), "spec": encoder.spec}
        made = build(**settings)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, OverflowError, ManyheadsError) as error:
        if isinstance(error, CheckpointError) and str(folder) in str(error):
            raise
        said = " ".join(str(error).split())[:160] or type(error).__name__
        raise CheckpointError(
            f"{folder}: weights, encoder and settings do not belong together ({said}): {fix}"
        ) from error
    made.set_fitted(encoder.spec, encoder, labels, network, config, calibrations, rows)
    return made
