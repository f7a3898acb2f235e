"""What heterogeneous and composite attention promise: counts, special cases, pruning, compression."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from manyheads.core.blocks.field_linear import FieldLinear
from manyheads.core.errors import ArgumentError
from manyheads.core.layers.hiformer import Heterogeneous, Hiformer, compress
from manyheads.core.layers.softmax import SoftmaxAttention
from manyheads.core.mask import Mask
from manyheads.core.methods.mixing_matrix import mixing_matrix
from manyheads.core.registry import create
from manyheads.core.testing import POINTS, Case
from tests.core.layers import ORACLES

DIM, FIELDS, HEADS = 8, 5, 2


class PlainBlock(nn.Module):
    """A pre-norm Transformer layer of the library's softmax attention: the same weights for every field."""

    def __init__(self, dim, heads, expansion):
        super().__init__()
        self.norm, self.inner_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = SoftmaxAttention(dim, heads=heads, bias=True)
        self.inner, self.outer = nn.Linear(dim, expansion * dim), nn.Linear(expansion * dim, dim)

    def forward(self, x):
        x = x + self.attention(self.norm(x)).y
        return x + self.outer(functional.gelu(self.inner(self.inner_norm(x))))


def case(layer, **config):
    return Case(layer, {"fields": FIELDS, "heads": HEADS, **config}, dim=DIM, grid=(FIELDS,))


def parameters(*modules):
    return sum(p.numel() for module in modules for p in module.parameters())


def with_equal_fields(plain):
    """A heterogeneous layer each of whose fields has the weights of the plain block."""
    layer = Heterogeneous(DIM, fields=FIELDS, heads=HEADS, expansion=2).double()
    source = plain.attention
    weights = {
        "query": (source.query.weight, source.query.bias),
        "key_value": tuple(torch.cat([getattr(source.key, n), getattr(source.value, n)]) for n in ("weight", "bias")),
        "output": (source.output.weight, source.output.bias),
        "inner": (plain.inner.weight, plain.inner.bias),
        "outer": (plain.outer.weight, plain.outer.bias),
    }
    with torch.no_grad():
        for name, parts in weights.items():
            for kind, part in zip(("weight", "bias"), parts, strict=True):
                getattr(getattr(layer, name), kind).copy_(part.expand(FIELDS, *part.shape))
    layer.norm.load_state_dict(plain.norm.state_dict())
    layer.inner_norm.load_state_dict(plain.inner_norm.state_dict())
    return layer


def as_block_diagonal(layer):
    """The hiformer whose composite projections are those of the heterogeneous layer on the diagonal."""
    made = Hiformer(layer.dim, **{k: v for k, v in layer.config.items() if k != "dim"}).to(layer.norm.weight.dtype)
    weights = {k: v for k, v in layer.state_dict().items() if not k.startswith(("query", "key_value"))}
    key, value = layer.key_value.weight.chunk(2, 1)
    key_bias, value_bias = layer.key_value.bias.chunk(2, 1)
    before = torch.zeros(layer.queries * layer.dim, (layer.fields - layer.queries) * layer.dim, dtype=key.dtype)
    weights["query.weight"] = torch.cat([before, torch.block_diag(*layer.query.weight)], 1)
    weights["key.weight"], weights["values.weight"] = torch.block_diag(*key), torch.block_diag(*value)
    biases = {"query": layer.query.bias, "key": key_bias, "values": value_bias}
    weights |= {f"{name}.bias": bias.flatten() for name, bias in biases.items()}
    made.load_state_dict(weights)
    return made


@pytest.mark.parametrize(
    ("build", "published"),
    [
        (lambda queries: PlainBlock(64, 4, 2), 67_201),
        (lambda queries: Heterogeneous(64, fields=32, queries=queries), 1_354_817),
        (lambda queries: Hiformer(64, fields=32, queries=queries), 21_797_953),
        (lambda queries: Hiformer(64, fields=32, queries=queries, rank=256), 6_478_913),
        (lambda queries: Hiformer(64, fields=32, queries=queries, rank=64), 2_141_249),
    ],
    ids=["vanilla", "heterogeneous", "full", "rank 256", "rank 64"],
)
def test_parameters_of_a_ranker_of_two_layers(build, published):
    """31 fields and a task token, width 64, the last layer pruned; beside the layers there are the task token, a final
    LayerNorm and a linear head."""
    others = 64 + 2 * 64 + (64 + 1)
    with torch.device("meta"):
        assert parameters(build(None), build(1)) + others == published


@pytest.mark.parametrize("rank", [64, None])
def test_parameters_of_a_ranker_whose_last_layer_is_not_pruned(rank):
    published = {64: 2_913_025, None: 26_505_985}
    with torch.device("meta"):
        layers = [Hiformer(64, fields=32, rank=rank) for _ in range(2)]
    assert parameters(*layers) + 64 + 2 * 64 + (64 + 1) == published[rank]


