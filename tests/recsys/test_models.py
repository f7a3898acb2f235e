"""The models: published parameter counts, closed forms, special cases, bad settings."""

from __future__ import annotations

import itertools
import re

import pytest
import torch

from manyheads.core.errors import ArgumentError, UnknownNameError
from manyheads.recsys.features.layout import PADDING, Layout
from manyheads.recsys.models import MODELS, config_of
from manyheads.recsys.models.common import pair_sum
from manyheads.recsys.models.dcn import LowRankMixture
from manyheads.recsys.models.tokens import FieldTokens, NumberMixture, Tables, all_tables

# distinct values of Frappe's training part by field; BARS' older runs add one row a field, its newer ones two
FRAPPE = {
    "user": 954,
    "item": 4082,
    "daytime": 7,
    "weekday": 7,
    "isweekend": 2,
    "homework": 3,
    "cost": 2,
    "weather": 9,
    "country": 80,
    "city": 233,
}


def frappe(extra):
    return Layout(tuple(FRAPPE), tuple(v + extra for v in FRAPPE.values()), (1,) * 10)


def small(tasks=1):
    names = ("a", "b", "tags", "c")
    return Layout(names, (5, 7, 6, 4), (1, 1, 3, 1), ("x", "y"), tuple(f"t{i}" for i in range(tasks)))


def batch(layout, rows=9):
    generator = torch.Generator().manual_seed(1)
    columns = [
        torch.randint(0, size, (rows, width), generator=generator)
        for size, width in zip(layout.rows, layout.widths, strict=True)
    ]
    ids = torch.cat(columns, 1)
    if 3 in layout.widths:
        ids[::2, 3] = PADDING
        ids[::3, 4] = PADDING
    numbers = torch.randn(rows, len(layout.numeric), generator=generator)
    if len(layout.numeric):
        numbers[0, 0] = float("nan")
    return ids, numbers


def count(model):
    return sum(p.numel() for p in model.parameters())


