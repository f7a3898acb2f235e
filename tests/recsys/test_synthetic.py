"""The synthetic data set with known feature interactions."""

import itertools

import numpy as np
import pytest
import torch

from manyheads.core.errors import ArgumentError
from manyheads.recsys.datasets.synthetic import Synthetic, expected_scores
from manyheads.recsys.features.layout import FIRST
from manyheads.recsys.models import config_of
from manyheads.recsys.training.metrics import auc, log_loss

SMALL = Synthetic(fields=4, values=6, width=3, pairs=3, train=400, validation=100, test=300, seed=3)


def all_rows(config):
    return np.array(list(itertools.product(range(config.values), repeat=config.fields)))


def terms(config, rows):
    """Return the terms of the logit, (pairs, N), by loops."""
    truth = config.truth()
    return np.array(
        [
            [truth.latent[row[i]] @ form @ truth.latent[row[j]] for row in rows]
            for (i, j, _), form in zip(truth.pairs, truth.forms, strict=True)
        ]
    )


def test_strengths_are_the_standard_deviations_of_the_terms():
    found = terms(SMALL, all_rows(SMALL))
    np.testing.assert_allclose(found.std(1), [pair.strength for pair in SMALL.true_pairs])
    np.testing.assert_allclose(found.sum(0).std(), SMALL.scale)


def test_no_field_has_a_main_effect():
    rows = all_rows(SMALL)
    logits = terms(SMALL, rows).sum(0)
    for field in range(SMALL.fields):
        means = [logits[rows[:, field] == value].mean() for value in range(SMALL.values)]
        np.testing.assert_allclose(means, 0.0, atol=1e-12)


def test_logits_of_a_part_are_the_sum_of_the_terms():
    frame, logits = SMALL.part(2)
    rows = frame[list(SMALL.names)].to_numpy()
    np.testing.assert_allclose(logits, SMALL.offset + terms(SMALL, rows).sum(0))


def test_interactions_are_exactly_the_pairs():
    found = SMALL.interactions()
    assert (found == found.T).all()
    assert (np.diag(found) == 0).all()
    assert np.count_nonzero(found) == 2 * SMALL.pairs
    for i, j, strength in SMALL.true_pairs:
        assert found[i, j] == strength


def test_expected_scores_equal_the_mean_over_sampled_labels():
    rng = np.random.default_rng(0)
    logits = np.concatenate([rng.normal(0, 2, 120), np.zeros(15), np.ones(8)])  # with ties
    p = 1 / (1 + np.exp(-logits))
    drawn = [(rng.random(len(p)) < p).astype(int) for _ in range(3000)]
    expected = expected_scores(logits)
    aucs, losses = [auc(d, p) for d in drawn], [log_loss(d, p) for d in drawn]
    assert abs(np.mean(aucs) - expected["auc"]) < 5 * np.std(aucs) / 3000**0.5 + 2e-4
    assert abs(np.mean(losses) - expected["log_loss"]) < 5 * np.std(losses) / 3000**0.5


def test_expected_auc_equals_the_sum_over_all_pairs():
    logits = np.array([-1.0, 0.3, 0.3, 2.0, 0.3, -0.2])
    p = 1 / (1 + np.exp(-logits))
    above = total = 0.0
    for a, b in itertools.permutations(range(len(p)), 2):  # a the negative, b the positive
        weight = (1 - p[a]) * p[b]
        total += weight
        above += weight * (1.0 if p[b] > p[a] else 0.5 if p[b] == p[a] else 0.0)
    assert expected_scores(logits)["auc"] == pytest.approx(above / total, abs=1e-12)


def test_an_id_means_the_same_in_every_field():
    splits = SMALL.open()
    frame, _ = SMALL.part(0)
    np.testing.assert_array_equal(splits.train.ids.numpy(), frame[list(SMALL.names)].to_numpy() + FIRST)
    np.testing.assert_array_equal(splits.train.labels[:, 0].numpy(), frame["label"].to_numpy())
    assert set(splits.facts["layout"].rows) == {SMALL.values + FIRST}


def test_the_seed_determines_the_data_set():
    first, again, other = (Synthetic(train=50, seed=s).part(0)[0] for s in (1, 1, 2))
    assert first.equals(again)
    assert not first.equals(other)
    assert not Synthetic(train=50, test=50).part(0)[0].equals(Synthetic(train=50, test=50).part(2)[0])


def test_with_a_shared_table_vanilla_layers_need_positions_to_tell_fields_apart():
    torch.manual_seed(0)
    layout = SMALL.open().facts["layout"]
    ids, numbers = SMALL.open().train.ids[:64].long(), torch.empty(64, 0)
    settings = {"dim": 8, "init_sd": 0.5, "shared_tables": True}
    bag = config_of("vanilla", settings).make(layout).eval()
    with torch.no_grad():
        torch.testing.assert_close(bag(ids, numbers), bag(ids.flip(1), numbers), atol=1e-6, rtol=1e-6)
        for name, more in (("vanilla", {"positions": True}), ("heterogeneous", {}), ("hiformer", {})):
            model = config_of(name, {**settings, **more}).make(layout).eval()
            if model.positions is not None:
                torch.nn.init.normal_(model.positions)
            assert (model(ids, numbers) - model(ids.flip(1), numbers)).abs().max() > 1e-3


def test_a_shared_table_has_the_size_of_one_vocabulary():
    layout = SMALL.open().facts["layout"]
    tables = config_of("dnn", {"dim": 5, "shared_tables": True}).make(layout).tokens.tables
    assert tables.weight.shape == (SMALL.values + FIRST, 5)
    ids = torch.tensor([[2, 3, 2, 4]])
    torch.testing.assert_close(tables(ids)[0], tables.weight[ids[0]])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"fields": 1}, "fields: found 1, expected 2 or more"),
        ({"fields": 4, "pairs": 7}, "pairs: found 7, expected 1 to 6 with 4 fields"),
        ({"pairs": 0}, "pairs: found 0"),
        ({"values": 1}, "values: found 1, expected 2 or more"),
        ({"scale": 0.0}, "scale: found 0.0, expected more than 0"),
        ({"test": 0}, "test: found 0, expected 1 or more"),
    ],
)
def test_impossible_settings_of_the_data_set_are_refused(settings, said):
    with pytest.raises(ArgumentError, match=said):
        Synthetic(**settings).open()


def test_a_shared_table_for_fields_of_different_sizes_is_refused():
    from manyheads.recsys.features.layout import Layout

    with pytest.raises(ArgumentError, match=r"shared_tables: found fields of \[3, 4\] rows, expected all of one size"):
        config_of("dnn", {"shared_tables": True}).make(Layout(("a", "b"), (3, 4), (1, 1)))
