"""Attention maps against attention computed by hand; importance against brute force and scikit-learn."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import spearmanr
from sklearn.inspection import permutation_importance as sklearn_importance
from sklearn.metrics import roc_auc_score

from manyheads.core.errors import ArgumentError, DataError, UnknownNameError
from manyheads.lab.cli.command import run_commands
from manyheads.recsys.commands import commands
from manyheads.recsys.explain.explanation import explain, rank_correlation, upper
from manyheads.recsys.explain.maps import WITH_MAPS, attention_maps, has_maps
from manyheads.recsys.explain.permutation import Importance, permutation_importance, permuted
from manyheads.recsys.features.fitted_rows import fitted_among
from manyheads.recsys.features.layout import Layout, Rows
from manyheads.recsys.models import MODELS, config_of
from manyheads.recsys.training.recommender import Recommender

LAYOUT = Layout(("a", "b", "tags"), (9, 5, 7), (1, 1, 2), ("x", "y"), ("click", "buy"))
FIELDS = ("a", "b", "tags", "x", "y")


def manyheads(*arguments):
    return run_commands("manyheads recsys", "", commands, [str(a) for a in arguments])


@pytest.fixture
def rows():
    draw = torch.Generator().manual_seed(3)
    ids = torch.stack([torch.randint(high, (300,), generator=draw) for high in (9, 5, 7, 7)], 1).int()
    ids[::3, 3] = -1
    numbers = torch.randn(300, 2, generator=draw)
    numbers[::7, 0] = float("nan")
    return Rows(ids, numbers, (torch.rand(300, 2, generator=draw) > 0.4).float())


def network(name, **settings):
    torch.manual_seed(1)
    return config_of(name, {"dim": 8, "init_sd": 1.0, **settings}).make(LAYOUT).eval()


def softmax_of(q, k, heads, scale):
    """Return the mean attention over rows and heads, (Q, T), by loops over rows, heads, queries and keys."""
    width = q.shape[-1] // heads
    total = np.zeros((q.shape[1], k.shape[1]))
    for b, h in itertools.product(range(len(q)), range(heads)):
        part = slice(h * width, (h + 1) * width)
        for i in range(q.shape[1]):
            scores = np.array([scale * float(q[b, i, part] @ k[b, j, part]) for j in range(k.shape[1])])
            e = np.exp(scores - scores.max())
            total[i] += e / e.sum()
    return total / (len(q) * heads)


@torch.no_grad()
@pytest.mark.parametrize("name", ["vanilla", "heterogeneous", "hiformer", "hiformer-lowrank", "autoint", "autoint+"])
def test_a_map_is_the_mean_of_the_attention_weights(name, rows):
    """Queries and keys are recorded inside the network; the rest is loops."""
    settings = {"attention_dim": 8, "heads": 2} if "autoint" in name else {}
    made = network(name, layers=2, **settings)
    few = Rows(rows.ids[:6], rows.numbers[:6], rows.labels[:6])
    caught = []

    def catch(module, inputs, output):
        caught.append(output)

    for layer in made.layers:
        if "autoint" in name or name == "vanilla":
            part = layer if "autoint" in name else layer.layer
            part.query.register_forward_hook(catch)
            part.key.register_forward_hook(catch)
        else:
            plain = layer.project
            layer.project = lambda x, plain=plain: caught.extend(plain(x)[:2]) or plain(x)
    batch = few.batch(torch.arange(6))
    made(batch.ids, batch.numbers)
    scale = 1.0 if name == "autoint" else 4**-0.5
    expected = [softmax_of(q, k, 2, scale) for q, k in zip(caught[::2], caught[1::2], strict=True)]
    found = attention_maps(made, LAYOUT, few, size=4)
    assert len(found.layers) == len(expected) == 2
    for ours, theirs in zip(found.layers, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("name", ["vanilla", "heterogeneous", "hiformer"])
def test_a_pruned_layer_has_the_task_rows_of_the_full_layer(name, rows):
    whole, pruned = network(name, prune=False), network(name)
    weights = whole.state_dict()
    for key, value in pruned.state_dict().items():
        # parameters of a field each: those of the last two, the tasks; a composite query has a block a field
        weights[key] = weights[key][-value.shape[0] :] if value.shape != weights[key].shape else weights[key]
    pruned.load_state_dict(weights)
    full, cut = attention_maps(whole, LAYOUT, rows), attention_maps(pruned, LAYOUT, rows)
    assert [len(layer) for layer in cut.layers] == [7, 2]
    assert len(full.full) == 2
    assert len(cut.full) == 1
    np.testing.assert_allclose(cut.layers[1], full.layers[1][-2:], atol=1e-6)
    np.testing.assert_allclose(cut.mean[:5], full.layers[0][:5], atol=1e-6)
    np.testing.assert_allclose(cut.mean[5:], full.mean[5:], atol=1e-6)
    np.testing.assert_allclose(full.mean, (full.layers[0] + full.layers[1]) / 2)
    assert cut.title == "attention, mean over rows, heads and layers (fields' rows: layer 1)"
    assert full.title == "attention, mean over rows, heads and layers"
    np.testing.assert_allclose(full.mean.sum(1), 1.0, atol=1e-6)
    assert cut.tokens == (*FIELDS, "task click", "task buy")


def test_pairs_average_both_directions_and_importance_is_the_attention_of_the_tasks(rows):
    found = attention_maps(network("hiformer"), LAYOUT, rows)
    first, last = found.layers
    for i, j in itertools.product(range(5), range(5)):
        assert found.pairs()[i, j] == pytest.approx((first[i, j] + first[j, i]) / 2)
    for j in range(5):
        assert found.importance()[j] == pytest.approx((first[5, j] + first[6, j] + last[0, j] + last[1, j]) / 4)
    without = attention_maps(network("autoint", attention_dim=8, layers=2), LAYOUT, rows)
    assert without.tokens == FIELDS
    for j in range(5):
        assert without.importance()[j] == pytest.approx(np.mean([layer[:, j] for layer in without.layers]))


def test_a_single_pruned_layer_gives_fields_but_no_pairs(rows):
    found = attention_maps(network("hiformer", layers=1), LAYOUT, rows)
    np.testing.assert_array_equal(found.mean, found.layers[0])
    assert found.mean.shape == (2, 7)
    assert found.pairs() is None
    assert found.importance().shape == (5,)


def test_mixed_numeric_fields_have_numbered_tokens(rows):
    found = attention_maps(network("vanilla", numeric_tokens=2), LAYOUT, rows)
    assert found.tokens[:5] == ("a", "b", "tags", "numbers 1", "numbers 2")


def test_the_models_with_maps_are_those_in_the_list(rows):
    assert [name for name in MODELS if has_maps(config_of(name).make(LAYOUT))] == list(WITH_MAPS)
    with pytest.raises(ArgumentError, match=r"FactorizationMachine: found a model without attention.*vanilla, vanilla"):
        attention_maps(network("fm"), LAYOUT, rows)


@pytest.mark.parametrize("field", range(5))
def test_permuting_a_field_reorders_its_values_only(field, rows):
    order = torch.randperm(300, generator=torch.Generator().manual_seed(5))
    changed = permuted(LAYOUT, rows, {field: order})
    columns = [(changed.ids[:, 0], rows.ids[:, 0]), (changed.ids[:, 1], rows.ids[:, 1])]
    columns += [(changed.ids[:, 2:], rows.ids[:, 2:])]
    columns += [(changed.numbers[:, i].nan_to_num(9), rows.numbers[:, i].nan_to_num(9)) for i in range(2)]
    for index, (new, old) in enumerate(columns):
        assert torch.equal(new, old[order] if index == field else old)
        assert torch.equal(new, old) != (index == field)


class Product(torch.nn.Module):
    """logit = u[a] v[b] + w x: one interaction, the rest is additive."""

    def __init__(self):
        super().__init__()
        self.u, self.v = torch.nn.Parameter(torch.linspace(-1, 2, 9)), torch.nn.Parameter(torch.linspace(2, -3, 5))

    def forward(self, ids, numbers):
        product = self.u[ids[:, 0]] * self.v[ids[:, 1]] + 0.7 * numbers[:, 0].nan_to_num(0) + 0.1 * ids[:, 2]
        return product[:, None].expand(-1, 2)


def test_the_mixed_logit_is_the_closed_form_for_a_product_and_0_for_a_sum(rows):
    found = permutation_importance(Product(), LAYOUT, rows, repeats=1, seed=4)
    draw = np.random.default_rng(4)
    first, second = draw.permutation(300), draw.permutation(300)
    u, v = np.linspace(-1, 2, 9)[rows.ids[:, 0]], np.linspace(2, -3, 5)[rows.ids[:, 1]]
    expected = np.sqrt(np.mean(((u - u[first]) * (v - v[second])) ** 2))
    assert found.mixed[0, 1] == pytest.approx(expected, rel=1e-5)
    others = found.mixed.copy()
    others[0, 1] = others[1, 0] = 0
    assert others.max() < 1e-6


@pytest.mark.parametrize("repeats", [1, 3])
def test_importance_equals_brute_force(repeats, rows):
    model = network("hiformer+", tower=(8,))
    found = permutation_importance(model, LAYOUT, rows, task=1, repeats=repeats, seed=2)
    draw, labels = np.random.default_rng(2), rows.labels[:, 1].numpy()

    @torch.no_grad()
    def area(permutations):
        ids, numbers = rows.ids.numpy().copy(), rows.numbers.numpy().copy()
        for field, order in permutations.items():
            target, column = {0: (ids, [0]), 1: (ids, [1]), 2: (ids, [2, 3]), 3: (numbers, [0]), 4: (numbers, [1])}[
                field
            ]
            target[:, column] = target[order][:, column]
        return roc_auc_score(labels, model(torch.from_numpy(ids).long(), torch.from_numpy(numbers))[:, 1])

    losses = []
    for _ in range(repeats):
        orders = [draw.permutation(300) for _ in range(5)]
        single = [area({}) - area({i: orders[i]}) for i in range(5)]
        joint = area({}) - area({1: orders[1], 3: orders[3]})
        losses.append((*single, joint - single[1] - single[3]))
    np.testing.assert_allclose(found.single, np.mean(losses, 0)[:5], atol=1e-12)
    assert found.interaction[1, 3] == pytest.approx(np.mean(losses, 0)[5], abs=1e-12)
    assert found.interaction[3, 1] == found.interaction[1, 3]
    assert found.auc == pytest.approx(area({}))
    if repeats > 1:
        np.testing.assert_allclose(found.single_sd, np.std(losses, 0, ddof=1)[:5], atol=1e-12)


@pytest.fixture(scope="module")
def frame():
    """Two fields act by their product, one is additive, one has no effect."""
    rng = np.random.default_rng(7)
    rows = 3000
    left, right = rng.integers(0, 4, rows), rng.integers(0, 4, rows)
    size, noise = rng.normal(size=rows), rng.choice(list("pqr"), rows)
    logit = 1.5 * np.array([-1, 1, 1, -1])[left] * np.array([1, -1, 1, -1])[right] + size
    clicked = (rng.random(rows) < 1 / (1 + np.exp(-logit))).astype(int)
    return pd.DataFrame({"left": left, "right": right, "size": size, "noise": noise, "clicked": clicked})


@pytest.fixture(scope="module")
def fitted(frame):
    settings = {"dim": 8, "init_sd": 0.1}
    model = Recommender("heterogeneous", label="clicked", settings=settings, epochs=12, batch_size=128, l2=0.0)
    return model.fit(frame.iloc[:2000])


@pytest.fixture(scope="module")
def saved(fitted, tmp_path_factory):
    folder = tmp_path_factory.mktemp("explained")
    fitted.save(folder / "model")
    return folder / "model"


def test_single_importance_agrees_with_scikit_learn(frame, fitted):
    held = frame.iloc[2000:]
    theirs = sklearn_importance(
        fitted, held.drop(columns="clicked"), held["clicked"], scoring="roc_auc", n_repeats=20, random_state=0
    )
    ours = explain(fitted, held, repeats=20, pairs=False).importance
    order = [ours.fields.index(name) for name in ("left", "right", "size", "noise")]
    error = np.hypot(theirs.importances_std, ours.single_sd[order]) / np.sqrt(20)
    assert (np.abs(theirs.importances_mean - ours.single[order]) < 4 * error + 1e-9).all()


def test_permutations_find_the_interacting_pair(frame, fitted):
    found = explain(fitted, frame.iloc[2000:])
    assert {found.pairs()[0][0], found.pairs()[0][1]} == {"left", "right"}
    assert found.pairs()[0][3] > 3 * found.pairs()[1][3]
    # both lose the product: twice alone, once together
    i, j = (found.importance.fields.index(name) for name in ("left", "right"))
    assert found.importance.interaction[i, j] < -0.8 * min(found.importance.single[[i, j]])


def test_a_logistic_regression_has_no_interactions(frame):
    model = Recommender("lr", label="clicked", epochs=3).fit(frame.iloc[:2000])
    found = explain(model, frame.iloc[2000:])
    assert found.importance.mixed.max() < 1e-5
    assert found.maps is None
    assert found.correlations() == {}
    assert "LogisticRegression has no attention to draw; these have maps: autoint" in found.without


def test_rank_correlations_equal_scipy(frame, fitted):
    a, b = np.array([3.0, 1.0, 1.0, 2.0, 9.0]), np.array([1.0, 2.0, 0.0, 2.0, 8.0])
    assert rank_correlation(a, b) == pytest.approx(spearmanr(a, b).statistic)
    assert rank_correlation(a, np.ones(5)) is None
    found = explain(fitted, frame.iloc[2000:], repeats=1)
    pairs = spearmanr(upper(found.maps.pairs()), upper(found.importance.mixed)).statistic
    assert found.correlations()["pairs, with mixed logit"] == pytest.approx(pairs)
    fields = spearmanr(found.maps.importance(), found.importance.single).statistic
    assert found.correlations()["fields, with AUC lost"] == pytest.approx(fields)


def test_at_most_the_given_number_of_labelled_rows_is_used(frame, fitted):
    held = frame.iloc[2000:].astype({"clicked": "Int64"})
    held.loc[held.index[:300], "clicked"] = pd.NA
    assert explain(fitted, held, pairs=False).importance.rows == 700
    assert explain(fitted, held, pairs=False, rows=200).importance.rows == 200


def test_each_of_several_tasks_is_explained(frame):
    two = frame.assign(bought=(frame["size"] > 0).astype(int))
    model = Recommender("vanilla", label=["clicked", "bought"], settings={"dim": 4, "positions": True}, epochs=8).fit(
        two
    )
    found = explain(model, two, task="bought", pairs=False)
    assert found.importance.fields[int(found.importance.single.argmax())] == "size"
    with pytest.raises(UnknownNameError, match="unknown label 'bougt': did you mean 'bought'"):
        explain(model, two, task="bougt")


def test_the_command_gives_matrices_pictures_and_a_page(frame, saved, tmp_path, capsys):
    frame.iloc[2000:].to_csv(tmp_path / "rows.csv", index=False)
    for name in ("map.png", "map.svg", "map.html"):
        arguments = ("explain", saved, "--data", tmp_path / "rows.csv", "--out", tmp_path / name, "--repeats", 1)
        assert manyheads(*arguments, "--json") == 0
        document = json.loads(capsys.readouterr().out)
    assert np.array(document["attention"]["mean"]).shape == (5, 5)
    assert np.array(document["mixed_logit"]).shape == (4, 4)
    assert document["attention"]["tokens"][-1] == "task clicked"
    assert (tmp_path / "map.png").read_bytes()[:4] == b"\x89PNG"
    assert "noise" in (tmp_path / "map.svg").read_text() or (tmp_path / "map.svg").stat().st_size > 5000
    page = (tmp_path / "map.html").read_text()
    assert "rank correlation" in page
    assert "<script" not in page
    assert manyheads("explain", saved, "--data", tmp_path / "rows.csv", "--repeats", 1) == 0
    said = capsys.readouterr().out
    assert "attention against permutation" in said
    assert "left, right" in said or "right, left" in said


def test_the_command_explains_a_seed_of_a_run(frame, tmp_path, capsys):
    from manyheads.lab.training.experiment import Budget, Experiment
    from manyheads.lab.training.run import run
    from manyheads.recsys.datasets.splits import Table
    from manyheads.recsys.training.objective import LogLoss

    frame.to_csv(tmp_path / "all.csv", index=False)
    data = Table(str(tmp_path / "all.csv"), ("clicked",))
    model = config_of("autoint", {"layers": 1, "attention_dim": 8})
    run(Experiment("e", data, model, LogLoss(), budget=Budget(epochs=1, batch_size=256)), root=tmp_path, seeds=[4])
    (folder,) = tmp_path.glob("e/*/seed-4")
    assert manyheads("explain", folder, "--data", tmp_path / "all.csv", "--rows", 300, "--json") == 0
    assert len(json.loads(capsys.readouterr().out)["attention"]["layers"]) == 1
    # the folder above is no model, and the message names the one that is
    assert manyheads("explain", tmp_path / "e", "--data", tmp_path / "all.csv") == 2
    assert "holds no model.safetensors: name" in capsys.readouterr().err


def test_bad_requests_for_explanations_are_refused(frame, fitted):
    held = frame.iloc[2000:]
    for change, error, says in (
        ({"frame": held.drop(columns="clicked")}, DataError, "column 'clicked' is missing"),
        ({"frame": held.drop(columns="size")}, DataError, "column 'size' is missing"),
        ({"frame": held[held["clicked"] == 1]}, DataError, "label 'clicked': found one class only in"),
        ({"frame": held.assign(clicked=None)}, DataError, "label 'clicked': found no value in 1000 rows"),
        (
            {"frame": held.assign(clicked=held["clicked"] + 1)},
            DataError,
            r"label 'clicked', row 2\d\d\d: found 2, expected 0 or 1",
        ),
        ({"frame": held.iloc[:0]}, DataError, "found no rows"),
        ({"rows": 1}, ArgumentError, "rows: found 1, expected 2 or more"),
        ({"repeats": 0}, ArgumentError, "repeats: found 0, expected 1 or more"),
    ):
        with pytest.raises(error, match=says):
            explain(fitted, **{"frame": held, **change})


def test_the_command_refuses_in_one_line(frame, saved, tmp_path, capsys):
    frame.to_csv(tmp_path / "rows.csv", index=False)
    Recommender("lr", label="clicked", epochs=1).fit(frame).save(tmp_path / "lr")
    data = ("--data", tmp_path / "rows.csv")
    for arguments, says in (
        ((saved, *data, "--out", "map.pdf"), "out: found map.pdf, expected a name that ends in .png or .svg or .html"),
        ((tmp_path / "lr", *data, "--out", "map.png"), "picture of LogisticRegression, which has no attention to draw"),
        ((saved, *data, "--label", "sold"), "unknown label 'sold'"),
        ((tmp_path / "none", *data), "holds no model.safetensors"),
        ((saved, "--data", tmp_path / "none.csv"), "none.csv: no such file"),
    ):
        assert manyheads("explain", *arguments) == 2
        said = capsys.readouterr().err
        assert says in said
        assert said.count("\n") == 1
    # but a page has permutation importance of every model
    assert manyheads("explain", tmp_path / "lr", *data, "--out", tmp_path / "lr.html", "--repeats", 1) == 0
    assert "no attention to draw" in (tmp_path / "lr.html").read_text()


def test_a_single_repeat_has_no_deviation():
    one = Importance(("a",), 0.7, np.array([0.1234]), np.array([0.0]), None, None, 10, 1)
    assert one.text(0) == "0.1234"
    assert replace(one, single_sd=np.array([0.01]), repeats=3).text(0) == "0.1234 ± 0.0100"


def test_the_attention_column_is_the_task_row_of_the_map(rows):
    for layers in (1, 2, 3):
        found = attention_maps(network("hiformer", layers=layers), LAYOUT, rows)
        expected = np.mean([layer[-2:] for layer in found.layers], (0, 1))[:5]
        np.testing.assert_allclose(found.mean[-2:, :5].mean(0), expected)
        np.testing.assert_allclose(found.importance(), expected)


def test_a_map_of_the_tasks_rows_is_drawn_in_square_cells(rows):
    from manyheads.recsys.explain.plots import heat_maps

    found = attention_maps(network("hiformer", layers=1), LAYOUT, rows)
    axes = heat_maps([(found.mean, found.tokens, found.title, "")]).axes[0]
    assert axes.get_aspect() == 1.0
    assert [label.get_text() for label in axes.get_yticklabels()] == ["task click", "task buy"]


def test_equal_rows_count_as_fitted_as_often_as_they_were_fitted():
    fitted, rows = np.array([7, 3, 7]), np.array([7, 1, 7, 3, 7, 3, 9])
    assert fitted_among(rows, fitted).tolist() == [True, False, True, True, False, False, False]


def test_fitted_rows_are_left_out_and_counted(frame, fitted, saved):
    for model in (fitted, Recommender.load(saved)):
        train = fitted._parts(frame["clicked"].iloc[:2000].to_numpy())[0]
        found = explain(model, frame, pairs=False, repeats=1, rows=5000)
        assert (found.importance.rows, found.fitted) == (3000 - len(train), 0)
        assert found.rows_used == f"{3000 - len(train):,} rows that were not fitted"
        every = explain(model, frame, pairs=False, repeats=1, rows=5000, which="all")
        assert every.rows_used == f"3,000 rows, of which {len(train):,} were fitted"
        known = explain(model, frame.iloc[train], pairs=False, repeats=1)
        assert known.fitted == known.importance.rows == len(train)
        assert "all fitted" in known.rows_used


def test_the_fitted_rows_of_a_run_are_unknown(frame, fitted):
    from sklearn.base import clone

    other = clone(fitted)
    other.set_fitted(
        fitted.spec_, fitted.encoder_, fitted.labels_, fitted.network_, fitted.config_, fitted.calibration_
    )
    assert "not known" in explain(other, frame, pairs=False, repeats=1).rows_used
