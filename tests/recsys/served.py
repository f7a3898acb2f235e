"""One fitted model, shared by all tests of serving."""

from __future__ import annotations

from functools import lru_cache

import pandas as pd

from manyheads.recsys.training.recommender import Recommender
from tests.recsys.conftest import shop

SETTINGS = {"dim": 8, "layers": 2, "tower": (16,)}


@lru_cache(maxsize=1)
def shop_visits() -> pd.DataFrame:
    return shop.__wrapped__()


@lru_cache(maxsize=1)
def shop_model() -> Recommender:
    return Recommender("hiformer+", label="bought", epochs=3, settings=SETTINGS).fit(shop_visits())
