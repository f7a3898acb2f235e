"""Baselines against counting by hand and scikit-learn; the default settings on small tables."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import OneHotEncoder

from manyheads.core.errors import ArgumentError
from manyheads.recsys.features.layout import PADDING
from manyheads.recsys.training.baselines import BaselineWarning, Rates, verdict
from manyheads.recsys.training.calibration import CalibrationWarning
from manyheads.recsys.training.metrics import auc, log_loss
from manyheads.recsys.training.recommender import Recommender


def clicks(rows, seed, noise=0.03):
    """Clicks on items a and b, flipped in a share ``noise`` of the rows."""
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame({"item": rng.choice(list("abcdef"), rows), "seg": rng.choice(list("xyz"), rows)})
    truth = frame["item"].isin(["a", "b"]).to_numpy()
    return frame.assign(clicked=(truth ^ (rng.random(rows) < noise)).astype(int))


@pytest.fixture(scope="module")
def test_rows():
    return clicks(4000, 99)


def one_hot_regression(train, test):
    encoder = OneHotEncoder(handle_unknown="ignore").fit(train[["item", "seg"]])
    fitted = LogisticRegression().fit(encoder.transform(train[["item", "seg"]]), train["clicked"])
    return fitted.predict_proba(encoder.transform(test[["item", "seg"]]))[:, 1]


def test_smoothed_click_rates_equal_counting_by_hand():
    ids, labels = np.array([2, 2, 2, 3, 4, 4]), np.array([1.0, 0, 1, 0, 0, 0])
    rates = Rates.of(ids[:, None], labels, 6, 10.0)
    rate = 2 / 6
    expected = [(2 + 10 * rate) / 13, (0 + 10 * rate) / 11, (0 + 10 * rate) / 12, rate]
    np.testing.assert_allclose(rates(np.array([[2], [3], [4], [5]])), expected)
    left_out = [(1 + 10 * rate) / 12, (2 + 10 * rate) / 12, (1 + 10 * rate) / 12]
    np.testing.assert_allclose(rates(ids[:3, None], labels[:3]), left_out)


def test_a_multi_valued_cell_has_the_mean_rate_of_its_values():
    ids = np.array([[2, 3], [2, PADDING]])
    rates = Rates.of(ids, np.array([1.0, 0.0]), 4, 1.0)
    first, second = (1 + 0.5) / 3, (1 + 0.5) / 2
    np.testing.assert_allclose(rates(ids), [(first + second) / 2, first])
    np.testing.assert_allclose(rates(ids, np.array([1.0, 0.0])), [(0.5 / 2 + 0.5 / 1) / 2, (1 + 0.5) / 2])


@pytest.mark.parametrize(("model", "rows"), [("hiformer+", 200), ("lr", 400)])
def test_a_small_table_is_learned_nearly_as_well_as_by_scikit_learn(test_rows, rows, model):
    train = clicks(rows, 0)
    found = Recommender(model, label="clicked", baselines=False).fit(train).predict_proba(test_rows)[:, 1]
    labels = test_rows["clicked"].to_numpy()
    reference = log_loss(labels, one_hot_regression(train, test_rows))
    assert log_loss(labels, found) < reference + 0.06  # the base rate alone is .48 above it
    assert found.mean() == pytest.approx(labels.mean(), abs=0.05)


def test_the_mean_probability_equals_the_rate_of_rare_positives():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"item": rng.integers(0, 50, 20_000).astype(str), "x": rng.normal(size=20_000)})
    frame["bought"] = (rng.random(20_000) < 0.003 * np.exp(frame["x"])).astype(int)
    model = Recommender("lr", label="bought", epochs=3, baselines=False).fit(frame)
    assert model.predict_proba(frame)[:, 1].mean() == pytest.approx(frame["bought"].mean(), rel=0.25)


def test_baselines_are_measured_on_the_same_rows_as_the_model(test_rows):
    train = clicks(600, 1)
    model = Recommender("lr", label="clicked", epochs=1).fit(train)
    found = model.compare(test_rows).set_index("model")
    labels = test_rows["clicked"].to_numpy()
    assert list(found.index) == ["lr", "base rate", "popularity of item", "logistic regression", "gradient boosting"]
    assert (found["rows"] == 4000).all()
    own = model.predict_proba(test_rows)[:, 1]
    assert found.loc["lr", "log_loss"] == pytest.approx(log_loss(labels, own))
    assert found.loc["lr", "auc"] == pytest.approx(auc(labels, own))
    rate = train["clicked"].mean()
    assert found.loc["base rate", "log_loss"] == pytest.approx(log_loss(labels, np.full(4000, rate)), abs=1e-3)
    reference = log_loss(labels, one_hot_regression(train, test_rows))
    for name in ("popularity of item", "logistic regression", "gradient boosting"):
        assert found.loc[name, "log_loss"] == pytest.approx(reference, abs=0.03)
    assert set(model.baselines_["rows"]) == {100}


def test_a_warning_names_a_model_that_loses_to_a_baseline():
    train = clicks(600, 1)
    with pytest.warns(
        BaselineWarning, match=r"^clicked: .* has a lower log-loss than lr on the same 100 rows .*do not"
    ):
        Recommender("lr", label="clicked", epochs=1, learning_rate=1e-6).fit(train)
    columns = ["task", "model", "rows", "log_loss"]
    assert verdict(pd.DataFrame([("y", "lr", 9, 0.2), ("y", "base rate", 9, 0.3)], columns=columns)) is None
    assert "use base rate" in (
        verdict(pd.DataFrame([("y", "lr", 9, 0.3), ("y", "base rate", 9, 0.2)], columns=columns)) or ""
    )


def test_a_loaded_recommender_has_no_baselines(tmp_path):
    model = Recommender("lr", label="clicked", epochs=1, baselines=False).fit(clicks(100, 0))
    model.save(tmp_path / "m")
    with pytest.raises(ArgumentError, match="compare: found a recommender from a file, expected a fitted one"):
        Recommender.load(tmp_path / "m").compare(clicks(100, 0))


def test_a_warning_counts_few_positives():
    train = clicks(300, 0)
    rare = pd.concat([train[train["clicked"] == 0], train[train["clicked"] == 1].iloc[:8]])
    with pytest.warns(CalibrationWarning, match=r"found 2 positives in \d+ validation rows, expected 10 or more"):
        Recommender("lr", label="clicked", epochs=1, baselines=False).fit(rare)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Recommender("lr", label="clicked", epochs=9, baselines=False).fit(clicks(1000, 0))


@pytest.mark.parametrize(("rows", "batch"), [(200, 15), (30_000, 512)])
def test_patience_counts_steps_whatever_the_size_of_the_table(rows, batch):
    model = Recommender(patience=300)
    steps = rows // batch
    passes, budget = model._budget(steps, batch)
    assert passes * steps >= 100 or passes == budget.max_steps // steps
    assert 300 <= budget.patience * passes * steps < 300 + 2 * passes * steps
    assert budget.max_steps == max(30 * steps, 3000)
    assert Recommender(epochs=2)._budget(steps, batch)[1].max_steps == 2 * steps


def test_validation_rows_are_stratified_by_class():
    labels = np.repeat([1.0, 0.0, np.nan], [30, 940, 30])
    train, held = Recommender(validation=0.1)._parts(labels)
    assert sorted([*train, *held]) == list(range(1000))
    assert (labels[held] == 1).sum() == 3
    assert (labels[held] == 0).sum() == 94
    assert len(Recommender()._parts(np.arange(200) % 2)[1]) == 50  # a quarter, as a tenth is less than 100
