"""Probes, intervals and collapse measures against closed forms; the shortcut of the published order head."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from manyheads.core.errors import ArgumentError
from manyheads.rl.pretraining import measures, probes
from manyheads.rl.pretraining.games import Label, labels_of
from manyheads.rl.pretraining.methods import OrderHead
from manyheads.rl.pretraining.probes import ClassScore, StateScore, action_probe, order_score, state_probe

from .play import moving_ball


def test_ridge_is_the_minimum_of_its_objective():
    random = np.random.default_rng(0)
    x, y = torch.tensor(random.normal(size=(30, 4))), torch.tensor(random.normal(size=30))
    weights, bias = (one.requires_grad_() for one in probes.ridge(x, y, 0.3))
    ((y - x @ weights - bias).square().mean() + 0.3 * weights.square().sum()).backward()
    torch.testing.assert_close(weights.grad, torch.zeros(4).double(), atol=1e-12, rtol=0)
    assert float(bias.grad) == pytest.approx(0, abs=1e-12)


def linear_play(noise, seed=0, absent=False):
    """Features whose linear map is the label, in 12 fitted and 6 held-out episodes of 30 frames."""
    random = np.random.default_rng(seed)
    pairs = []
    for count in (12, 6):
        x = random.normal(size=(count * 30, 5))
        ram = np.zeros((len(x), 128), np.uint8)
        ram[:, 7] = np.clip(128 + 20 * x[:, 0] - 10 * x[:, 1], 0, 255)
        ram[:, 8] = np.arange(len(x)) % 2
        if absent:
            ram[::2, 7] = 0
        x = x + noise * random.normal(size=x.shape)
        pairs.append((torch.tensor(x, dtype=torch.float32), ram, np.repeat(np.arange(count), 30)))
    return [tuple(one) for one in zip(*pairs, strict=True)]


def test_a_linear_label_is_read_and_a_noisy_one_less():
    clean = state_probe(*linear_play(0.0), [Label("x", 7)]).mean()
    noisy = state_probe(*linear_play(1.0), [Label("x", 7)]).mean()
    assert clean.value > 0.99
    # half of the variance of each feature is the label's
    assert noisy.value == pytest.approx(0.5, abs=0.1)
    assert noisy.low < noisy.value < noisy.high < clean.low


def test_r2_is_one_minus_errors_over_variance_of_the_held_out_frames():
    (x, held), (ram, ram_held), episodes = linear_play(0.5)
    score = state_probe((x, held), (ram, ram_held), episodes, [Label("x", 7)])
    target = ram_held[:, 7].astype(float)
    errors = score.sums[0, :, 3].sum()
    expected = 1 - errors / ((target - target.mean()) ** 2).sum()
    assert float(score.r2()[0]) == pytest.approx(expected, rel=1e-9)


def test_frames_without_the_object_are_left_out():
    data = linear_play(0.0, absent=True)
    assert state_probe(*data, [Label("x", 7, (8, 1, 1))]).mean().value > 0.99
    assert state_probe(*data, [Label("x", 7)]).mean().value < 0.3
    with pytest.raises(ArgumentError, match="x: found it absent"):
        state_probe(*data, [Label("x", 7, (8, 5, 9))])


def test_the_interval_of_episode_means_is_near_that_of_normal_theory():
    random = np.random.default_rng(0)
    resampled = probes.resamples_of(200, count=4000) @ (values := random.normal(size=200)) / 200
    found = probes.interval(values.mean(), resampled)
    half = 1.96 * values.std() / math.sqrt(200)
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.1)


def test_a_difference_on_the_same_episodes_is_narrower_than_the_parts():
    a = StateScore(("x",), np.random.default_rng(0).uniform(1, 3, (1, 30, 1)) * np.array([10.0, 0, 100, 20]))
    b = StateScore(("x",), a.sums * np.array([1, 1, 1, 1.5]))
    found = a.above(b)
    assert found.value == pytest.approx(0.1)
    assert (found.low, found.high) == pytest.approx((0.1, 0.1))


def test_balanced_accuracy_is_the_mean_over_classes():
    score = ClassScore(np.array([[[90, 90], [10, 0]], [[0, 0], [10, 10]]], float))
    assert score.balanced().value == pytest.approx((1 + 0.5) / 2)


def test_actions_that_the_features_separate_are_read():
    random = np.random.default_rng(0)
    x = torch.tensor(random.normal(size=(900, 2)), dtype=torch.float32)
    right = x[:, 0] > 0
    action = (right.long() + (right & (x[:, 1] > 0))).numpy()
    found = action_probe((x[:600], x[600:]), (action[:600], action[600:]), np.repeat(np.arange(10), 30))
    assert found.balanced().low > 0.85


def state_triples(gap=3, seed=0, lengths=(40,) * 500):
    """RAM positions of three successive frames at t - gap, t, t + gap of a bouncing ball, and their episodes."""
    play = moving_ball(lengths, size=84, seed=seed)
    labels = labels_of("pong")
    state = np.stack([label.values(play.ram) for label in labels], 1)
    centres = play.centres(stack=3, gap=gap)
    stacked = state[(centres[:, None] + np.array([-gap, 0, gap]))[:, :, None] + np.arange(-2, 1)]
    triples = torch.tensor(stacked, dtype=torch.float32).flatten(2) / 84
    return triples, play.episodes[centres]


def trained_head(kind, triples, steps, *, hidden=128, seed=0, rate=3e-3):
    torch.manual_seed(seed)
    head = OrderHead(triples.shape[2], kind, hidden)
    probes.train_order(head, triples, steps=steps, rate=rate, generator=torch.Generator().manual_seed(seed))
    return head.eval()


def test_the_published_head_learns_nothing_from_perfect_states_and_the_mlp_learns_the_order():
    triples, episodes = state_triples()
    fitted, held = episodes < 400, episodes >= 400
    linear = order_score(trained_head("linear", triples[fitted], 500), triples[held], episodes[held]).balanced()
    deep = order_score(trained_head("mlp", triples[fitted], 1500), triples[held], episodes[held]).balanced()
    assert linear.value == pytest.approx(0.5, abs=0.03)
    assert deep.value >= 0.95


def test_the_published_head_finds_a_centre_that_differs_by_its_view():
    triples, episodes = state_triples()
    # a view that moves and scales the centre alone, by chance
    changed = triples.clone()
    changed[:, 1] = (0.4 + 0.4 * torch.rand(len(triples), 1)) * changed[:, 1]
    fitted, held = episodes < 400, episodes >= 400
    head = trained_head("linear", changed[fitted], 500)
    assert order_score(head, changed[held], episodes[held]).balanced().value >= 0.75


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_the_effective_rank_of_equal_directions_is_their_number(rank):
    directions = torch.linalg.qr(torch.randn(8, 8).double())[0][:rank]
    points = torch.cat([directions, -directions])
    assert measures.effective_rank(points) == pytest.approx(rank, rel=1e-9)


def test_collapsed_features_have_rank_0_and_no_deviation():
    found = measures.collapse(torch.ones(10, 4))
    assert found.effective_rank == 0
    assert found.off_diagonal == 0
    assert bool((found.deviation == 0).all())
    with pytest.raises(ArgumentError, match="two rows"):
        measures.collapse(torch.ones(1, 4))


def test_the_off_diagonal_measure_is_the_mean_absolute_covariance():
    x = np.random.default_rng(0).normal(size=(50, 3)) @ np.random.default_rng(1).normal(size=(3, 3))
    matrix = np.cov(x.T)
    expected = np.abs(matrix[~np.eye(3, dtype=bool)]).mean()
    assert measures.collapse(torch.tensor(x)).off_diagonal == pytest.approx(expected)


def test_hoyer_sparsity_is_0_for_even_vectors_and_1_for_one_entry():
    vectors = torch.tensor([[1.0, -1, 1, 1], [0, 3, 0, 0], [0, 0, 0, 0], [1, 1, 0, 0]])
    expected = torch.tensor([0.0, 1.0, 0.0, (2 - math.sqrt(2)) / 1])
    torch.testing.assert_close(measures.hoyer_sparsity(vectors), expected)
