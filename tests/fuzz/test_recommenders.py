"""Some of the odd tables and bodies for recommenders; a longer run takes other seeds."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.fuzz import http_bodies, recommender_tables
from tests.recsys.served import shop_model, shop_visits


@pytest.mark.parametrize("first", range(0, 60, 20))
def test_odd_tables_are_encoded_row_by_row_or_refused_in_one_line(first):
    outcomes = Counter(
        recommender_tables.check(recommender_tables.make(seed)).split(":")[0] for seed in range(first, first + 20)
    )
    assert outcomes["fitted"] >= 3


def test_odd_bodies_are_scored_as_the_ranker_does_or_refused_in_one_line(tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("fastapi")
    httpx = pytest.importorskip("httpx")
    import asyncio

    from manyheads.recsys.serving.app import make_app
    from manyheads.recsys.serving.export import export
    from manyheads.recsys.serving.load import as_json
    from manyheads.recsys.serving.ranker import Ranker

    export(shop_model(), tmp_path)
    ranker = Ranker.load(tmp_path)
    rows = as_json(shop_visits().drop(columns="bought").head(50))

    async def all_of_them():
        transport = httpx.ASGITransport(make_app(ranker, max_bytes=200_000), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            statuses = Counter()
            for seed in range(60):
                body, headers = http_bodies.make(seed, rows)
                answer = await client.post("/score", content=body, headers=headers)
                http_bodies.check(answer.status_code, answer.content, body, ranker)
                statuses[answer.status_code] += 1
            return statuses

    statuses = asyncio.run(all_of_them())
    assert statuses[200] >= 5
    assert statuses[422] >= 10