def lively(model):
    """Draw larger weights, so that every part affects the output."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.3 * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    return model


@pytest.mark.parametrize(
    ("name", "settings", "extra", "published"),
    [
        ("deepfm", {}, 1, 423_280),
        ("dcnv2", {}, 1, 458_391),
        ("autoint", {}, 1, 306_051),
        ("autoint+", {}, 1, 622_180),
        ("final-mlp", {"first_context": ("user",), "second_context": ("item",)}, 2, 253_392),
    ],
)
def test_parameter_counts_equal_those_logged_by_bars(name, settings, extra, published):
    assert count(config_of(name, settings).make(frappe(extra))) == published


@pytest.mark.parametrize(
    ("name", "settings", "dense"),
    [
        ("vanilla", {}, 67_201),
        ("heterogeneous", {}, 1_354_817),
        ("hiformer", {}, 21_797_953),
        ("hiformer", {"rank": 256}, 6_478_913),
        ("hiformer", {"rank": 64}, 2_141_249),
        ("hiformer", {"rank": 64, "prune": False}, 2_913_025),
        ("hiformer", {"prune": False}, 26_505_985),
    ],
)
def test_parameter_counts_of_transformers_equal_the_formula(name, settings, dense):
    layout = Layout(tuple(f"f{i}" for i in range(31)), (3,) * 31, (1,) * 31)
    model = config_of(name, {"dim": 64, "heads": 4, **settings}).make(layout)
    assert count(model) - sum(t.weight.numel() for t in all_tables(model)) == dense


def test_embeddings_start_with_the_given_standard_deviation():
    weight = Tables(frappe(2), 10, init_sd=1e-4).weight
    assert weight.std().item() == pytest.approx(1e-4, rel=0.02)


def test_the_fused_table_equals_one_table_per_field():
    layout = small()
    tables = lively(Tables(layout, 3))
    ids, _ = batch(layout)
    own = tables.weight.split(layout.rows)
    for row, found in zip(ids, tables(ids), strict=True):
        expected = [own[0][row[0]], own[1][row[1]], own[2][row[2:5][row[2:5] >= 0]].mean(0), own[3][row[5]]]
        torch.testing.assert_close(found, torch.stack(expected))


def test_a_subset_of_fields_can_have_its_own_tables():
    layout = small()
    tables = lively(Tables(layout, 3, fields=("c", "b")))
    ids, _ = batch(layout)
    assert tables.weight.shape == (4 + 7, 3)
    torch.testing.assert_close(tables(ids)[:, 0], tables.weight[ids[:, 5]])
    torch.testing.assert_close(tables(ids)[:, 1], tables.weight[4 + ids[:, 1]])
    with pytest.raises(UnknownNameError, match="unknown embedded field 'uesr'"):
        Tables(frappe(2), 3, fields=("uesr",))


def test_the_l2_penalty_covers_the_table_or_each_touched_row_once():
    layout = Layout(("a", "b"), (4, 3), (1, 1))
    tables = lively(Tables(layout, 2))
    ids = torch.tensor([[1, 0], [1, 2]])
    torch.testing.assert_close(tables.penalty(None), tables.weight.square().sum() / 2)
    torch.testing.assert_close(tables.penalty(ids), tables.weight[[1, 4, 6]].square().sum() / 2)


def test_padding_touches_no_row():
    tables = lively(Tables(small(), 2))
    ids, _ = batch(small(), 1)
    assert (ids == PADDING).sum() == 2
    tables(ids).sum().backward()
    assert (tables.weight.grad.abs().sum(1) > 0).sum() == 4
    expected = tables.weight[tables.weight.grad.abs().sum(1) > 0].square().sum() / 2
    torch.testing.assert_close(tables.penalty(ids), expected)


def test_a_missing_number_has_its_own_token():
    layout = Layout((), (), (), ("x",))
    tokens = lively(FieldTokens(layout, 4))
    found = tokens(torch.zeros(2, 0, dtype=torch.int64), torch.tensor([[float("nan")], [2.0]]))
    torch.testing.assert_close(found[0, 0], tokens.numbers.missing[0])
    torch.testing.assert_close(found[1, 0], 2 * tokens.numbers.weight[0] + tokens.numbers.bias[0])


def test_numbers_can_be_mixed_into_a_few_tokens():
    tokens = FieldTokens(small(), 4, numeric_tokens=1)
    ids, numbers = batch(small())
    assert isinstance(tokens.numbers, NumberMixture)
    assert tokens(ids, numbers).shape == (9, 5, 4)
    assert tokens.tokens == 5


def test_the_sum_over_pairs_equals_a_loop():
    tokens = torch.randn(4, 6, 3, dtype=torch.float64)
    loop = sum((tokens[:, i] * tokens[:, j]).sum(1) for i, j in itertools.combinations(range(6), 2))
    torch.testing.assert_close(pair_sum(tokens)[:, 0], loop)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("tasks", [1, 2])
def test_every_model_gives_one_logit_per_task_and_a_gradient_for_every_parameter(name, tasks):
    layout = small(tasks)
    model = lively(config_of(name).make(layout))
    ids, numbers = batch(layout, 32)
    logits = model(ids, numbers)
    assert logits.shape == (32, tasks)
    assert logits.isfinite().all()
    (logits * torch.randn_like(logits)).sum().backward()
    idle = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert idle == []
    dead = [n for n, p in model.named_parameters() if p.grad.abs().max() == 0]
    assert [n for n in dead if not n.endswith("key.bias")] == []  # softmax cancels a bias of the keys


@pytest.mark.parametrize("name", MODELS)
def test_a_row_scores_the_same_alone_and_in_a_batch(name):
    layout = small()
    model = lively(config_of(name).make(layout)).eval()
    ids, numbers = batch(layout)
    torch.testing.assert_close(model(ids, numbers)[3:4], model(ids[3:4], numbers[3:4]), rtol=1e-4, atol=1e-4)


def test_autoint_in_slices_has_the_gradients_of_the_whole_batch(monkeypatch):
    from manyheads.recsys.models import autoint

    layout = small()
    model = lively(config_of("autoint", {"layers": 2, "attention_dim": 8, "heads": 2}).make(layout)).double()
    ids, numbers = batch(layout)
    gradients = []
    for rows in (4, len(ids)):  # 4, 4 and 1 of the 9 rows; all at once
        monkeypatch.setattr(autoint, "_ROWS", rows)
        model.zero_grad()
        model(ids, numbers.double()).square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    for sliced, whole in zip(*gradients, strict=True):
        torch.testing.assert_close(sliced, whole, rtol=1e-12, atol=1e-12)


def test_a_factorization_machine_equals_the_textbook_sum():
    layout = Layout(("a", "b", "c"), (4, 5, 6), (1, 1, 1))
    model = lively(config_of("fm").make(layout))
    ids = torch.tensor([[1, 2, 3]])
    rows = [1, 4 + 2, 9 + 3]
    e, w = model.tokens.tables.weight[rows], model.wide.weights.tables.weight[rows]
    expected = model.bias + w.sum() + e[0] @ e[1] + e[0] @ e[2] + e[1] @ e[2]
    torch.testing.assert_close(model(ids, torch.zeros(1, 0))[0], expected)


def test_dlrm_uses_each_pair_once():
    layout = Layout(("a", "b", "c"), (4, 5, 6), (1, 1, 1))
    model = config_of("dlrm").make(layout)
    assert model.pairs.tolist() == [3, 6, 7]  # (1, 0), (2, 0), (2, 1) of three


def test_a_low_rank_cross_layer_equals_the_product_and_equal_experts_equal_one():
    x = torch.randn(5, 6)
    single = lively(LowRankMixture(6, 2, 1))
    torch.testing.assert_close(single(x), x @ (single.up.weight @ single.down.weight).T + single.up.bias)
    mixture = lively(LowRankMixture(6, 2, 3))
    with torch.no_grad():
        mixture.core.copy_(mixture.core[:1].expand(3, -1, -1))
        mixture.down.weight.copy_(mixture.down.weight[:2].repeat(3, 1))
        mixture.up.weight.copy_(mixture.up.weight[:, :2].repeat(1, 3))
    hidden = torch.tanh(torch.tanh(x @ mixture.down.weight[:2].T) @ mixture.core[0].T)
    torch.testing.assert_close(mixture(x), hidden @ mixture.up.weight[:, :2].T + mixture.up.bias)


@pytest.mark.parametrize("name", ["vanilla", "heterogeneous", "hiformer", "hiformer-lowrank"])
@pytest.mark.parametrize("tasks", [1, 2])
def test_the_pruned_last_layer_gives_the_logits_of_the_full_layer(name, tasks):
    layout = small(tasks)
    whole = lively(config_of(name, {"prune": False}).make(layout)).eval()
    pruned = config_of(name).make(layout).eval()
    state = whole.state_dict()
    for key, value in pruned.state_dict().items():
        if state[key].shape != value.shape:
            state[key] = state[key][-value.shape[0] :]
    pruned.load_state_dict(state)
    ids, numbers = batch(layout)
    torch.testing.assert_close(pruned(ids, numbers), whole(ids, numbers), rtol=1e-4, atol=1e-5)


def test_heterogeneous_layers_with_equal_weights_equal_the_vanilla_layer():
    layout = small()
    vanilla = lively(config_of("vanilla", {"layers": 1, "prune": False}).make(layout)).eval()
    other = lively(config_of("heterogeneous", {"layers": 1, "prune": False}).make(layout)).eval()
    own = {k: v for k, v in vanilla.state_dict().items() if not k.startswith("layers.")}
    a, layer, wanted = "layers.0.layer.", vanilla.state_dict(), other.state_dict()
    shared = {
        "query": layer[f"{a}query.weight"],
        "key_value": torch.cat([layer[f"{a}key.weight"], layer[f"{a}value.weight"]]),
        "output": layer[f"{a}output.weight"],
        "inner": layer["layers.0.feed_forward.up.weight"],
        "outer": layer["layers.0.feed_forward.down.weight"],
    }
    biases = {
        "query": layer[f"{a}query.bias"],
        "key_value": torch.cat([layer[f"{a}key.bias"], layer[f"{a}value.bias"]]),
        "output": layer[f"{a}output.bias"],
        "inner": layer["layers.0.feed_forward.up.bias"],
        "outer": layer["layers.0.feed_forward.down.bias"],
    }
    tokens = layout.tokens + 1
    for key in shared:
        own[f"layers.0.{key}.weight"] = shared[key].expand(tokens, -1, -1)
        own[f"layers.0.{key}.bias"] = biases[key].expand(tokens, -1)
    for norm, ours in (("norm", "layer_norm"), ("inner_norm", "feed_forward_norm")):
        for part in ("weight", "bias"):
            own[f"layers.0.{norm}.{part}"] = layer[f"layers.0.{ours}.{part}"]
    assert own.keys() == wanted.keys()
    other.load_state_dict(own)
    ids, numbers = batch(layout)
    torch.testing.assert_close(other(ids, numbers), vanilla(ids, numbers), rtol=1e-4, atol=1e-5)


def test_names_of_release_0_1_are_those_of_the_residual_block_today():
    made = config_of("vanilla", {"layers": 2})
    now = made.make(small()).state_dict()
    before = {}
    for name, tensor in now.items():
        old = name
        for today, then in (
            ("feed_forward.up", "inner"),
            ("feed_forward.down", "outer"),
            ("feed_forward_norm", "inner_norm"),
            ("layer_norm", "norm"),
            ("layer", "attention"),
        ):
            old = re.sub(rf"^(layers\.\d+)\.{today}\.", rf"\1.{then}.", old)
        before[old] = tensor
    assert {"layers.0.norm.weight", "layers.1.attention.key.bias", "layers.1.inner_norm.bias"} <= before.keys()
    assert {"layers.0.inner.weight", "layers.1.outer.bias", "norm.weight"} <= before.keys()
    for stored in (before, now):
        found = made.renamed(stored)
        assert found.keys() == now.keys()
        assert all(found[name] is now[name] for name in now)
    hiformer = config_of("hiformer").make(small()).state_dict()
    assert config_of("hiformer").renamed(hiformer).keys() == hiformer.keys()


def test_vanilla_layers_cannot_tell_fields_apart_without_positions():
    layout = Layout(("a", "b"), (4, 4), (1, 1))
    model = lively(config_of("vanilla").make(layout)).eval()
    with torch.no_grad():
        model.tokens.tables.weight[4:] = model.tokens.tables.weight[:4]
    ids, none = torch.tensor([[1, 2]]), torch.zeros(1, 0)
    torch.testing.assert_close(model(ids, none), model(ids.flip(1), none))
    told = lively(config_of("vanilla", {"positions": True}).make(layout)).eval()
    with torch.no_grad():
        told.tokens.tables.weight[4:] = told.tokens.tables.weight[:4]
    assert (told(ids, none) - told(ids.flip(1), none)).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("name", "settings", "says"),
    [
        ("hiformer", {"heads": 3}, "hiformer: heads: found 3, expected a divisor of dim = 16"),
        ("vanilla", {"rank": 4}, "vanilla: rank: found 4, expected None"),
        ("hiformer", {"rank": 1000}, "hiformer: rank: found 1000, expected 1 to"),
        ("hiformer", {"layers": 0}, "layers: found 0, expected 1 or more"),
        ("autoint", {"heads": 5}, "autoint: heads: found 5, expected a divisor of attention_dim = 128"),
        ("dcnv2", {"experts": 2}, "dcnv2: rank: found None with experts=2"),
        ("final-mlp", {"heads": 7}, "final-mlp: heads: found 7, expected a divisor"),
        ("deepfm", {"dim": 0}, "DeepFM: dim: found 0, expected 1 or more"),
    ],
)
def test_bad_settings_name_the_model_the_setting_and_what_is_expected(name, settings, says):
    with pytest.raises(ArgumentError, match=says):
        config_of(name, settings).make(small())


def test_unknown_names_give_the_nearest():
    with pytest.raises(UnknownNameError, match="unknown model 'hifomer': did you mean 'hiformer'"):
        config_of("hifomer")
    with pytest.raises(UnknownNameError, match="unknown setting of deepfm 'dropuot': did you mean 'dropout'"):
        config_of("deepfm", {"dropuot": 0.1})
