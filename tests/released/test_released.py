"""Files that released versions saved load, and answer as they did then."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from manyheads.forecasting import Forecaster
from manyheads.kws import KeywordSpotter
from manyheads.lab.training.report import Report
from manyheads.recsys import Recommender
from manyheads.recsys.serving.load import as_json
from manyheads.recsys.serving.ranker import Ranker
from tests.kws.spotters import babble
from tests.recsys.served import shop_visits

RELEASES = sorted(path.parent for path in Path(__file__).parent.glob("*/expected.json"))


def forecast(path):
    return Forecaster.load(path).predict().drop(columns=["unique_id", "ds"]).to_numpy(np.float64)


def logits(path):
    return KeywordSpotter.load(path).clip_logits(babble(1.0)[None]).double().numpy()


def probabilities(path):
    return Recommender.load(path).predict_proba(shop_visits().head(5))


def served_probabilities(path):
    rows = as_json(shop_visits().drop(columns="bought").head(5))
    return Ranker.load(path).score_rows(rows).probabilities


ANSWERS = {
    "forecaster": forecast,
    "spotter": logits,
    "recommender": probabilities,
    "served": served_probabilities,
    "report": lambda path: Report.read(path).mean["mse"],
}


def test_there_are_files_of_a_release():
    assert RELEASES


@pytest.mark.parametrize("kind", ANSWERS)
@pytest.mark.parametrize("release", RELEASES, ids=lambda path: path.name)
def test_a_saved_file_answers_as_when_it_was_saved(release, kind):
    stored = json.loads((release / "expected.json").read_text())[kind]
    found = np.asarray(ANSWERS[kind](release / stored["path"]))
    expected = np.asarray(stored["answer"])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
