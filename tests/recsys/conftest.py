"""A small table with every feature type."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest


@pytest.fixture
def shop():
    """400 visits: text, ids, a number with gaps, multi-valued cells, times, and the label ``bought``."""
    rng = np.random.default_rng(0)
    rows = 400
    device = rng.choice(["phone", "tablet", "desktop"], rows)
    item = rng.integers(1000, 1040, rows)
    price = np.exp(rng.normal(3, 1.2, rows))
    price[::17] = np.nan
    tags = [
        "|".join(rng.choice(["new", "sale", "red", "blue"], rng.integers(1, 4), replace=False)) for _ in range(rows)
    ]
    at = pd.Timestamp("2026-01-01") + pd.to_timedelta(rng.integers(0, 60 * 24 * 90, rows), unit="min")
    logit = 1.5 * (device == "phone") + 0.15 * (item - 1020) - 0.5
    bought = (rng.random(rows) < 1 / (1 + np.exp(-logit))).astype(int)
    age = rng.normal(40, 9, rows)
    columns = {"device": device, "item_id": item, "price": price, "tags": tags, "at": at, "age": age, "bought": bought}
    return pd.DataFrame(columns)
