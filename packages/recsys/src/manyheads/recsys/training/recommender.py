"""The estimator ``Recommender``: fit on a table, predict calibrated probabilities.

    Recommender(label="clicked").fit(frame).predict_proba(new_rows)

It works with scikit-learn's ``clone``, ``Pipeline`` and ``GridSearchCV``. Out-of-vocabulary values are scored, and
:meth:`Recommender.unseen` counts them.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from manyheads.core.errors import ArgumentError, DataError
from manyheads.lab.training.experiment import Budget, Experiment, Splits
from manyheads.lab.training.loop import train_model
from manyheads.lab.training.optimisers import Optimiser
from manyheads.recsys.datasets.splits import encode, facts
from manyheads.recsys.features.encoder import Encoder, TableWarning
from manyheads.recsys.features.fitted_rows import MOST, row_hashes
from manyheads.recsys.features.frames import as_frame, check_frame, check_scores
from manyheads.recsys.features.labels import Labels
from manyheads.recsys.features.layout import Passes, Rows
from manyheads.recsys.features.spec import FeatureSpec, infer_spec
from manyheads.recsys.models import config_of
from manyheads.recsys.models.common import Config
from manyheads.recsys.training.baselines import BaselineWarning, fit_baselines, scores, verdict
from manyheads.recsys.training.calibration import METHODS, Calibration, CalibrationWarning, Method, calibrate
from manyheads.recsys.training.objective import LogLoss, predict_logits
from manyheads.recsys.training.saved import load, save

# the default budget: the larger of so many epochs and so many steps
_EPOCHS, _STEPS = 30, 3000
# minimum number of rows to hold out validation rows
_MIN_ROWS_TO_SPLIT = 50
# minimum number of validation rows, up to a quarter of all rows
_MIN_VALIDATION_ROWS = 100
# minimum number of steps between two validations
_MIN_STEPS_BETWEEN_VALIDATIONS = 100


@dataclass(frozen=True)
class Prepared:
    """Splits in memory, as the data of an experiment."""

    splits: Splits
    name: str = "table"

    def open(self) -> Splits:
        return self.splits


class Recommender(ClassifierMixin, BaseEstimator):
    """Click-through rate model for tables of categorical, multi-valued, numeric and time columns.

    Args:
        model: a name of ``manyheads recsys models``.
        label: the label column, or several (one task each); not needed if ``fit`` has ``y``.
        spec: a feature spec or its path; inferred from the rows if None.
        ignore: columns that are not used as features; only without ``spec``.
        settings: changes to the settings of the model, such as ``{"dim": 32}``.
        epochs: maximum number of epochs; by default 30, or as many as give 3,000 steps.
        batch_size: rows per step; reduced to a tenth of the training rows, but not below 16.
        learning_rate: learning rate of Adam; divided by ten after each validation without a better metric. Validation
            happens after each epoch, or after as many epochs as give 100 steps.
        l2: lambda of the L2 on the embedding rows of a batch.
        choose_by: validation metric, ``log_loss`` or ``auc`` (of the first task); the weights with the best one are
            kept.
        calibration: ``platt``, ``isotonic``, ``temperature`` or ``none``, fitted on the validation rows; see
            :mod:`manyheads.recsys.training.calibration`.
        validation: share of validation rows, which choose the weights and calibrate; stratified by class. By default a
            tenth, or up to a quarter if a tenth is less than 100 rows.
        patience: early stopping after this many steps without a better validation metric, at least two validations.
        baselines: fit :mod:`manyheads.recsys.training.baselines` too; a warning says if the model loses.
        seed: seed of split, initial weights, row order and dropout.
        verbose: show progress on standard error.

    Attributes (after fit): ``classes_`` (with one task), ``spec_``, ``encoder_``, ``labels_``, ``network_``,
    ``calibration_`` (one per task, with the calibration error before and after), ``baselines_`` (model and baselines on
    the validation rows, as :meth:`compare`).

    Raises:
        DataError, ArgumentError, UnknownNameError: on fit; one line with place, found and expected value.
    """

    def __init__(
        self,
        model: str = "hiformer+",
        *,
        label: str | Sequence[str] | None = None,
        spec: FeatureSpec | str | Path | None = None,
        ignore: Sequence[str] = (),
        settings: Mapping[str, Any] | None = None,
        epochs: int | None = None,
        batch_size: int = 512,
        learning_rate: float = 1e-3,
        l2: float = 1e-4,
        choose_by: Literal["log_loss", "auc"] = "log_loss",
        calibration: Method = "platt",
        validation: float | None = None,
        patience: int = 300,
        baselines: bool = True,
        seed: int = 0,
        verbose: bool = False,
    ) -> None:
        self.model = model
        self.label = label
        self.spec = spec
        self.ignore = ignore
        self.settings = settings
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.l2 = l2
        self.choose_by = choose_by
        self.calibration = calibration
        self.validation = validation
        self.patience = patience
        self.baselines = baselines
        self.seed = seed
        self.verbose = verbose

    def fit(self, X: Any, y: Any = None) -> Recommender:
        """Fit on a DataFrame with the label column, or on features and ``y``."""
        self._check()
        config = config_of(self.model, self.settings)
        frame, tasks = self._with_labels(X, y)
        labels = Labels.of(frame, tasks)
        train, held = self._parts(labels.encode(frame)[:, 0])
        features = frame.drop(columns=list(tasks))
        spec = self._spec(features.iloc[train])
        encoder = Encoder.fit(features.iloc[train], spec)
        parts = [encode(frame.iloc[rows], encoder, labels) for rows in (train, held)]
        size = max(2, min(self.batch_size, len(train) // 10), min(len(train), 16))
        passes, budget = self._budget(len(train) // size, size)
        experiment = Experiment(
            f"recommender-{self.model}",
            Prepared(Splits(Passes(parts[0], passes), parts[1], parts[1], facts(encoder, labels))),
            config,
            LogLoss(self.l2, "batch", choose_by=self.choose_by),
            Optimiser("adam", self.learning_rate, schedule="plateau"),
            budget,
        )
        network, _ = train_model(experiment, self.seed, None, progress=self.verbose)
        self.set_fitted(spec, encoder, labels, network, config, self._calibrate(network, parts[1]))
        if len(train) <= MOST:
            self.fitted_rows_ = row_hashes(parts[0].ids.numpy(), parts[0].numbers.numpy())
        self._warn_of_probabilities(len(frame))
        self._baselines, layout = {}, encoder.layout(labels.tasks)
        if self.baselines and len(frame) >= _MIN_ROWS_TO_SPLIT:
            for index, task in enumerate(labels.tasks):
                self._baselines[task] = fit_baselines(layout, *parts, index, seed=self.seed)
        self.baselines_ = self._compare(parts[1])
        for _, found in self.baselines_.groupby("task", sort=False):
            if line := verdict(found):
                warnings.warn(line, BaselineWarning, stacklevel=2)
        return self

    def compare(self, frame: Any) -> pd.DataFrame:
        """Compare the model with the baselines on labelled rows that were not fitted.

        Returns columns ``task``, ``model``, ``chosen``, ``rows``, ``log_loss`` and ``auc``, the model first. Raises
        :class:`ArgumentError` for a loaded recommender: baselines are not saved.
        """
        check_is_fitted(self)
        if not hasattr(self, "_baselines"):
            raise ArgumentError("compare: found a recommender from a file, expected a fitted one: fit it again")
        return self._compare(encode(_text_names(as_frame(frame)), self.encoder_, self.labels_))

    def predict_proba(self, X: Any) -> Any:
        """Return calibrated probabilities ``(n, 2)`` in the order of ``classes_``; a list with several tasks."""
        logits = self._logits(X)
        found = []
        for task, calibration in enumerate(self.calibration_):
            positive = calibration(logits[:, task])
            found.append(np.stack([1.0 - positive, positive], 1))
        return found[0] if len(found) == 1 else found

    def decision_function(self, X: Any) -> np.ndarray:
        """Return logits before calibration, ``(n,)``, or ``(n, K)`` for K tasks."""
        logits = self._logits(X)
        return logits[:, 0] if logits.shape[1] == 1 else logits

    def predict(self, X: Any) -> np.ndarray:
        """Return the more probable class, ``(n,)``, or ``(n, K)`` for K tasks."""
        found = self.predict_proba(X)
        columns = [
            np.array(classes)[(p[:, 1] > 0.5).astype(int)]
            for classes, p in zip(self.labels_.classes, found if isinstance(found, list) else [found], strict=True)
        ]
        return columns[0] if len(columns) == 1 else np.stack(columns, 1)

    def unseen(self, X: Any) -> pd.DataFrame:
        """Count out-of-vocabulary and missing values of ``X``, one row per field."""
        encoded = self.encoder_.transform(self._features(X))
        rows = [(name, encoded.unseen.get(name, 0), count) for name, count in encoded.missing.items()]
        return pd.DataFrame(rows, columns=["field", "unseen", "missing"])

    def save(self, folder: str | Path) -> None:
        """Save as a folder of safetensors and JSON files; nothing is pickled."""
        check_is_fitted(self)
        save(self, Path(folder))

    @classmethod
    def load(cls, folder: str | Path) -> Recommender:
        """Load a folder of :meth:`save`, or a seed's folder of ``manyheads recsys train``.

        Raises :class:`CheckpointError` for any other folder.
        """
        return load(Path(folder), cls)

    def set_fitted(
        self,
        spec: FeatureSpec,
        encoder: Encoder,
        labels: Labels,
        network: torch.nn.Module,
        config: Config,
        calibrations: list[Calibration],
        fitted_rows: np.ndarray | None = None,
    ) -> None:
        """Set the attributes of a fitted estimator, from ``fit`` or ``load``."""
        self.fitted_rows_ = fitted_rows
        self.spec_, self.encoder_, self.labels_ = spec, encoder, labels
        self.network_, self.config_, self.calibration_ = network.eval(), config, calibrations
        if len(labels.tasks) == 1:
            self.classes_ = np.array(labels.classes[0])

    def _with_labels(self, X: Any, y: Any) -> tuple[pd.DataFrame, tuple[str, ...]]:
        """Return a table with the label columns, and their names."""
        if y is None:
            if self.label is None:
                raise ValueError(
                    "requires y to be passed, but the target y is None: give y, or name the label's column"
                )
            tasks = (self.label,) if isinstance(self.label, str) else tuple(self.label)
            frame = _text_names(as_frame(X))
            check_frame(frame, list(tasks), "table")
            self._remember(frame.drop(columns=list(tasks)))
            return frame, tasks
        if _is_table(X):
            frame, target = _text_names(as_frame(X)), y
            if len(frame) != len(y):
                raise DataError(f"y: found {len(y)} labels for {len(frame)} rows, expected as many")
            check_frame(frame, [], "table")
            self._remember(frame)
        else:
            values, target = validate_data(self, X, y, dtype=None, ensure_all_finite="allow-nan")
            frame = _as_frame(values)
        task = str(getattr(y, "name", None) or "label")
        if task in frame.columns:
            raise DataError(f"y: its name {task!r} is a feature's too, expected another: rename one")
        target = np.asarray(target)
        if target.ndim == 2 and target.shape[1] == 1:
            from sklearn.exceptions import DataConversionWarning

            warnings.warn("y is a column vector and was taken as a vector", DataConversionWarning, stacklevel=3)
            target = target[:, 0]
        if target.ndim != 1:
            raise DataError(
                f"y: found an array of shape {target.shape}, expected one label a row: put several labels in the table "
                "and name them (label=[...])"
            )
        return frame.assign(**{task: target}), (task,)

    def _remember(self, features: pd.DataFrame) -> None:
        self.feature_names_in_ = np.array(features.columns, object)
        self.n_features_in_ = features.shape[1]

    def _features(self, X: Any) -> pd.DataFrame:
        check_is_fitted(self)
        if _is_table(X):
            return _text_names(as_frame(X))
        return _as_frame(validate_data(self, X, dtype=None, ensure_all_finite="allow-nan", reset=False))

    def _logits(self, X: Any) -> np.ndarray:
        frame = self._features(X)
        encoded = self.encoder_.transform(frame)
        for note in self.encoder_.notes(encoded, len(frame)):
            warnings.warn(note, TableWarning, stacklevel=4)
        labels = torch.zeros(len(encoded.ids), len(self.labels_.tasks))
        logits = predict_logits(self.network_, Rows(encoded.ids, encoded.numbers, labels))
        check_scores(logits, lambda row: f"row {frame.index[row]}")
        return logits

    def _spec(self, features: pd.DataFrame) -> FeatureSpec:
        if isinstance(self.spec, FeatureSpec):
            return self.spec
        return infer_spec(features, ignore=self.ignore) if self.spec is None else FeatureSpec.load(self.spec)

    def _compare(self, rows: Rows) -> pd.DataFrame:
        logits, found = predict_logits(self.network_, rows), []
        for index, task in enumerate(self.labels_.tasks):
            labels = rows.labels[:, index].numpy()
            known = ~np.isnan(labels)
            own = [(self.model, "", self.calibration_[index](logits[:, index]))]
            others = [(one.name, one.chosen, one.predict(rows)) for one in self._baselines.get(task, [])]
            for name, chosen, p in [*own, *others] if known.any() else []:
                row = {"task": task, "model": name, "chosen": chosen, "rows": int(known.sum())}
                found.append(row | scores(labels[known], p[known]))
        return pd.DataFrame(found, columns=["task", "model", "chosen", "rows", "log_loss", "auc"])

    def _warn_of_probabilities(self, rows: int) -> None:
        if rows < _MIN_ROWS_TO_SPLIT and self.calibration != "none":
            warnings.warn(
                f"calibration: found {rows} rows, expected {_MIN_ROWS_TO_SPLIT} or more: probabilities are calibrated "
                "on the rows that were fitted; give more rows",
                CalibrationWarning,
                stacklevel=3,
            )
        for task, calibration in zip(self.labels_.tasks, self.calibration_, strict=True):
            for doubt in calibration.doubts(task) if rows >= _MIN_ROWS_TO_SPLIT else []:
                warnings.warn(doubt, CalibrationWarning, stacklevel=3)

    def _check(self) -> None:
        for name, allowed in (("calibration", METHODS), ("choose_by", ("log_loss", "auc"))):
            if getattr(self, name) not in allowed:
                raise ArgumentError(f"{name}: found {getattr(self, name)!r}, expected one of {', '.join(allowed)}")
        if self.validation is not None and not 0.0 < self.validation < 1.0:
            raise ArgumentError(f"validation: found {self.validation}, expected a share between 0 and 1")
        for name, least in (("epochs", 1), ("batch_size", 1), ("patience", 1), ("seed", 0), ("l2", 0)):
            value = getattr(self, name)
            if not (value is None and name == "epochs") and not value >= least:
                raise ArgumentError(f"{name}: found {value}, expected {least} or more")
        if self.spec is not None and len(self.ignore):
            raise ArgumentError(f"ignore: found {list(self.ignore)} beside a spec, expected one of them: edit the spec")

    def _budget(self, steps: int, size: int) -> tuple[int, Budget]:
        """Return the passes, of ``steps`` steps each, between two validations, and the budget in such epochs."""
        total = self.epochs * steps if self.epochs else max(_EPOCHS * steps, _STEPS)
        passes = max(1, math.ceil(min(_MIN_STEPS_BETWEEN_VALIDATIONS, total) / steps))
        rounds = math.ceil(total / (passes * steps))
        patience = max(2, math.ceil(self.patience / (passes * steps)))
        return passes, Budget(epochs=rounds, batch_size=size, patience=patience, max_steps=total)

    def _parts(self, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Split row numbers into training and validation rows, stratified by the class of the first task.

        A missing label is a class too. With fewer than 50 rows, all rows are both.
        """
        if len(labels) < _MIN_ROWS_TO_SPLIT:
            return np.arange(len(labels)), np.arange(len(labels))
        share = self.validation or max(0.1, min(0.25, _MIN_VALIDATION_ROWS / len(labels)))
        order = np.random.default_rng(self.seed).permutation(len(labels))
        classes = np.nan_to_num(labels[order], nan=2.0)
        held = np.zeros(len(labels), bool)
        for value in np.unique(classes):
            own = np.flatnonzero(classes == value)
            held[own[: max(int(len(own) > 1), round(len(own) * share))]] = True
        return order[~held], order[held]

    def _calibrate(self, network: torch.nn.Module, held: Rows) -> list[Calibration]:
        logits, labels = predict_logits(network, held), held.labels.numpy()
        known = ~np.isnan(labels)
        return [
            calibrate(labels[known[:, task], task], logits[known[:, task], task], self.calibration)
            for task in range(logits.shape[1])
        ]

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_class = False
        tags.input_tags.allow_nan = True
        tags.input_tags.categorical = True
        tags.input_tags.string = True
        return tags


def _is_table(X: Any) -> bool:
    """Return whether ``X`` is a table with column names: a pandas DataFrame, or a table with the Arrow interface."""
    return isinstance(X, pd.DataFrame) or (hasattr(X, "__arrow_c_stream__") and not isinstance(X, pd.Series))


def _text_names(frame: pd.DataFrame) -> pd.DataFrame:
    return frame if all(isinstance(c, str) for c in frame.columns) else frame.rename(columns=str)


def _as_frame(values: np.ndarray) -> pd.DataFrame:
    frame = pd.DataFrame(values, columns=[f"x{i}" for i in range(values.shape[1])])
    return frame.infer_objects()
