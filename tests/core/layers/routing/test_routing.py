"""The routing transformer: what its clusters hold, how its centroids move, and who may see whom."""

from __future__ import annotations

import pytest
import torch

from manyheads.core.errors import ArgumentError
from manyheads.core.functional import (
    affinity,
    attention,
    balanced_members,
    block_local_attention,
    cluster_statistics,
    clustered_attention,
    commitment_loss,
    ema_update,
    nearest,
    to_sphere,
)
from manyheads.core.layers.routing import Routing
from manyheads.core.mask import Mask
from manyheads.core.state import nbytes
from manyheads.core.testing import POINTS, Case, points_of

from .oracle import routing_oracle

STRICT = {"causal": True, "shared_qk": True, "assignment": "latest-w"}


def draw(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def layer_of(dim=12, **config):
    torch.manual_seed(0)
    return Routing(dim, **{"heads": 2, "local_heads": 1, "clusters": 4, "window": 4, "block": 4, **config}).double()


# Members and means


def test_one_cluster_of_all_tokens_is_full_attention_on_the_sphere():
    layer, x = layer_of(local_heads=0, clusters=1, window=10), draw(2, 10, 12)
    q, k, v = (m(x).unflatten(-1, (2, 6)).transpose(1, 2) for m in (layer.query, layer.key, layer.value))
    q, k = (torch.nn.functional.layer_norm(part, (6,), eps=1e-6) for part in (q, k))
    full = torch.softmax(q @ k.mT / 6**0.5, -1) @ v
    torch.testing.assert_close(layer(x).y, layer.output(full.transpose(1, 2).flatten(2)), rtol=0, atol=1e-12)


def test_clusters_that_hold_the_same_tokens_do_not_shrink_the_mean():
    one, many = layer_of(local_heads=0, clusters=1, window=9), layer_of(local_heads=0, clusters=5, window=9)
    many.load_state_dict({**many.state_dict(), **dict(one.named_parameters())})
    x = draw(2, 9, 12)
    torch.testing.assert_close(many(x).y, one(x).y, rtol=0, atol=1e-12)


def test_every_cluster_has_as_many_members_as_the_window():
    near = affinity(to_sphere(draw(2, 3, 30, 6)), draw(3, 5, 6, seed=2))
    members, real = balanced_members(near, 7)
    assert members.shape == (2, 3, 5, 7)
    assert real is None
    assert (members.diff(dim=-1) > 0).all()
    least = near.gather(-1, members).amin(-1)
    assert ((near > least.unsqueeze(-1)).sum(-1) == 6).all()


def test_members_are_drawn_from_real_tokens_first():
    real = torch.tensor([[True] * 3 + [False] * 7])
    members, counted = balanced_members(affinity(draw(1, 2, 10, 6), draw(2, 4, 6)), 5, real)
    assert (counted.sum(-1) == 3).all()
    assert (members[counted] < 3).all()


def test_token_in_no_cluster_gets_nothing_from_the_routing_heads():
    layer, x = layer_of(local_heads=0, heads=1, clusters=1, window=3), draw(1, 8, 12)
    q = to_sphere(layer.query(x))[:, None]
    inside = balanced_members(affinity(q, layer.centroids), 3)[0].flatten()
    outside = [t for t in range(8) if t not in inside]
    assert (layer(x).y[0, outside] == 0).all()
    assert (layer(x).y[0, inside].abs().sum(-1) > 0).all()


def test_routing_heads_alone_commute_with_permutations():
    layer, x, order = layer_of(local_heads=0), draw(2, 16, 12), torch.randperm(16)
    torch.testing.assert_close(layer(x[:, order]).y, layer(x).y[:, order], rtol=0, atol=1e-12)


def test_local_blocks_as_long_as_the_sequence_are_full_attention():
    q, k, v = draw(2, 3, 11, 4), draw(2, 3, 11, 4, seed=2), draw(2, 3, 11, 4, seed=3)
    for causal in (False, True):
        found = block_local_attention(q, k, v, block=20, causal=causal)
        torch.testing.assert_close(found, attention(q, k, v, causal=causal), rtol=0, atol=1e-12)


# Centroids


def test_forward_never_moves_the_centroids_and_only_training_gives_statistics():
    layer, x = layer_of(), draw(2, 16, 12)
    before = {name: value.clone() for name, value in layer.named_buffers()}
    assert set(layer.train()(x).aux) == {"commitment", "cluster_counts", "cluster_sums"}
    assert layer.eval()(x).aux == {}
    assert all(torch.equal(value, before[name]) for name, value in layer.named_buffers())


def test_update_moves_the_centroids_towards_their_tokens():
    layer, x = layer_of(shared_qk=True), draw(4, 32, 12)
    losses = []
    for _ in range(30):
        aux = layer(x).aux
        losses.append(aux["commitment"].item())
        layer.update_centroids(aux, decay=0.7)
    assert losses[-1] < 0.6 * losses[0]


def test_moving_averages_have_their_closed_form():
    counts, sums = draw(2, 3).abs(), draw(2, 3, 4)
    new_counts, new_sums = draw(2, 3, seed=5).abs(), draw(2, 3, 4, seed=6)
    n, s, steps, decay = counts, sums, 7, 0.9
    for _ in range(steps):
        centroids, n, s = ema_update(n, s, new_counts, new_sums, decay=decay)
    kept = decay**steps
    expected_n, expected_s = kept * counts + (1 - kept) * new_counts, kept * sums + (1 - kept) * new_sums
    torch.testing.assert_close(n, expected_n)
    torch.testing.assert_close(s, expected_s)
    total = expected_n.sum(-1, keepdim=True)
    smooth = (expected_n + 1e-5) / (total + 3e-5) * total
    torch.testing.assert_close(centroids, expected_s / smooth[..., None])


def test_first_update_starts_from_the_initial_centroids():
    layer = layer_of()
    start = layer.centroids.clone()
    aux = layer(draw(1, 8, 12)).aux
    nothing = {name: torch.zeros_like(value) for name, value in aux.items()}
    layer.update_centroids(nothing, decay=0.5)
    torch.testing.assert_close(layer.centroids, start)


def test_statistics_are_counts_and_sums_of_the_nearest():
    x, centroids = to_sphere(draw(2, 2, 9, 6)), draw(2, 4, 6, seed=3)
    real = torch.rand(2, 9, generator=torch.Generator().manual_seed(3)) < 0.6
    assigned = nearest(affinity(x, centroids))
    counts, sums = cluster_statistics(x, assigned, 4, real)
    expected_counts, expected_sums = torch.zeros(2, 4), torch.zeros(2, 4, 6, dtype=torch.float64)
    for b in range(2):
        for h in range(2):
            for t in range(9):
                if real[b, t]:
                    scores = [(x[b, h, t] * mu).sum().item() for mu in centroids[h]]
                    own = scores.index(max(scores))
                    expected_counts[h, own] += 1
                    expected_sums[h, own] += x[b, h, t]
    torch.testing.assert_close(counts, expected_counts.double())
    torch.testing.assert_close(sums, expected_sums)


@pytest.mark.parametrize("config", [{}, {"causal": True, "shared_qk": True}, STRICT])
def test_accumulated_micro_batches_update_as_the_whole_batch(config):
    x = draw(6, 16, 12)
    whole, parts = layer_of(**config), layer_of(**config)
    whole.update_centroids(whole(x).aux)
    parts.update_centroids(*(parts(x[i : i + 2]).aux for i in (0, 2, 4)))
    torch.testing.assert_close(parts.centroids, whole.centroids, rtol=0, atol=1e-12)


@pytest.mark.parametrize("local_heads", [0, 1])
@pytest.mark.parametrize("config", [{}, {"causal": True, "shared_qk": True}, STRICT])
def test_padding_is_not_in_the_statistics(config, local_heads):
    layer, x = layer_of(**config, local_heads=local_heads), draw(2, 12, 12)
    kept = torch.rand(2, 12, generator=torch.Generator().manual_seed(2)) < 0.6
    padded = layer(x, mask=Mask(padding=kept)).aux
    rows = [layer(x[b : b + 1, kept[b]]).aux for b in range(2)]
    for name in ("cluster_counts", "cluster_sums"):
        torch.testing.assert_close(padded[name], rows[0][name] + rows[1][name], rtol=0, atol=1e-12)
    share = kept.sum(1).double() / kept.sum()
    expected = sum(part * row["commitment"] for part, row in zip(share, rows, strict=True))
    torch.testing.assert_close(padded["commitment"], expected, rtol=0, atol=1e-12)


def test_statistics_of_padding_alone_are_finite():
    aux = layer_of()(draw(1, 5, 12), mask=Mask(padding=torch.zeros(1, 5, dtype=torch.bool))).aux
    assert aux["commitment"] == 0
    assert aux["cluster_counts"].sum() == 0


def test_commitment_loss_pulls_tokens_and_not_centroids():
    x, centroids = draw(2, 2, 5, 6).requires_grad_(), draw(2, 4, 6, seed=3).requires_grad_()
    assigned = nearest(affinity(x, centroids))
    commitment_loss(x, centroids, assigned).backward()
    own = torch.stack([centroids[h, assigned[:, h]] for h in range(2)], 1)
    torch.testing.assert_close(x.grad, 2 * (x - own).detach() / x.numel())
    assert centroids.grad is None


# Causality


def test_given_its_members_the_future_does_not_change_the_past():
    tokens, part = 9, draw(1, 1, 9, 6)
    for shared in (True, False):
        members = balanced_members(affinity(part, draw(1, 3, 6, seed=4)), 4)[0]
        others = None if shared else balanced_members(affinity(part, draw(1, 3, 6, seed=5)), 4)[0]

        def run(x, members=members, others=others):
            return clustered_attention(x, x, x, members, others, causal=True)

        jacobian = torch.autograd.functional.jacobian(run, part)[0, 0, :, :, 0, 0].abs().sum((1, 3))
        assert (jacobian.triu(1) == 0).all()
        assert jacobian.tril(-1).abs().sum() > 0.1, f"{tokens} tokens do not see the past at all"


def change_in_the_past(layer, trials=20):
    changed = 0
    for seed in range(trials):
        x, other = draw(1, 16, 12, seed=seed), draw(1, 16, 12, seed=seed + 100)
        y, z = layer(x).y, layer(torch.cat([x[:, :8], other[:, 8:]], 1)).y
        changed += bool((y[:, :8] - z[:, :8]).abs().max() > 1e-9)
    return changed


def test_top_w_is_weakly_causal_only_and_says_so():
    layer = layer_of(causal=True).eval()
    assert layer.causality == "weak"
    assert change_in_the_past(layer) >= 15


def test_latest_w_is_strictly_causal():
    layer = layer_of(**STRICT).eval()
    assert layer.causality == "strict"
    assert change_in_the_past(layer) == 0


class TopWCalledStrict(Routing):
    @property
    def is_causal(self):
        return True


class CentroidsMovedByForward(Routing):
    def mix(self, x, state, context, mask):
        self.centroids += 0.01
        return super().mix(x, state, context, mask)


BROKEN = [
    (TopWCalledStrict, {"causal": True}, "future_does_not_change_the_past"),
    (CentroidsMovedByForward, STRICT, "nothing_is_changed_in_place"),
]


@pytest.mark.parametrize(("broken", "config", "point"), BROKEN)
def test_battery_fails_on(broken, config, point):
    small = {"heads": 2, "local_heads": 1, "clusters": 2, "window": 3, "block": 2, **config}
    case = Case(broken, small, oracle=routing_oracle)
    assert point in points_of(case)
    with pytest.raises(AssertionError):
        POINTS[point].check(case)


# Streaming


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("sizes", [[1] * 60, [3, 40, 17], [50, 1, 9]])
def test_streams_of_many_clusters_in_chunks_of_any_size_give_the_whole(sizes, masked):
    layer, x = layer_of(clusters=8, window=7, block=3, **STRICT).eval(), draw(2, 60, 12)
    generator = torch.Generator().manual_seed(4)
    padding, reset = torch.rand(2, 60, generator=generator) < 0.8, torch.rand(2, 60, generator=generator) < 0.05
    mask = Mask(padding=padding, reset=reset) if masked else Mask()
    whole, outputs, state, at = layer(x, mask=mask), [], None, 0
    for size in sizes:
        part = slice(at, at + size)
        cut = Mask(padding=padding[:, part], reset=reset[:, part]) if masked else Mask()
        y, state, _ = layer(x[:, part], state, mask=cut)
        outputs.append(y)
        at += size
    torch.testing.assert_close(torch.cat(outputs, 1), whole.y, rtol=0, atol=1e-12)
    for found, expected in zip(state, whole.state, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_state_is_as_large_as_its_slots_whatever_the_length():
    layer = layer_of(clusters=3, window=5, block=4, **STRICT).eval()
    sizes = {nbytes(layer(draw(2, n, 12)).state) for n in (1, 10, 200)}
    floats = 2 * 2 * 7 * 6 + 2 * 2 * 3 * 4 * 6  # keys and values: local slots, and slots of each cluster
    assert sizes == {8 * (floats + 2 + 2 * 3)}


# Cost


@pytest.mark.parametrize("label", ["plain", "causal", "latest-w"])
def test_cost_grows_with_the_power_three_halves(label):
    at = Routing.info.at_length
    cost = {n: Routing.info.flops({**Routing(128, **at(n)[label]).config}, (n,)) for n in (1 << 20, 1 << 24)}
    slope = torch.log2(torch.tensor(cost[1 << 24] / cost[1 << 20])).item() / 4
    assert 1.4 < slope < 1.55


# Regression: how much of full attention the clusters hold


BANDS = [(0.3, 0.5, 0.12), (0.6, 0.45, 0.15), (1.0, 0.33, 0.2)]


@pytest.mark.parametrize(("noise", "routed_least", "local_most"), BANDS)
def test_clusters_hold_far_more_attention_than_neighbours_do(noise, routed_least, local_most):
    """1,024 tokens of 16 topics in random order; 64 tokens for each query either way."""
    tokens, width, clusters, window = 1024, 32, 16, 64
    topics = draw(clusters, width, seed=11)
    which = torch.randint(0, clusters, (tokens,), generator=torch.Generator().manual_seed(12))
    x = to_sphere(topics[which] + noise * draw(tokens, width, seed=13))[None, None]
    counts, sums = torch.ones(1, clusters, dtype=torch.float64), to_sphere(draw(1, clusters, width, seed=14))
    centroids = sums
    for _ in range(200):
        statistics = cluster_statistics(x, nearest(affinity(x, centroids)), clusters)
        centroids, counts, sums = ema_update(counts, sums, *statistics, decay=0.999)
    weights = torch.softmax(x[0, 0] @ x[0, 0].T / width**0.5, -1)
    members = balanced_members(affinity(x, centroids), window)[0][0, 0]
    inside = torch.zeros(clusters, tokens, dtype=torch.bool).scatter(1, members, True)
    together = (inside[:, :, None] & inside[:, None, :]).any(0)
    block = torch.arange(tokens) // window
    routed = (weights * together).sum(-1).mean().item()
    local = (weights * (block[:, None] == block)).sum(-1).mean().item()
    assert routed > routed_least
    assert local < local_most
    assert noise > 0.6 or routed > 3 * local
    assert 0.05 < (~inside.any(0)).double().mean().item() < 0.35


# Bad input


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"heads": 5}, "heads: found 5, expected a divisor of dim = 12"),
        ({"heads": 12}, "leaves heads of width 2 or more"),
        ({"local_heads": 2}, "local_heads: found 2, expected 0 to 1 of 2 heads"),
        ({"local_heads": -1}, "local_heads: found -1"),
        ({"clusters": 0}, "clusters: found 0, expected 1 or more"),
        ({"window": 0}, "window: found 0, expected 1 or more"),
        ({"block": 0}, "block: found 0, expected 1 or more"),
        ({"assignment": "latest-w"}, "found 'latest-w' with causal=False and shared_qk=False"),
        ({"assignment": "latest-w", "causal": True}, "causal=True and shared_qk=False"),
    ],
)
def test_bad_arguments_are_named(config, message):
    with pytest.raises(ArgumentError, match=r"^routing: ") as caught:
        layer_of(**config)
    assert message in str(caught.value)


def test_unknown_assignment_is_refused_with_the_choices():
    with pytest.raises(ArgumentError, match="assignment: found 'topw', expected 'top-w' or 'latest-w'"):
        layer_of(assignment="topw")


def test_updates_that_cannot_be_meant_are_refused():
    layer, x = layer_of(), draw(1, 8, 12)
    aux = layer(x).aux
    with pytest.raises(ArgumentError, match=r"decay: found 1\.0"):
        layer.update_centroids(aux, decay=1.0)
    with pytest.raises(ArgumentError, match="found no statistics"):
        layer.update_centroids()
    layer.eval()
    with pytest.raises(ArgumentError, match="found a layer in eval mode"):
        layer.update_centroids(aux)
    aux = layer(x).aux
    with pytest.raises(ArgumentError, match="found no statistics"):
        layer.train().update_centroids(aux)
