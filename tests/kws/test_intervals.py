"""Confidence intervals against scipy, brute force and closed forms."""

from __future__ import annotations

import math

import pytest
from scipy.stats import binomtest, poisson

from manyheads.kws.evaluation.confidence import accuracy_text, poisson_rate, rate_text, share_text, wilson


@pytest.mark.parametrize(("right", "count"), [(0, 1), (1, 1), (9, 9), (0, 9), (5, 9), (177, 180), (180, 180)])
def test_share_interval_equals_wilson(right, count):
    expected = binomtest(right, count).proportion_ci(method="wilson")
    assert wilson(right, count) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_interval_of_nine_of_nine_is_wide():
    assert accuracy_text(9, 9) == "100.0% of 9 clips (95 %: 70.1 to 100.0)"
    assert share_text(0, 9) == "0 of 9 (95 %: 0.0 to 29.9 %)"


def test_interval_of_no_clips_is_zero_to_one():
    assert wilson(0, 0) == (0, 1)
    assert accuracy_text(0, 0) == "no clips"


def test_bound_after_no_event_is_the_exponential_one():
    low, high = poisson_rate(0, 0.5)
    assert (low, high) == (0, pytest.approx(math.log(20) / 0.5))


@pytest.mark.parametrize("events", [1, 2, 7, 40])
def test_rate_interval_leaves_2_5_percent_on_either_side(events):
    low, high = poisson_rate(events, 2.0)
    assert poisson.cdf(events, 2 * high) == pytest.approx(0.025)
    assert poisson.sf(events - 1, 2 * low) == pytest.approx(0.025)


def test_rate_text_is_no_finer_than_the_audio():
    assert rate_text(0, 5.64 / 60) == "0 in 5.6 minutes: below 31.9 an hour (95 %)"
    assert rate_text(7, 5.64 / 60) == "7 in 5.6 minutes: 74.5 an hour (95 %: 29.9 to 153)"
