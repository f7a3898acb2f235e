"""IA-RED2: interpreter, dropping, gathering, the policy gradient against enumeration, and the curriculum."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

from manyheads.core import Mask, create
from manyheads.core.backbones.stack import build_stack
from manyheads.core.blocks.residual import ResidualBlock
from manyheads.core.errors import ArgumentError, MaskError
from manyheads.core.methods.iared2 import IARed2, IARed2Output, Interpreter, reward, self_critical_loss


def model(depth=6, groups=3, layer="softmax", dim=16, **options):
    torch.manual_seed(0)
    stack = build_stack(layer, dim, depth=depth, options={"heads": 2} if layer == "softmax" else None, expansion=2.0)
    made = IARed2(stack.residual_blocks, groups=groups, heads=2, **options).double().eval()
    # policies that differ from token to token
    for interpreter in made.interpreters:
        for part in (interpreter.query, interpreter.key):
            nn.init.normal_(part.weight, std=0.6)
    return made


def tokens(rows=4, count=11, dim=16, seed=1):
    return torch.randn(rows, count, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def same_seed():
    return torch.Generator().manual_seed(5)


def test_the_interpreter_is_the_mean_of_the_sigmoids_of_its_heads():
    interpreter = Interpreter(8, heads=2, width=3).double()
    x = tokens(2, 5, 8)
    found = interpreter(x).detach()
    for b in range(2):
        normed = (x[b] - x[b].mean(1, keepdim=True)) / (x[b].var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        q = interpreter.query.weight @ normed[0] + interpreter.query.bias
        for j in range(1, 5):
            k = interpreter.key.weight @ normed[j] + interpreter.key.bias
            heads = [
                1 / (1 + math.exp(-float((q[3 * h : 3 * h + 3] @ k[3 * h : 3 * h + 3]).detach()) / 3**0.5))
                for h in (0, 1)
            ]
            assert float(found[b, j]) == pytest.approx(sum(heads) / 2, abs=1e-12)
        assert found[b, 0] == 1


def test_without_dropping_the_blocks_are_the_original():
    dropping = model()
    x = tokens()
    y = x
    for block in itertools.chain(*dropping.groups):
        y = block(y).y
    for gather in (False, True):
        out = dropping(x, policy="all", gather=gather)
        assert torch.equal(out.y, y)
        assert out.kept.all()
        assert (out.ratio == 1).all()
        assert (out.log_policy == 0).all()
        assert (dropping.cost(out.ratio) == 1).all()


@pytest.mark.parametrize("layer", ["softmax", "ponet", "lmu"])
@pytest.mark.parametrize("policy", ["sample", "greedy"])
@pytest.mark.parametrize("padded", [False, True])
def test_gathering_equals_masking(layer, policy, padded):
    dropping = model(layer=layer)
    x = tokens()
    mask = None
    if padded:
        padding = torch.ones(4, 11, dtype=torch.bool)
        padding[0, 7:] = padding[2, 3] = False
        mask = Mask(padding=padding)
    masked, gathered = (dropping(x, policy=policy, mask=mask, gather=g, generator=same_seed()) for g in (False, True))
    if policy == "greedy":
        assert torch.equal(masked.kept, gathered.kept)
    else:
        # draws are made for other places; the same choice has to be given to both
        chosen = masked.kept
        dropping._chosen = forced(chosen, gather=False)
        masked = dropping(x, policy=policy, mask=mask, gather=False)
        dropping._chosen = forced(chosen, gather=True)
        gathered = dropping(x, policy=policy, mask=mask, gather=True)
    assert 0 < masked.ratio[:, -1].mean() < 0.9
    assert len(set(masked.kept[:, 0].sum(1).tolist())) > 1
    for name in ("y", "kept", "probabilities", "log_policy", "ratio"):
        torch.testing.assert_close(getattr(gathered, name), getattr(masked, name), rtol=0, atol=1e-10)
    assert (masked.y[~masked.kept[:, -1]] == 0).all()


def forced(kept, gather):
    """A policy that takes the choices of ``kept (B, G, N)``, one group a call."""
    group, place = itertools.count(), [None]

    def chosen(p, policy, generator):
        index = next(group)
        if not gather or index == 0:
            place[0] = torch.arange(kept.shape[2]).expand(len(kept), -1)
        else:
            before = kept[:, index - 1].gather(1, place[0])
            order = torch.argsort((~before).to(torch.int8), dim=1, stable=True)[:, : p.shape[1]]
            place[0] = place[0].gather(1, order)
        return kept[:, index].gather(1, place[0])

    return chosen


def test_gathering_gives_the_gradients_of_masking():
    dropping = model()
    found = []
    for gather in (False, True):
        x = tokens().requires_grad_()
        out = dropping(x, policy="greedy", gather=gather)
        found.append(torch.autograd.grad(out.y.square().sum() + out.log_policy.sum(), [x, *dropping.parameters()]))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9)


def test_dropped_tokens_are_read_by_no_later_block():
    dropping = model(groups=1)
    x = tokens()
    kept = dropping(x, policy="greedy", gather=False).kept[:, 0]
    dropping._chosen = lambda p, policy, generator: kept
    plain = dropping(x, policy="greedy", gather=False).y
    other = torch.where(kept.unsqueeze(-1), x, 100 * tokens(seed=3))
    assert torch.equal(dropping(other, policy="greedy", gather=False).y, plain)


@pytest.mark.parametrize("policy", ["sample", "greedy"])
def test_a_dropped_token_stays_dropped_and_the_policy_token_is_kept(policy):
    out = model()(tokens(rows=50), policy=policy, generator=same_seed())
    assert out.kept[:, :, 0].all()
    assert (out.kept[:, 1:] <= out.kept[:, :-1]).all()
    assert (out.kept[:, 1:].sum() < out.kept[:, :-1].sum()).all()
    # a token that has been dropped has no probability
    assert (out.probabilities[:, 1:][~out.kept[:, :-1]] == 0).all()
    torch.testing.assert_close(out.ratio, out.kept[:, :, 1:].double().mean(2), rtol=0, atol=1e-12)


def test_at_inference_tokens_above_the_threshold_are_kept():
    for threshold in (0.3, 0.5):
        dropping = model(groups=1, threshold=threshold)
        out = dropping(tokens(), policy="greedy")
        assert torch.equal(out.kept, out.probabilities > threshold)
    assert model(threshold=1.0)(tokens()).ratio.sum() == 0
    assert model(threshold=0.0)(tokens()).kept.all()


def test_modes_choose_policy_and_gathering(monkeypatch):
    dropping, seen = model(), []

    def noted(p, policy, generator):
        seen.append((policy, p.shape[1]))
        return p > 0.5

    dropping._chosen = noted
    dropping(tokens())
    assert seen[0] == ("greedy", 11)
    assert seen[-1][1] < 11
    seen.clear()
    dropping.train()(tokens())
    assert seen == [("sample", 11)] * 3


def test_sampling_follows_the_probabilities():
    dropping = model(groups=1)
    x = tokens(rows=1).expand(4000, -1, -1)
    out = dropping(x, policy="sample", gather=False, generator=same_seed())
    p = out.probabilities[0, 0]
    error = (p * (1 - p) / 4000).sqrt()
    assert ((out.kept[:, 0].double().mean(0) - p).abs() <= 4 * error + 1e-12).all()


def test_the_reward_is_that_of_the_paper():
    ratio = torch.tensor([[0.5], [0.5], [1.0], [0.0]])
    right = torch.tensor([True, False, True, True])
    torch.testing.assert_close(reward(ratio, right, penalty=3.0), torch.tensor([0.75, -3.0, 0.0, 1.0]))
    two = reward(torch.tensor([[0.5, 0.0]]), right[:1], penalty=1.0, shares=(1.0, 0.5))
    assert float(two) == pytest.approx((0.75 + 0.5) / 1.5)


def pretend(logits, kept, ratio):
    """The output of a pass with probabilities ``sigmoid(logits) (B, G, N)`` of the tokens beside the first."""
    p = logits.sigmoid()
    log_policy = torch.zeros(len(kept), dtype=logits.dtype)
    before = torch.ones_like(kept[:, 0])
    for g in range(kept.shape[1]):
        each = torch.where(kept[:, g], p[:, g].log(), (1 - p[:, g]).log())
        log_policy = log_policy + torch.where(before, each, 0.0).sum(1)
        before = kept[:, g]
    return IARed2Output(torch.empty(0), kept, p, log_policy, ratio)


def policies(groups, count):
    """Every choice of every group, a later one within an earlier one."""
    single = list(itertools.product((True, False), repeat=count))
    chains = [
        c
        for c in itertools.product(single, repeat=groups)
        if all(b <= a for u, v in itertools.pairwise(c) for a, b in zip(u, v, strict=True))
    ]
    return torch.tensor(chains)


def is_right(kept):
    """A prediction that is right where one of the first three tokens is kept."""
    return kept[:, -1, :3].any(1)


@pytest.mark.parametrize(("groups", "count"), [(1, 8), (1, 6), (2, 4)])
def test_the_policy_gradient_is_that_of_all_policies(groups, count):
    torch.manual_seed(3)
    theta = torch.randn(groups, count, dtype=torch.float64)
    # the choice at inference keeps the first token, and most choices are right
    theta[:, 0] = 2.0
    shares = (1.0, 0.5)[:groups]
    options = {"penalty": 2.0, "shares": shares}

    def gain(kept):
        return reward(kept.double().mean(2), is_right(kept), **options)

    every = policies(groups, count)
    leaf = theta.clone().requires_grad_()
    probability = pretend(leaf.expand(len(every), -1, -1), every, every.double().mean(2)).log_policy.exp()
    assert float(probability.detach().sum()) == pytest.approx(1)
    (exact,) = torch.autograd.grad((probability * gain(every)).sum(), leaf)

    samples, generator = 20_000, torch.Generator().manual_seed(0)
    drawn = torch.bernoulli(theta.sigmoid().expand(samples, -1, -1), generator=generator) > 0
    kept = drawn.cumprod(1) > 0
    choice = (theta.sigmoid() > 0.5).cumprod(0).expand(samples, -1, -1) > 0
    spread = {}
    for name in ("with", "without"):
        each = theta.expand(samples, -1, -1).clone().requires_grad_()
        sampled = pretend(each, kept, kept.double().mean(2))
        baseline = (
            (IARed2Output(*sampled[:4], choice.double().mean(2)), is_right(choice)) if name == "with" else (None,)
        )
        loss = self_critical_loss(sampled, is_right(kept), *baseline, **options)
        (grad,) = torch.autograd.grad(loss, each)
        grad = -grad * samples
        error = grad.std(0) / math.sqrt(samples)
        assert ((grad.mean(0) - exact).abs() <= 3 * error).all()
        spread[name] = float(grad.var(0).sum())
    # of one group, as each phase of the curriculum has it, the choice at inference is near the mean reward here
    assert groups > 1 or spread["with"] < spread["without"]


def test_the_log_policy_of_a_pass_is_that_of_its_choices():
    dropping = model()
    out = dropping(tokens(), policy="sample", generator=same_seed())
    for b in range(4):
        expected, before = 0.0, [True] * 11
        for g in range(3):
            for j in range(1, 11):
                if before[j]:
                    p = float(out.probabilities[b, g, j].detach())
                    expected += math.log(p if out.kept[b, g, j] else 1 - p)
            before = out.kept[b, g].tolist()
        assert float(out.log_policy[b].detach()) == pytest.approx(expected, abs=1e-9)


def test_the_policy_gradient_reaches_the_interpreters():
    dropping = model().train()
    x = tokens()
    sampled, greedy = dropping(x, generator=same_seed()), dropping(x, policy="greedy")
    right, wrong = torch.tensor([True, False, True, True]), torch.tensor([True, True, False, True])
    self_critical_loss(sampled, right, greedy, wrong, penalty=3.0, shares=dropping.shares).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in dropping.interpreters.parameters())


def test_each_phase_trains_one_interpreter_or_the_blocks_behind_it():
    dropping = model()
    for phase in range(6):
        trained = dropping.set_phase(phase)
        group, blocks = divmod(phase, 2)
        expected = list((dropping.groups[group:] if blocks else dropping.interpreters[group]).parameters())
        assert all(a is b for a, b in zip(trained, expected, strict=True))
        marked = [p for p in dropping.parameters() if p.requires_grad]
        assert {id(p) for p in marked} == {id(p) for p in expected}
        kept = dropping(tokens(), policy="greedy").kept
        assert dropping.active == group + 1
        assert all(torch.equal(kept[:, g], kept[:, group]) for g in range(group, 3))
    assert len(dropping.set_phase(None)) == len(list(dropping.parameters()))
    assert dropping.active == 3


def test_the_cost_is_linear_in_the_kept_share_of_each_group():
    dropping = model(depth=5, groups=3)
    assert dropping.sizes == (2, 2, 1)
    assert dropping.shares == (1.0, 3 / 5, 1 / 5)
    found = dropping.cost(torch.tensor([[1.0, 0.5, 0.2]]))
    assert float(found) == pytest.approx((2 + 1 + 0.2) / 5)
    keep = (0.7, 0.5, 0.25)
    thirds = model(depth=6).cost(torch.tensor([keep]))
    assert float(thirds) == pytest.approx(1 - sum(1 - k for k in keep) / 3)


def test_rows_do_not_depend_on_each_other():
    dropping = model()
    x = tokens()
    whole = dropping(x)
    for b in range(4):
        torch.testing.assert_close(dropping(x[b : b + 1]).y, whole.y[b : b + 1], rtol=0, atol=1e-12)


def test_no_rows_and_the_policy_token_alone():
    dropping = model()
    assert dropping(tokens(rows=0)).y.shape == (0, 11, 16)
    out = dropping(tokens(count=1))
    assert out.kept.all()
    assert out.y.isfinite().all()


def test_a_trained_policy_keeps_the_informative_tokens():
    """Two of eight tokens carry the label of the row; the policy learns to drop the other six."""
    torch.manual_seed(0)
    stack = build_stack("softmax", 16, depth=2, options={"heads": 2}, expansion=2.0)
    dropping, head = IARed2(stack.residual_blocks, groups=1, heads=2), nn.Linear(16, 2)
    first, mark = torch.randn(16), torch.randn(2, 16) * 2

    def batch(rows=64):
        label = torch.randint(2, (rows,))
        informative = torch.rand(rows, 8).argsort(1) < 2
        x = torch.randn(rows, 8, 16) * 0.3 + informative.unsqueeze(-1) * mark[label].unsqueeze(1)
        return torch.cat([first.expand(rows, 1, 16), x], 1), label, informative

    def answer(out):
        return head(out.y[:, 0])

    optimiser = torch.optim.Adam([*dropping.parameters(), *head.parameters()], 3e-3)
    for _ in range(60):
        x, label, _ = batch()
        loss = nn.functional.cross_entropy(answer(dropping(x, policy="all")), label)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    optimiser = torch.optim.Adam(dropping.set_phase(0), 1e-2)
    for _ in range(150):
        x, label, _ = batch()
        sampled = dropping(x, policy="sample")
        with torch.no_grad():
            greedy = dropping(x, policy="greedy")
            rights = [answer(out).argmax(1) == label for out in (sampled, greedy)]
        loss = self_critical_loss(sampled, rights[0], greedy, rights[1], penalty=3.0)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    dropping.eval()
    x, label, informative = batch(500)
    out = dropping(x)
    assert (answer(out).argmax(1) == label).float().mean() > 0.95
    assert out.ratio.mean() < 0.45
    found = out.kept[:, 0, 1:]
    assert found[informative].float().mean() > found[~informative].float().mean()


def test_what_does_not_fit_is_named():
    blocks = build_stack("softmax", 16, depth=2).residual_blocks
    wide = ResidualBlock(create("softmax", dim=32), None)
    dropping = model()
    padding = torch.ones(4, 11, dtype=torch.bool)
    padding[1, 0] = False
    out = dropping(tokens())
    right = torch.ones(4, dtype=torch.bool)
    for call, message in (
        (lambda: IARed2(blocks, groups=3), "groups: found 3, expected 1 to 2"),
        (lambda: IARed2(blocks, groups=0), "groups: found 0"),
        (lambda: IARed2(blocks, groups=1, threshold=1.5), "threshold: found 1.5"),
        (lambda: IARed2([*blocks, wide], groups=1), r"blocks: found widths \[16, 32\]"),
        (lambda: Interpreter(16, heads=3), "heads, width: found 3 and None"),
        (lambda: Interpreter(16, heads=0), "heads, width: found 0"),
        (lambda: dropping(torch.randn(2, 3, 4, 16)), "x: found shape"),
        (lambda: dropping(tokens(), mask=Mask(padding=padding)), "token 0 as padding"),
        (lambda: dropping(tokens(), mask=Mask(window=2)), "mask: found window, expected padding only"),
        (lambda: dropping.set_phase(6), "phase: found 6, expected 0 to 5"),
        (lambda: reward(out.ratio, right, penalty=-1.0), "penalty: found -1.0"),
        (lambda: reward(out.ratio, right, penalty=1.0, shares=(1.0,)), "shares: found"),
        (lambda: self_critical_loss(out, right, out, penalty=1.0), "greedy: found one of greedy and greedy_right"),
    ):
        with pytest.raises(ArgumentError, match=message):
            call()
    with pytest.raises(MaskError):
        dropping(tokens(), mask=Mask(padding=padding[:, :5]))
