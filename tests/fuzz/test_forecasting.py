"""Some of the odd tables for forecasting; a longer run takes other seeds."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.fuzz import forecasting_tables


@pytest.mark.parametrize("first", range(0, 300, 100))
def test_odd_tables_are_read_as_they_are_written_or_refused_in_one_line(first):
    outcomes = Counter(
        forecasting_tables.check(forecasting_tables.odd_table(seed)).split(":")[0] for seed in range(first, first + 100)
    )
    assert outcomes["read"] >= 40
    assert outcomes["refused"] >= 20