@pytest.mark.parametrize(
    ("t", "d", "m", "r", "q"), [(7, 12, 2, 5, None), (7, 12, 2, 5, 3), (4, 8, 3, 32, 1), (1, 4, 1, 2, 1)]
)
def test_parameters_follow_the_formula(t, d, m, r, q):
    config = {"fields": t, "expansion": m, "queries": q}
    n = t if q is None else q
    rest = n * (d * d + d) + n * (2 * m * d * d + (m + 1) * d) + 4 * d
    assert parameters(Heterogeneous(d, **config)) == (n + 2 * t) * (d * d + d) + rest
    assert parameters(Hiformer(d, **config)) == (n + 2 * t) * d * (t * d + 1) + rest
    assert parameters(Hiformer(d, rank=r, **config)) == 3 * t * d * r + (n + 2 * t) * (d * r + d) + rest


@pytest.mark.parametrize("queries", [None, 2])
@pytest.mark.parametrize(("name", "rank"), [("heterogeneous", {}), ("hiformer", {}), ("hiformer", {"rank": 3})])
def test_flops_are_those_that_are_run(name, rank, queries):
    layer = create(name, DIM, fields=FIELDS, heads=HEADS, queries=queries, expansion=3, **rank)
    with FlopCounterMode(display=False) as counted:
        layer(torch.randn(4, FIELDS, DIM))
    assert counted.get_total_flops() == 4 * layer.info.flops(layer.config, (FIELDS,))


def test_multiply_adds_of_a_heterogeneous_layer_are_those_of_a_transformer_layer():
    t, d, m = 32, 64, 2
    layer = Heterogeneous(d, fields=t, expansion=m)
    assert layer.info.flops(layer.config, (t,)) == 2 * (4 * t * d * d + 2 * t * t * d + 2 * m * t * d * d)


