"""Losses of pretraining against slow float64 loops, with gradients by differences."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from manyheads.core.errors import ArgumentError
from manyheads.rl.pretraining import losses


def drawn(*shape, seed=0):
    return torch.tensor(np.random.default_rng(seed).normal(size=shape), requires_grad=True)


def slow_invariance(a, b):
    return sum((a[i][j] - b[i][j]) ** 2 for i in range(len(a)) for j in range(len(a[0]))) / (len(a) * len(a[0]))


def slow_variance(a):
    total = 0.0
    for column in zip(*a, strict=True):
        mean = sum(column) / len(column)
        spread = sum((one - mean) ** 2 for one in column) / (len(column) - 1)
        total += max(0.0, 1 - math.sqrt(spread + 1e-4))
    return 0.5 * total / len(a[0])


def slow_covariance(a):
    rows, width, total = len(a), len(a[0]), 0.0
    means = [sum(row[j] for row in a) / rows for j in range(width)]
    for i, j in itertools.product(range(width), repeat=2):
        if i != j:
            total += (sum((row[i] - means[i]) * (row[j] - means[j]) for row in a) / (rows - 1)) ** 2
    return total / width


def slow_order(logits, target):
    return sum(math.log(1 + math.exp(z if t == 0 else -z)) for z, t in zip(logits, target, strict=True)) / len(logits)


def slow_contrastive(q, k, temperature):
    def unit(v):
        return [x / math.sqrt(sum(y * y for y in v)) for x in v]

    q, k, total = [unit(v) for v in q], [unit(v) for v in k], 0.0
    for i, one in enumerate(q):
        scores = [sum(x * y for x, y in zip(one, other, strict=True)) / temperature for other in k]
        total -= scores[i] - math.log(sum(math.exp(s) for s in scores))
    return 2 * temperature * total / len(q)


def slow_distillation(student, teacher, centre, hot, cold):
    def softmax(scores):
        total = sum(math.exp(s) for s in scores)
        return [math.exp(s) / total for s in scores]

    found = []
    for i, j in itertools.product(range(len(teacher)), range(len(student))):
        if i == j:
            continue
        for row in range(len(student[0])):
            target = softmax([(t - c) / cold for t, c in zip(teacher[i][row], centre, strict=True)])
            guess = softmax([s / hot for s in student[j][row]])
            found.append(-sum(p * math.log(g) for p, g in zip(target, guess, strict=True)))
    return sum(found) / len(found)


A, B = drawn(7, 4), drawn(7, 4, seed=1)
SMALL = (0.3 * A).detach().requires_grad_()
TARGET = [0.0, 1.0, 1.0, 0.0, 1.0]
STUDENT, TEACHER, CENTRE = drawn(2, 5, 6), drawn(2, 5, 6, seed=1).detach(), drawn(6, seed=2).detach()
CASES = {
    "invariance": (lambda x: losses.invariance(x, B.detach()), lambda x: slow_invariance(x, B.tolist()), A),
    "variance": (losses.variance, slow_variance, SMALL),
    "covariance": (losses.covariance, slow_covariance, A),
    "order": (lambda x: losses.order_loss(x, torch.tensor(TARGET).double()), lambda x: slow_order(x, TARGET), drawn(5)),
    "contrastive": (
        lambda x: losses.contrastive(x, B.detach(), 0.2),
        lambda x: slow_contrastive(x, B.tolist(), 0.2),
        A,
    ),
    "distillation": (
        lambda x: losses.distillation(x, TEACHER, CENTRE, student_temperature=0.1, teacher_temperature=0.04),
        lambda x: slow_distillation(x, TEACHER.tolist(), CENTRE.tolist(), 0.1, 0.04),
        STUDENT,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_loss_and_its_gradient_are_those_of_the_slow_loops(name):
    loss, slow, x = CASES[name]
    x = x.detach().clone().requires_grad_()
    value = loss(x)
    assert float(value) == pytest.approx(slow(x.tolist()), rel=1e-10)
    value.backward()
    random = np.random.default_rng(3)
    for _ in range(5):
        direction = torch.tensor(random.normal(size=tuple(x.shape)))
        step = 1e-5
        ahead, behind = (slow((x.detach() + sign * step * direction).tolist()) for sign in (1, -1))
        slope = (ahead - behind) / (2 * step)
        assert float((x.grad * direction).sum()) == pytest.approx(slope, rel=1e-6, abs=1e-8)


def test_the_covariance_of_uncorrelated_dimensions_is_zero_and_a_collapsed_one_has_the_largest_variance_term():
    even = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=3)), dtype=torch.float64)
    assert float(losses.covariance(even)) == pytest.approx(0, abs=1e-15)
    assert float(losses.variance(torch.ones(8, 3, dtype=torch.float64))) == pytest.approx(0.5 * (1 - 0.01))


def test_a_triple_in_the_order_of_time_has_target_0_and_every_other_order_occurs_equally():
    triples = torch.arange(3.0).repeat(12_000, 1)[:, :, None]
    shuffled = losses.shuffle_triples(triples, generator=torch.Generator().manual_seed(0))
    found = dict.fromkeys(itertools.permutations(range(3)), 0)
    for order, target in zip(shuffled.triples[:, :, 0].int().tolist(), shuffled.target.tolist(), strict=True):
        found[tuple(order)] += 1
        assert target == float(order != [0, 1, 2])
    assert found.pop((0, 1, 2)) / 12_000 == pytest.approx(0.5, abs=0.02)
    assert all(count / 12_000 == pytest.approx(0.1, abs=0.01) for count in found.values())


def test_the_published_share_gives_each_order_one_sixth():
    shuffled = losses.shuffle_triples(torch.rand(30_000, 3, 1), in_order=1 / 6)
    assert float(shuffled.target.mean()) == pytest.approx(5 / 6, abs=0.01)


def test_wrong_arguments_are_refused():
    with pytest.raises(ArgumentError, match="temperature"):
        losses.contrastive(A, B, 0)
    with pytest.raises(ArgumentError, match="found 1 views"):
        losses.distillation(STUDENT[:1], TEACHER[:1], CENTRE, student_temperature=0.1, teacher_temperature=0.04)
