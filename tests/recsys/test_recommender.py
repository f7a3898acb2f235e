"""The estimator: scikit-learn's checks, unseen values, calibration, saving, bad input."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import parametrize_with_checks

from manyheads.core.errors import ArgumentError, CheckpointError, DataError, UnknownNameError
from manyheads.recsys.features.spec import infer_spec
from manyheads.recsys.training.metrics import auc
from manyheads.recsys.training.recommender import Recommender

QUICK = {"epochs": 6, "settings": {"dim": 8, "tower": (32,)}, "baselines": False}
# Rows are scored in float32, where a batch of another size may add up in another order.
EXCEPTIONS = {"check_methods_subset_invariance": "scores agree to float32, not to 1e-7"}


@parametrize_with_checks([Recommender(**{**QUICK, "epochs": 20})], expected_failed_checks=lambda _: EXCEPTIONS)
def test_the_estimator_passes_the_checks_of_scikit_learn(estimator, check):
    check(estimator)


@pytest.fixture(scope="module")
def visits():
    rng = np.random.default_rng(1)
    rows = 1500
    kind, item = rng.choice(["a", "b", "c"], rows), rng.integers(0, 30, rows)
    price = rng.normal(size=rows)
    logit = 2.0 * (kind == "a") - 1.0 + 1.5 * price * (item % 2)
    clicked = (rng.random(rows) < 1 / (1 + np.exp(-logit))).astype(int)
    bought = clicked * (rng.random(rows) < 0.5)
    return pd.DataFrame({"kind": kind, "item_id": item, "price": price, "clicked": clicked, "bought": bought})


@pytest.fixture(scope="module")
def fitted(visits):
    frame = visits.drop(columns="bought")
    return Recommender(label="clicked", **{**QUICK, "epochs": 15}).fit(frame.iloc[:1200])


def test_the_model_learns_most_of_the_signal(visits, fitted):
    test = visits.iloc[1200:]
    truth = 2.0 * (test["kind"] == "a") - 1.0 + 1.5 * test["price"] * (test["item_id"] % 2)
    best, found = (auc(test["clicked"].to_numpy(), score) for score in (truth, fitted.predict_proba(test)[:, 1]))
    assert found - 0.5 > 0.8 * (best - 0.5)


def test_probabilities_sum_to_1_and_determine_the_class(visits, fitted):
    proba = fitted.predict_proba(visits)
    np.testing.assert_allclose(proba.sum(1), 1.0)
    assert (fitted.predict(visits) == (proba[:, 1] > 0.5)).all()
    assert fitted.classes_.tolist() == [0, 1]


def test_separate_features_and_labels_give_the_same_model(visits, fitted):
    train = visits.iloc[:1200]
    other = Recommender(**{**QUICK, "epochs": 15}).fit(train[["kind", "item_id", "price"]], train["clicked"])
    np.testing.assert_array_equal(other.predict_proba(visits), fitted.predict_proba(visits))


def test_the_seed_determines_the_model_and_the_global_generator_is_unchanged(visits):
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first, second, third = (
        Recommender(label="clicked", seed=seed, **QUICK).fit(visits).predict_proba(visits) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, second)
    assert np.abs(first - third).max() > 0
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()  # noqa: NPY002


def test_values_never_seen_are_scored_and_counted(visits, fitted):
    new = visits.iloc[:3].assign(kind=["zz", None, "a"], item_id=[999, 1, 2])
    assert np.isfinite(fitted.predict_proba(new)).all()
    counts = fitted.unseen(new).set_index("field")
    assert counts["unseen"].to_dict() == {"kind": 1, "item_id": 1, "price": 0}
    assert counts["missing"].to_dict() == {"kind": 1, "item_id": 0, "price": 0}


def test_text_labels_keep_their_names(visits):
    frame = visits.assign(clicked=np.where(visits["clicked"] == 1, ">50K", "<=50K"))
    model = Recommender(label="clicked", **QUICK).fit(frame)
    assert model.classes_.tolist() == ["<=50K", ">50K"]
    assert set(model.predict(frame)) <= {"<=50K", ">50K"}


def test_clone_pipeline_and_grid_search(visits):
    x, y = visits[["kind", "item_id", "price"]], visits["clicked"]
    model = clone(Recommender("lr", **{**QUICK, "settings": None}))
    assert model.get_params()["model"] == "lr"
    pipe = Pipeline([("doubled", FunctionTransformer(lambda f: f.assign(price=f["price"] * 2))), ("model", model)])
    search = GridSearchCV(pipe, {"model__model": ["lr", "fm"]}, cv=2, scoring="roc_auc").fit(x, y)
    assert set(search.best_params_) == {"model__model"}
    assert search.best_score_ > 0.6


def test_several_labels_are_several_tasks_and_may_have_gaps(visits):
    frame = visits.copy()
    frame["bought"] = frame["bought"].where(frame["clicked"] == 1)
    model = Recommender(label=["clicked", "bought"], **QUICK).fit(frame)
    proba = model.predict_proba(frame)
    assert [p.shape for p in proba] == [(1500, 2), (1500, 2)]
    assert model.predict(frame).shape == (1500, 2)
    assert len(model.calibration_) == 2


@pytest.mark.parametrize("method", ["none", "platt", "isotonic"])
def test_calibration_is_fitted_on_held_out_rows(visits, method):
    calibration = Recommender(label="clicked", calibration=method, **QUICK).fit(visits).calibration_[0]
    assert calibration.method == method
    assert calibration.ece_after is not None
    assert calibration.ece_before is not None


@pytest.mark.parametrize("calibration", ["platt", "isotonic"])
def test_a_saved_model_gives_the_same_scores(visits, tmp_path, calibration):
    frame = visits.drop(columns="bought")
    model = Recommender(label="clicked", calibration=calibration, **QUICK).fit(frame)
    model.save(tmp_path / "m")
    loaded = Recommender.load(tmp_path / "m")
    np.testing.assert_array_equal(loaded.predict_proba(frame), model.predict_proba(frame))
    assert loaded.get_params()["calibration"] == calibration
    suffixes = {p.suffix for p in (tmp_path / "m").iterdir()}
    assert suffixes == {".json", ".safetensors"}


def test_a_saved_model_names_its_model_and_nothing_is_imported_by_name(fitted, tmp_path):
    from manyheads.lab.data.storage import load_model, save_model

    fitted.save(tmp_path)
    tensors, header = load_model(tmp_path, fix="")
    header["experiment"]["model"]["type"] = "os.system"
    save_model(tmp_path, tensors, header)
    with pytest.raises(CheckpointError, match=r"model: found 'os\.system', expected one of this package"):
        Recommender.load(tmp_path)


def test_folders_without_a_model_do_not_load(tmp_path):
    with pytest.raises(CheckpointError, match=r"holds no model\.safetensors: fit or train one first"):
        Recommender.load(tmp_path)


def test_a_given_spec_is_followed(visits, tmp_path):
    spec = infer_spec(visits, label=["clicked", "bought"], ignore=["price"])
    spec.save(tmp_path / "spec.json")
    model = Recommender(label="clicked", spec=tmp_path / "spec.json", **QUICK).fit(visits)
    assert model.encoder_.layout().names == ("kind", "item_id")


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"model": "deepfn"}, UnknownNameError, "unknown model 'deepfn': did you mean 'deepfm'"),
        ({"calibration": "beta"}, ArgumentError, "calibration: found 'beta', expected one of"),
        ({"choose_by": "loss"}, ArgumentError, "choose_by: found 'loss', expected one of log_loss, auc"),
        ({"validation": 1.5}, ArgumentError, r"validation: found 1\.5, expected a share between 0 and 1"),
        ({"label": "sold"}, DataError, "column 'sold' is missing"),
        ({"label": "kind"}, DataError, "label 'kind': found 3 values"),
        ({"settings": {"with": 3}}, UnknownNameError, "unknown setting of"),
        ({"epochs": 0}, ArgumentError, "epochs: found 0, expected 1 or more"),
        ({"spec": "spec.json", "ignore": ["item"]}, ArgumentError, "ignore: found .* beside a spec"),
    ],
)
def test_bad_settings_are_refused_when_fitting(visits, change, error, says):
    with pytest.raises(error, match=says):
        Recommender(**{"label": "clicked", "epochs": 1, **change}).fit(visits)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda f: f.drop(columns="price"), "column 'price' is missing"),
        (lambda f: f.assign(price=np.inf), "column 'price', row 0 and .* found inf"),
        (lambda f: f.assign(price="dear"), r"column 'price': found text \('dear'\), expected number"),
        (lambda f: f.assign(kind=7), "column 'kind': found integer"),
        (lambda f: f.iloc[:0], "found no rows"),
    ],
)
def test_rows_that_cannot_be_scored_are_refused(visits, fitted, change, says):
    with pytest.raises(DataError, match=says):
        fitted.predict_proba(change(visits))


def test_fitting_needs_a_label_and_both_classes(visits):
    with pytest.raises(ValueError, match="name the label's column"):
        Recommender().fit(visits)
    with pytest.raises(DataError, match="one class only"):
        Recommender(label="clicked").fit(visits.assign(clicked=1))
    with pytest.raises(DataError, match="found no rows"):
        Recommender(label="clicked").fit(visits.iloc[:0])


def test_ignored_columns_are_no_features(visits):
    left_out = next(c for c in visits.columns if c != "clicked")
    model = Recommender("lr", label="clicked", ignore=[left_out], epochs=1).fit(visits)
    assert left_out not in model.spec_.columns
    assert set(model.spec_.columns) == set(visits.columns) - {"clicked", left_out}


def test_errors_name_the_rows_of_the_given_table(visits):
    numeric = next(f.name for f in infer_spec(visits, label="clicked").fields if f.kind == "numeric")
    bad = visits.astype({numeric: float})
    bad.loc[7, numeric] = float("inf")
    with pytest.raises(DataError, match=f"column '{numeric}', row 7: found inf"):
        Recommender("lr", label="clicked", epochs=1).fit(bad)
    with pytest.raises(DataError, match=f"column '{numeric}', row 7: found inf"):
        Recommender("lr", label="clicked", epochs=1).fit(bad.iloc[5:])  # the index goes along
