"""Windows as training data; the linear family by gradient descent with the recipe of 2205.13504."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from manyheads.core.errors import DataError
from manyheads.forecasting.datasets.benchmark_sets import load_set, standardise
from manyheads.forecasting.models.closed_form.normal_equations import Form
from manyheads.forecasting.models.linear import LinearForecaster
from manyheads.forecasting.models.network_forecast import ModuleForecast
from manyheads.forecasting.series.panels import FittedModel, History
from manyheads.forecasting.training.scoring import score
from manyheads.lab.training.experiment import Budget, Experiment, Splits
from manyheads.lab.training.optimisers import Optimiser


@dataclass(frozen=True)
class Windows:
    """All windows of consecutive rows; ``batch(indices)`` returns past ``(n, L, C)`` and future ``(n, H, C)``."""

    values: Tensor  # (T, C)
    look_back: int
    horizon: int

    def __len__(self) -> int:
        return max(0, len(self.values) - self.look_back - self.horizon + 1)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        rows = indices.unsqueeze(1) + torch.arange(self.look_back + self.horizon)
        window = self.values[rows]
        return window[:, : self.look_back], window[:, self.look_back :]


@dataclass(frozen=True)
class TestPart:
    """The rows from which the final errors are computed, on all windows of the test part."""

    values: np.ndarray  # (T, C) standardised
    first_target: int
    last_target: int
    look_back: int
    horizon: int


def as_fitted(module: nn.Module, look_back: int, horizon: int) -> FittedModel:
    """The trained module as a fitted model: one matrix for a member of the linear family, else the module itself."""
    if isinstance(module, LinearForecaster):
        return module.as_linear_map()
    return ModuleForecast(module, look_back, horizon)


@dataclass(frozen=True)
class SetWindows:
    """The windows of a benchmark set, standardised by the train rows."""

    set: str
    look_back: int
    horizon: int

    def open(self) -> Splits:
        panel = load_set(self.set)
        values, _ = standardise(panel)
        split = panel.split
        assert split is not None
        splits = history_splits(
            History(values[: split.validation_end], split.train_end, panel.season), self.look_back, self.horizon
        )
        test = TestPart(values, split.validation_end, split.test_end, self.look_back, self.horizon)
        return Splits(splits.train, splits.validation, test, splits.facts)  # ty: ignore[invalid-argument-type]


@dataclass(frozen=True)
class HistoryWindows:
    """The windows of a history in memory; there is no test part."""

    history: History
    look_back: int
    horizon: int

    def open(self) -> Splits:
        return history_splits(self.history, self.look_back, self.horizon)


def history_splits(history: History, look_back: int, horizon: int) -> Splits:
    """Train and validation windows of a history. Raises :class:`DataError` if the train part has no window."""
    values = torch.from_numpy(history.values).to(torch.get_default_dtype())
    train = Windows(values[: history.train_end], look_back, horizon)
    validation = Windows(values[max(0, history.train_end - look_back) :], look_back, horizon)
    if len(train) < 1:
        raise DataError(
            f"the train part has {history.train_end} rows, fewer than look-back + horizon = {look_back} + {horizon}: "
            "give more rows, a shorter look-back or a shorter horizon"
        )
    facts = {"look_back": look_back, "horizon": horizon, "channels": history.channels}
    return Splits(train, validation, Windows(values[:0], look_back, horizon), facts)


@dataclass(frozen=True)
class LinearModel:
    """A member of the linear family as the model of an experiment."""

    form: Form = "dlinear"
    """linear, nlinear, dlinear or rlinear."""
    individual: bool = False
    """Weights for each channel instead of shared ones."""

    def build(self, splits: Splits) -> nn.Module:
        facts = splits.facts
        channels = facts["channels"] if self.individual else None
        return LinearForecaster(self.form, facts["look_back"], facts["horizon"], channels)


@dataclass(frozen=True)
class SquaredError:
    """Mean squared error as the loss; MSE and MAE over all test windows as the metrics."""

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        past, future = batch
        return nn.functional.mse_loss(model(past), future)

    def metrics(self, model: nn.Module, part: TestPart | Windows) -> dict[str, float]:
        # a history has no test part
        if not isinstance(part, TestPart):
            return {}
        fitted = as_fitted(model, part.look_back, part.horizon)
        found = score(fitted, part.values, part.first_target, part.last_target)
        return {"mse": found.mse, "mae": found.mae, "windows": float(found.windows)}


RECIPE = Optimiser("adam", 0.005, schedule="halving")
BUDGET = Budget(epochs=10, batch_size=32, patience=3)


def fit_gradient(
    history: History,
    horizons: Sequence[int],
    *,
    look_back: int,
    seed: int = 0,
    form: Form,
    individual: bool,
    optimiser: Optimiser = RECIPE,
    budget: Budget = BUDGET,
) -> dict[int, FittedModel]:
    """Train one model for each horizon; by default with the recipe of the paper's ETTh1 scripts."""
    from manyheads.lab.training.loop import train_model

    fitted: dict[int, FittedModel] = {}
    for horizon in horizons:
        data = HistoryWindows(history, look_back, horizon)
        model = LinearModel(form, individual)
        experiment = Experiment(f"{form}-{horizon}", data, model, SquaredError(), optimiser, budget)
        module, _ = train_model(experiment, seed, None, progress=False)
        fitted[horizon] = as_fitted(module, look_back, horizon)
    return fitted