def test_equal_fields_make_a_plain_transformer_layer():
    torch.manual_seed(0)
    plain = PlainBlock(DIM, HEADS, 2).double()
    x = case(Heterogeneous).x()
    torch.testing.assert_close(with_equal_fields(plain)(x).y, plain(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("queries", [None, 2])
def test_block_diagonal_composites_make_a_heterogeneous_layer(queries):
    made = case(Heterogeneous, queries=queries)
    layer = made.layer()
    for mask in (None, *made.masks().values()):
        expected = layer(made.x(), mask=mask).y
        found = as_block_diagonal(layer)(made.x(), mask=mask).y
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("queries", [1, 2, 5])
@pytest.mark.parametrize(("name", "rank"), [("heterogeneous", {}), ("hiformer", {}), ("hiformer", {"rank": 3})])
def test_pruned_layer_gives_the_rows_of_the_unpruned_one(name, rank, queries):
    made = case(type(create(name, DIM, fields=FIELDS, heads=HEADS)), **rank)
    layer, x = made.layer(), made.x()
    pruned = layer.prune(queries)
    for mask in (None, *made.masks().values()):
        whole, found = layer(x, mask=mask).y, pruned(x, mask=mask).y
        torch.testing.assert_close(found[:, -queries:], whole[:, -queries:], rtol=0, atol=1e-13)
        assert torch.equal(pruned.last(x, mask=mask), found[:, -queries:])
        real = 1.0 if mask is None else mask.padding[:, :-queries, None]
        assert torch.equal(found[:, :-queries], x[:, :-queries] * real), "rows before the queries are passed on"


def test_pruned_layer_drops_the_parameters_of_the_other_fields_and_shares_none():
    layer = Hiformer(64, fields=32, rank=64)
    pruned = layer.prune(1)
    assert parameters(pruned) == parameters(Hiformer(64, fields=32, rank=64, queries=1))
    assert type(pruned)(**pruned.config).state_dict().keys() == pruned.state_dict().keys()
    before = layer.norm.weight.clone()
    with torch.no_grad():
        pruned.norm.weight.add_(1.0)
        pruned.query.weight.add_(1.0)
    assert torch.equal(layer.norm.weight, before)


@pytest.mark.parametrize("queries", [None, 1])
@pytest.mark.parametrize("rank", [1, 7, 39, 40])
def test_compression_errs_by_the_first_singular_value_that_is_cut(rank, queries):
    layer = case(Hiformer, queries=queries).layer()
    small, error = compress(layer, rank)
    assert small.config == {**layer.config, "rank": rank}
    for name, matrix in layer.matrices().items():
        off = torch.linalg.matrix_norm(matrix - small.matrices()[name], ord=2).item()
        sigma = torch.linalg.svdvals(matrix)
        expected = sigma[rank].item() if rank < len(sigma) else 0.0
        assert error[name] == pytest.approx(expected, abs=1e-10)
        assert off == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("queries", [None, 1])
def test_compression_to_full_rank_changes_nothing(queries):
    made = case(Hiformer, queries=queries)
    layer = made.layer()
    small, error = compress(layer, FIELDS * DIM)
    assert max(error.values()) == 0
    torch.testing.assert_close(small(made.x()).y, layer(made.x()).y, rtol=0, atol=1e-10)


def test_compression_finds_a_layer_of_low_rank_again():
    made = case(Hiformer, rank=3)
    layer = made.layer()
    small, error = compress(layer, 3)
    assert max(error.values()) < 1e-12
    torch.testing.assert_close(small(made.x()).y, layer(made.x()).y, rtol=0, atol=1e-10)
    assert max(compress(layer, 2).error.values()) > 1e-3


def test_missing_field_is_not_attended():
    made = case(Hiformer)
    padding = torch.ones(made.batch, FIELDS, dtype=torch.bool)
    padding[:, 2] = False
    matrix = mixing_matrix(made.layer(), made.x(), mask=Mask(padding=padding))
    assert (matrix[..., 2] == 0).all()
    torch.testing.assert_close(matrix.sum(-1), torch.ones_like(matrix.sum(-1)))


def test_a_composite_hears_of_fields_that_attention_alone_would_not_bring():
    """With uniform attention, row t of a heterogeneous layer mixes values; only a composite has q of all fields."""
    x = case(Hiformer).x()[:1]
    for layer, hears in ((case(Heterogeneous).layer(), False), (case(Hiformer).layer(), True)):
        jacobian = torch.autograd.functional.jacobian(lambda x, layer=layer: layer.project(x)[0], x)
        reach = jacobian[0].abs().sum(1)[:, 0].sum(-1)
        assert (reach > 1e-9)[~torch.eye(FIELDS, dtype=torch.bool)].all().item() is hears
        assert (reach.diagonal() > 1e-9).all()


def test_field_linear_is_one_linear_map_a_field():
    layer = FieldLinear(3, 4, 2).double()
    x = torch.randn(5, 3, 4, dtype=torch.float64)
    expected = torch.stack([functional.linear(x[:, t], layer.weight[t], layer.bias[t]) for t in range(3)], 1)
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-14)
    assert layer.weight.abs().max() <= 0.5
    assert layer.weight.abs().max() > 0.3


@pytest.mark.parametrize(
    ("name", "config", "part"),
    [
        ("heterogeneous", {"fields": 0}, "fields: found 0, expected 1 or more"),
        ("heterogeneous", {"fields": 3, "heads": 3}, "heads: found 3, expected a divisor of dim = 8"),
        ("heterogeneous", {"fields": 3, "expansion": 0}, "expansion: found 0, expected 1 or more"),
        ("heterogeneous", {"fields": 3, "queries": 4}, "queries: found 4, expected 1 to fields = 3"),
        ("hiformer", {"fields": 3, "queries": 0}, "queries: found 0, expected 1 to fields = 3"),
        ("hiformer", {"fields": 3, "rank": 0}, "rank: found 0, expected 1 to fields * dim = 24, or None"),
        ("hiformer", {"fields": 3, "rank": 25}, "rank: found 25, expected 1 to fields * dim = 24"),
    ],
)
def test_impossible_configurations_are_refused_by_argument(name, config, part):
    with pytest.raises(ArgumentError) as caught:
        create(name, DIM, **config)
    assert str(caught.value).startswith(f"{name}: {part}")


def test_what_cannot_be_pruned_or_compressed_is_refused():
    layer = Hiformer(DIM, fields=FIELDS, queries=2)
    with pytest.raises(ArgumentError, match="hiformer: queries: found 3, expected 1 to 2"):
        layer.prune(3)
    with pytest.raises(ArgumentError, match="hiformer: rank: found 0, expected 1 to"):
        compress(layer, 0)
    with pytest.raises(ArgumentError, match="compress: layer: found Heterogeneous, expected Hiformer"):
        compress(Heterogeneous(DIM, fields=FIELDS), 2)
    with pytest.raises(ArgumentError, match=r"hiformer: x: found shape \(2, 4, \d+\), expected \(B, 5, "):
        layer.last(torch.randn(2, 4, DIM))


class FieldsSwapped(Heterogeneous):
    def project(self, x):
        q, k, v = super().project(x[:, [1, 0, *range(2, FIELDS)]])
        return q, k, v


class CompositeTransposed(Hiformer):
    def project(self, x):
        return super().project(x.mT.reshape(x.shape))


@pytest.mark.parametrize("broken", [FieldsSwapped, CompositeTransposed])
def test_battery_fails_on(broken):
    made = Case(broken, {"fields": 5, "heads": 2}, grid=(5,), oracle=ORACLES[broken.info.name])
    with pytest.raises(AssertionError, match="output"):
        POINTS["oracle_and_layer_agree"].check(made)


@pytest.mark.parametrize("name", ["heterogeneous", "hiformer"])
def test_training_computes_what_evaluation_does(name):
    torch.manual_seed(0)
    kind = {"heterogeneous": Heterogeneous, "hiformer": Hiformer}[name]
    layer = kind(8, fields=5, heads=2).double()
    x = torch.randn(3, 5, 8, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(3, 5, 8, dtype=torch.float64)
    found = []
    for module in (layer.train(), layer.eval()):
        y = module(x).y
        found.append((y, *torch.autograd.grad((y * weights).sum(), [x, *module.parameters()])))
        layer.zero_grad()
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)
