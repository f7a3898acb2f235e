"""Metrics against scikit-learn or brute force, and calibration."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as sk
from sklearn.isotonic import IsotonicRegression

from manyheads.core.errors import ArgumentError, DataError, ManyheadsError
from manyheads.recsys.training.calibration import Calibration, calibrate, chance_error, sigmoid, targets, temperature_of
from manyheads.recsys.training.metrics import all_metrics, auc, calibration_bins, ece, grouped_auc, log_loss, ndcg


@pytest.fixture(params=[None, 1], ids=["distinct", "with ties"])
def scored(request):
    rng = np.random.default_rng(3)
    scores = rng.random(500)
    if request.param is not None:
        scores = scores.round(request.param)
    return (rng.random(500) < scores).astype(int), scores, rng.integers(0, 25, 500)


def test_auc_equals_scikit_learn(scored):
    labels, scores, _ = scored
    assert auc(labels, scores) == pytest.approx(sk.roc_auc_score(labels, scores), abs=1e-12)


def test_auc_is_the_share_of_pairs_in_order(scored):
    labels, scores, _ = scored
    gaps = scores[labels == 1][:, None] - scores[labels == 0][None]
    assert auc(labels, scores) == pytest.approx(((gaps > 0) + 0.5 * (gaps == 0)).mean(), abs=1e-12)


def test_log_loss_equals_scikit_learn(scored):
    labels, scores, _ = scored
    kept = np.clip(scores, 1e-15, 1 - 1e-15)
    assert log_loss(labels, scores) == pytest.approx(sk.log_loss(labels, kept), rel=1e-9)


def test_grouped_auc_is_the_weighted_mean_over_groups_with_both_classes(scored):
    labels, scores, groups = scored
    labels = np.where(groups == 4, 1, labels)  # one group without negatives is left out
    total = weight = 0
    for group in set(groups.tolist()):
        rows = groups == group
        if len(set(labels[rows])) == 2:
            total += sk.roc_auc_score(labels[rows], scores[rows]) * rows.sum()
            weight += rows.sum()
    assert grouped_auc(labels, scores, groups) == pytest.approx(total / weight, abs=1e-12)


def by_hand(labels, scores, groups):
    """Return GAUC and NDCG@10 by Python loops over the groups; a missing group is None."""
    rows = {name: [i for i, g in enumerate(groups) if g == name] for name in groups if name is not None}
    areas, sizes, gains = [], [], []
    for own in rows.values():
        pairs = [(scores[p], scores[n]) for p in own for n in own if labels[p] and not labels[n]]
        if pairs:
            areas.append(sum((p > n) + 0.5 * (p == n) for p, n in pairs) / len(pairs))
            sizes.append(len(own))
        if any(labels[i] for i in own):
            gains.append(sk.ndcg_score(labels[None, own], scores[None, own], k=10) if len(own) > 1 else 1.0)
    return np.dot(areas, sizes) / sum(sizes), np.mean(gains)


GROUPS = {
    "text": lambda g: [f"user {n}" for n in g],
    "text with gaps": lambda g: [None if n == 3 else f"user {n}" for n in g],
    "numbers with gaps": lambda g: np.where(g == 3, np.nan, g.astype(float)),
    "minus one": lambda g: g - 1,
    "a column of text": lambda g: pd.Series(g, index=np.arange(len(g))[::-1]).astype(str),
    "a column with gaps": lambda g: pd.Series(g).astype("Int64").mask(g == 3),
    "categories": lambda g: pd.Categorical(g),
    "times": lambda g: pd.Timestamp("2026-01-01") + pd.to_timedelta(g, "D"),
}


@pytest.mark.parametrize("kind", GROUPS)
def test_groups_of_any_type_give_the_metrics_computed_by_hand(scored, kind):
    labels, scores, numbers = scored
    labels = np.where(numbers == 4, 1, np.where(numbers == 5, 0, labels))  # groups of one class
    groups = GROUPS[kind](numbers)
    plain = [None if "gaps" in kind and n == 3 else n for n in numbers.tolist()]
    gauc, gain = by_hand(labels, scores, plain)
    assert grouped_auc(labels, scores, groups) == pytest.approx(gauc, abs=1e-12)
    assert ndcg(labels, scores, groups) == pytest.approx(gain, abs=1e-12)


def test_grouped_metrics_are_left_out_if_no_group_has_both_classes():
    found = all_metrics(np.array([1, 1, 0]), np.array([0.1, 0.2, 0.3]), np.array(["a", "a", "b"]))
    assert "gauc" not in found
    missing = all_metrics(np.array([1, 0]), np.array([0.1, 0.2]), np.array([None, None]))
    assert set(missing) == {"auc", "log_loss", "ece"}


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: grouped_auc([0, 1], [0.1, 0.2], ["a"]), r"groups of shape \(1,\), expected one for each of 2 rows"),
        (lambda: auc(["no", "yes"], [0.1, 0.2]), "values that are no numbers"),
        (lambda: auc(pd.array([0, None], "Int64"), [0.1, 0.2]), "labels other than 0 and 1"),
        (lambda: auc([[0], [1]], [[0.1], [0.2]]), "expected two equal vectors"),
        (lambda: log_loss([0, 1], [-2.0, 3.0]), "scores outside 0 to 1, expected probabilities"),
        (lambda: ece([0, 1], [0.5, 1.5]), "scores outside 0 to 1, expected probabilities"),
        (lambda: ece([0, 1], [0.5, 0.5], bins=0), "bins: found 0"),
        (lambda: ndcg([0, 1], [0.5, 0.5], [1, 1], k=0), "k: found 0"),
    ],
)
def test_input_without_a_metric_is_refused_in_one_line(call, says):
    with pytest.raises(ManyheadsError, match=says) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("k", [1, 5, 100])
def test_ndcg_equals_scikit_learn(scored, k):
    labels, scores, groups = scored
    labels = np.where(groups == 4, 0, labels)  # a group without a positive is left out
    wanted = [
        sk.ndcg_score(labels[None, groups == g], scores[None, groups == g], k=k)
        for g in set(groups.tolist())
        if labels[groups == g].any()
    ]
    assert ndcg(labels, scores, groups, k=k) == pytest.approx(np.mean(wanted), abs=1e-12)


def test_ece_is_the_sum_over_bins(scored):
    labels, scores, _ = scored
    total = 0.0
    for b in range(10):
        rows = (scores >= b / 10) & ((scores < (b + 1) / 10) | (b == 9))
        if rows.any():
            total += rows.sum() / len(scores) * abs(scores[rows].mean() - labels[rows].mean())
    assert ece(labels, scores, bins=10) == pytest.approx(total, abs=1e-12)
    assert sum(n for _, _, n in calibration_bins(labels, scores)) == len(scores)


def test_undefined_metrics_are_left_out():
    assert set(all_metrics(np.ones(4), np.full(4, 0.5), np.arange(4))) == {"log_loss", "ece", "ndcg@10"}


@pytest.mark.parametrize(
    ("labels", "scores", "says"),
    [
        ([0, 2], [0.1, 0.2], "other than 0 and 1"),
        ([0, 1], [0.1, np.nan], "NaN or infinite"),
        ([0, 1], [0.1], "two equal vectors"),
        ([], [], "two equal vectors"),
    ],
)
def test_bad_input_of_metrics_is_refused(labels, scores, says):
    with pytest.raises(DataError, match=says):
        auc(np.array(labels), np.array(scores))


@pytest.fixture
def overconfident():
    rng = np.random.default_rng(5)
    logits = rng.normal(0, 1.5, 20000)
    return (rng.random(20000) < sigmoid(logits)).astype(int), 3.0 * logits


def test_a_known_temperature_is_recovered(overconfident):
    labels, logits = overconfident
    assert temperature_of(labels, logits) == pytest.approx(3.0, rel=0.05)


def test_the_temperature_minimises_the_log_loss(overconfident):
    labels, logits = overconfident
    best = temperature_of(labels, logits)
    losses = [log_loss(labels, sigmoid(logits / t)) for t in (best * 0.99, best, best * 1.01)]
    assert losses[1] == min(losses)


@pytest.mark.parametrize("method", ["platt", "temperature", "isotonic"])
def test_calibration_lowers_the_error_on_unseen_rows(overconfident, method):
    labels, logits = overconfident
    fitted = calibrate(labels[:10000], logits[:10000], method)
    assert fitted.ece_before > 0.1 > 0.02 > fitted.ece_after
    assert ece(labels[10000:], fitted(logits[10000:])) < 0.3 * ece(labels[10000:], sigmoid(logits[10000:]))


def test_temperature_keeps_the_order_and_isotonic_never_reverses_it(overconfident):
    labels, logits = overconfident
    order = np.argsort(logits)
    assert (np.diff(calibrate(labels, logits, "temperature")(logits)[order]) >= 0).all()
    assert (np.diff(calibrate(labels, logits, "isotonic")(logits)[order]) >= 0).all()


def test_the_isotonic_curve_is_that_of_scikit_learn_blended_with_platt(overconfident):
    labels, logits = overconfident
    platt = calibrate(labels, logits, "platt")(logits)
    reference = IsotonicRegression().fit(platt, targets(labels)).predict(platt)
    fewer = min(labels.sum(), (1 - labels).sum())
    expected = (50 * platt + fewer * reference) / (50 + fewer)
    np.testing.assert_allclose(calibrate(labels, logits, "isotonic")(logits), expected)


def test_smoothed_targets_are_platts_for_the_rarer_class_and_keep_the_mean():
    labels = np.repeat([1.0, 0.0], [3, 40])
    smoothed = targets(labels)
    np.testing.assert_allclose(smoothed[:3], (3 + 1) / (3 + 2))  # (N+ + 1) / (N+ + 2), Platt 1999
    assert smoothed.mean() == pytest.approx(3 / 43, abs=1e-15)
    np.testing.assert_allclose(targets(1 - labels), 1 - smoothed)


@pytest.mark.parametrize("method", ["platt", "isotonic"])
@pytest.mark.parametrize("positives", [1, 2, 7, 60])
@pytest.mark.parametrize("separable", [False, True])
def test_the_mean_probability_is_the_share_of_positives_and_none_is_certain(method, positives, separable):
    # the derivative by the intercept is the sum of p - t, and the targets keep the mean of the labels
    rng = np.random.default_rng(positives)
    labels = np.repeat([1, 0], [positives, 3000])
    logits = rng.normal(size=labels.size) + 2.0 * labels + (100.0 * labels if separable else 0.0) - 9.0
    found = calibrate(labels, logits, method)(logits)
    assert found.mean() == pytest.approx(labels.mean(), rel=1e-5)
    assert found.min() > 0.0
    assert found.max() < 1.0 - 0.5 / (positives + 2)


def test_known_slope_and_intercept_are_recovered():
    rng = np.random.default_rng(0)
    truth = rng.normal(-3.0, 1.5, 200_000)
    labels = (rng.random(truth.size) < sigmoid(truth)).astype(int)
    found = calibrate(labels, 4.0 * truth + 2.0, "platt")  # truth = (logit - 2) / 4
    assert found.slope == pytest.approx(0.25, rel=0.02)
    assert found.intercept == pytest.approx(-0.5, abs=0.05)


def test_reversed_logits_give_the_share_of_positives():
    labels = np.repeat([1, 0], [20, 60])
    found = calibrate(labels, np.where(labels == 1, -1.0, 1.0), "platt")
    assert found.slope == 0.0
    np.testing.assert_allclose(found(np.array([-5.0, 5.0])), 0.25, rtol=1e-6)


def test_one_class_gives_no_calibration_and_a_warning():
    found = calibrate(np.zeros(30), np.linspace(-1, 1, 30), "platt")
    assert found.method == "none"
    assert found.doubts("bought") == [
        "calibration of 'bought': found 0 positives in 30 validation rows, expected 10 or more of each class: give "
        "more rows, or a larger share of them (validation)"
    ]


def test_a_calibration_error_beyond_chance_gives_a_warning(overconfident):
    labels, logits = overconfident
    assert "found an error (ECE) of 0." in calibrate(labels, logits, "none").doubts("click")[0]
    assert calibrate(labels, logits, "platt").doubts("click") == []


def test_the_chance_error_equals_sampling_labels_from_the_probabilities():
    rng = np.random.default_rng(0)
    p = rng.beta(1, 4, 800)
    drawn = np.mean([ece((rng.random(p.size) < p).astype(int), p) for _ in range(400)])
    assert chance_error(p) == pytest.approx(drawn, rel=0.1)


def test_a_temperature_of_an_earlier_file_is_read_as_a_slope():
    stored = {"method": "temperature", "temperature": 4.0, "x": [], "y": [], "ece_before": 0.1, "ece_after": 0.0}
    assert Calibration.from_dict(stored)(np.array([2.0])) == pytest.approx(sigmoid(np.array([0.5])))


def test_sigmoid_does_not_overflow():
    with np.errstate(over="raise"):
        assert sigmoid(np.array([-1e4, 0, 1e4])).tolist() == [0, 0.5, 1]


def test_an_unknown_method_is_refused():
    with pytest.raises(ArgumentError, match="found 'beta', expected one of none, platt, temperature, isotonic"):
        calibrate(np.array([0, 1]), np.array([0.0, 1.0]), "beta")
