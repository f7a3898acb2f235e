"""MiniLM: the losses against loops, their invariances, the projections of our layers, and a distillation."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from manyheads.core import Mask, create
from manyheads.core.backbones.sequence_encoder import SequenceEncoder
from manyheads.core.backbones.stack import build_stack
from manyheads.core.errors import ArgumentError
from manyheads.core.methods.minilm import (
    Projections,
    Recorder,
    distil,
    last_attention,
    minilm_loss,
    relation_loss,
    stages,
)


def softmax(scores):
    top = max(scores)
    weights = [math.exp(s - top) for s in scores]
    return [w / sum(weights) for w in weights]


def oracle(student_a, student_b, teacher_a, teacher_b, allowed=None):
    """The mean of KL(teacher || student) over heads and queries, in loops."""
    batch, heads, tokens, _ = student_a.shape
    total, count = 0.0, 0
    for b in range(batch):
        for h in range(heads):
            for t in range(tokens):
                row = None if allowed is None else allowed[b if len(allowed) > 1 else 0, 0, t]
                seen = [s for s in range(tokens) if row is None or row[s]]
                if not seen:
                    continue
                found = []
                for a, c in ((teacher_a, teacher_b), (student_a, student_b)):
                    scale = a.shape[-1] ** -0.5
                    found.append(softmax([float(a[b, h, t] @ c[b, h, s]) * scale for s in seen]))
                total += sum(p * math.log(p / q) for p, q in zip(*found, strict=True))
                count += 1
    return total / max(count, 1)


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def projections(heads=3, width=4, seed=0, tokens=7, allowed=None):
    parts = (random(2, heads, tokens, width, seed=3 * seed + i) for i in range(3))
    return Projections(*parts, allowed)


PADDING = torch.tensor([[1, 1, 1, 1, 1, 0, 0], [0, 1, 1, 0, 1, 1, 1]], dtype=torch.bool)
MASKS = {
    "none": None,
    "padding": (PADDING.unsqueeze(1) & PADDING.unsqueeze(2)).unsqueeze(1),
    "causal": torch.ones(1, 1, 7, 7, dtype=torch.bool).tril(),
    "a row without tokens": (PADDING.unsqueeze(1) & torch.tensor([True, False])[:, None, None]).unsqueeze(1),
}


@pytest.mark.parametrize("allowed", MASKS.values(), ids=MASKS)
def test_the_losses_are_those_of_the_loops(allowed):
    if allowed is not None:
        allowed = allowed.expand(-1, 1, 7, 7)
    student, teacher = projections(width=4, allowed=allowed), projections(width=6, seed=1)
    found = minilm_loss(student, teacher)
    attention = oracle(student.query, student.key, teacher.query, teacher.key, allowed)
    value = oracle(student.value, student.value, teacher.value, teacher.value, allowed)
    assert float(found.attention) == pytest.approx(attention, abs=1e-12)
    assert float(found.value) == pytest.approx(value, abs=1e-12)
    assert float(found.total) == pytest.approx(attention + value, abs=1e-12)
    assert found.attention > 0


def test_the_loss_is_torchs_divergence():
    student, teacher = projections(), projections(seed=1)

    def log(parts):
        return ((parts.query @ parts.key.mT) / 2.0).log_softmax(-1)

    expected = nn.functional.kl_div(log(student), log(teacher), log_target=True, reduction="none").sum(-1).mean()
    torch.testing.assert_close(minilm_loss(student, teacher).attention, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("allowed", MASKS.values(), ids=MASKS)
def test_gradients_are_those_of_finite_differences(allowed):
    parts = [random(2, 2, 7, 3, seed=i).requires_grad_() for i in range(2)]
    teacher = [random(2, 2, 7, 5, seed=i) for i in (2, 3)]
    assert torch.autograd.gradcheck(lambda a, b: relation_loss(a, b, *teacher, allowed=allowed), parts)


def test_a_copy_has_no_loss_and_no_other_model_less():
    student = projections()
    assert minilm_loss(student, student).total.abs() < 1e-12
    for seed in range(1, 5):
        loss = minilm_loss(student, projections(seed=seed))
        assert min(loss.attention, loss.value) > 0


def test_the_value_loss_is_blind_to_a_rotation_of_each_head():
    student, teacher = projections(), projections(seed=1)
    turns, _ = torch.linalg.qr(random(3, 4, 4, seed=9))
    turned = student._replace(value=student.value @ turns)
    plain = minilm_loss(student, teacher).value
    torch.testing.assert_close(minilm_loss(turned, teacher).value, plain, rtol=0, atol=1e-12)
    torch.testing.assert_close(minilm_loss(turned, student).value, torch.zeros_like(plain), rtol=0, atol=1e-12)
    # a rotation across heads is not one of each
    mixed = student._replace(value=student.value.flip(1))
    assert (minilm_loss(mixed, teacher).value - plain).abs() > 1e-3


def test_the_divergence_goes_from_teacher_to_student():
    student, teacher = projections(), projections(seed=1)
    assert (minilm_loss(student, teacher).total - minilm_loss(teacher, student).total).abs() > 1e-3


def test_the_gradient_goes_to_the_student_only():
    student, teacher = projections(), projections(seed=1)
    parts = [part.requires_grad_() for part in (*student[:3], *teacher[:3])]
    minilm_loss(student, teacher).total.backward()
    assert all(part.grad is not None and part.grad.abs().sum() > 0 for part in parts[:3])
    assert all(part.grad is None for part in parts[3:])


def test_hidden_tokens_are_read_neither_by_value_nor_by_gradient():
    allowed = MASKS["padding"]
    student, teacher = projections(allowed=allowed), projections(seed=1)
    plain = minilm_loss(student, teacher).total
    hidden = ~PADDING[:, None, :, None]
    filled = student._replace(**{n: torch.where(hidden, 1e4, getattr(student, n)) for n in ("query", "key", "value")})
    parts = [part.requires_grad_() for part in filled[:3]]
    loss = minilm_loss(filled, teacher).total
    torch.testing.assert_close(loss, plain, rtol=0, atol=1e-12)
    for grad in torch.autograd.grad(loss, parts):
        assert grad.isfinite().all()
        assert (grad.masked_select(hidden) == 0).all()


def test_scores_of_half_precision_are_compared_in_float32():
    student = [random(1, 2, 5, 4, dtype=torch.float32).mul(60).half().requires_grad_() for _ in range(2)]
    teacher = [random(1, 2, 5, 4, seed=1, dtype=torch.float32).mul(60).half() for _ in range(2)]
    loss = relation_loss(*student, *teacher)
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    assert loss > 100
    loss.backward()
    assert student[0].grad.isfinite().all()


def test_relation_heads_let_the_numbers_of_heads_differ():
    student, teacher = projections(heads=2, width=6), projections(heads=4, width=6, seed=1)
    with pytest.raises(ArgumentError, match="heads: found 2 of the student and 4 of the teacher"):
        minilm_loss(student, teacher)
    found = minilm_loss(student, teacher, relation_heads=3)

    def cut(part):
        return part.transpose(1, 2).reshape(2, 7, 3, -1).transpose(1, 2)

    s, t = (Projections(*map(cut, parts[:3])) for parts in (student, teacher))
    assert (s.query.shape[-1], t.query.shape[-1]) == (4, 8)
    assert float(found.attention) == pytest.approx(oracle(s.query, s.key, t.query, t.key), abs=1e-12)
    same = minilm_loss(student, projections(heads=2, width=6, seed=1))
    again = minilm_loss(student, projections(heads=2, width=6, seed=1), relation_heads=2)
    torch.testing.assert_close(same.total, again.total, rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("layer", "options"),
    [
        ("softmax", {}),
        ("softmax", {"causal": True}),
        ("softmax", {"causal": True, "window": 3}),
        ("softmax", {"rotary": 100.0}),
        ("softmax", {"bias": True}),
        ("ssa", {}),
    ],
)
@pytest.mark.parametrize("padded", [False, True])
def test_recorded_projections_give_the_attention_of_the_layer(layer, options, padded):
    layer = create(layer, dim=24, heads=3, **options).double().eval()
    x = random(2, 7, 24)
    mask = Mask(padding=PADDING) if padded else None
    with Recorder(layer) as recorder:
        y = layer(x, mask=mask).y
    q, k, v, allowed = recorder.projections
    scores = q @ k.mT / 8**0.5
    weights = (scores if allowed is None else scores.masked_fill(~allowed, -1e9)).softmax(-1)
    mixed = layer.output((weights @ v).transpose(1, 2).flatten(2))
    if padded:
        mixed = mixed.masked_fill(~PADDING.unsqueeze(-1), 0.0)
    torch.testing.assert_close(mixed, y, rtol=0, atol=1e-12)


def test_the_last_self_attention_of_a_network_is_recorded_and_hooks_go():
    model = build_stack("softmax", 24, depth=3, cross=lambda dim: create("softmax", dim=dim, context_dim=8))
    last = model.layers[-1]
    assert last_attention(model) is last
    with Recorder(model) as recorder:
        model(torch.randn(2, 5, 24), context=torch.randn(2, 4, 8))
    first = recorder.projections
    assert first.query.shape == (2, 8, 5, 3)
    model(torch.randn(3, 6, 24), context=torch.randn(3, 4, 8))
    assert recorder.projections.query is not None
    assert recorder.projections.query.shape == first.query.shape
    assert not last._forward_pre_hooks
    with Recorder(model, layer=model.layers[0]) as recorder:
        model(torch.randn(2, 5, 24), context=torch.randn(2, 4, 8))
    assert not torch.equal(recorder.projections.query, first.query)


def encoder(dim, depth, heads=4, seed=0):
    torch.manual_seed(seed)
    return SequenceEncoder(build_stack("softmax", dim, depth=depth, options={"heads": heads}), outputs=3, vocabulary=20)


def teach(model, steps=60):
    """Let the teacher learn which of two marks comes first."""
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    for step in range(steps):
        x = torch.randint(20, (32, 12), generator=torch.Generator().manual_seed(step))
        label = (x < 5).int().argmax(1) % 3
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(x), label).backward()
        optimiser.step()


def test_a_student_of_half_width_and_half_depth_approaches_its_teacher():
    teacher, student = encoder(64, 4), encoder(32, 2, seed=1)
    teach(teacher)
    teacher.zero_grad()
    before = copy.deepcopy(teacher.state_dict())
    batches = [torch.randint(20, (32, 12), generator=torch.Generator().manual_seed(s)) for s in range(60)]
    losses = distil(student, teacher, batches, torch.optim.Adam(student.parameters(), 2e-3))
    assert len(losses) == 60
    first, last = (sum(float(x.total) for x in part) / 5 for part in (losses[:5], losses[-5:]))
    assert last < 0.6 * first
    assert teacher.training
    assert all(torch.equal(a, before[name]) for name, a in teacher.state_dict().items())
    assert all(p.grad is None for p in teacher.parameters())
    # the head and the last feed-forward network are not distilled
    assert all(p.grad is None for p in student.head.parameters())


def test_a_copy_of_the_teacher_stays_where_it_is():
    teacher = encoder(32, 2)
    student = copy.deepcopy(teacher)
    x = [torch.randint(20, (8, 12))]
    (loss,) = distil(student, teacher, x, torch.optim.SGD(student.parameters(), 0.1))
    assert loss.total.abs() < 1e-6


def test_a_small_student_has_an_assistant():
    assert stages(teacher=(12, 768), student=(6, 384)) == [(12, 384), (6, 384)]
    assert stages(teacher=(12, 768), student=(6, 768)) == [(6, 768)]
    assert stages(teacher=(12, 768), student=(12, 384)) == [(12, 384)]
    assert stages(teacher=(24, 1024), student=(6, 384)) == [(24, 384), (6, 384)]


def test_what_does_not_fit_is_named():
    student = projections()
    stream = create("softmax", dim=8, heads=2, causal=True, window=4)
    recorder = Recorder(stream)
    for call, message in (
        (lambda: minilm_loss(student, projections(tokens=6)), "teacher: found 2 rows of 6 tokens, expected 2 of 7"),
        (
            lambda: relation_loss(*student[:2], student.query, student.key[..., :2]),
            r"teacher: found .* expected two tensors",
        ),
        (
            lambda: minilm_loss(student, student, relation_heads=5),
            "relation_heads: found 5, expected a divisor of the width 12",
        ),
        (
            lambda: minilm_loss(student._replace(allowed=torch.ones(3, 1, 7, 7, dtype=torch.bool)), student),
            "allowed: found",
        ),
        (lambda: last_attention(nn.Linear(2, 2)), "found Linear without self-attention"),
        (lambda: Recorder(stream).projections, "found no call of the model"),
        (lambda: Recorder(stream, layer=create("softmax", dim=8, context_dim=8)), "attends to a context"),
        (lambda: stages(teacher=(0, 1), student=(1, 1)), "expected depths and widths of 1 or more"),
    ):
        with pytest.raises(ArgumentError, match=message):
            call()
    with recorder, pytest.raises(ArgumentError, match="state of a stream"):
        stream(torch.randn(2, 3, 8), stream.init_state(2))


def test_a_loss_of_student_to_teacher_is_found_out():
    """Negative control: the divergence of the wrong direction differs from the loops."""
    student, teacher = projections(), projections(seed=1)
    wrong = relation_loss(teacher.query, teacher.key, student.query, student.key)
    assert abs(float(wrong) - oracle(student.query, student.key, teacher.query, teacher.key)) > 1e-3
