"""The Block Transformer: what its logits depend on, both caches, their size, the published sizes."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from manyheads.core.backbones.block_transformer import PRESETS, BlockTransformer
from manyheads.core.errors import ArgumentError, StateError, UnknownNameError
from manyheads.core.mask import Mask
from manyheads.core.state import leaves

EMBEDDERS, COUPLINGS = ("lookup", "cls", "projection"), ("prefix", "summation", "cross")
FORMS = [{"embedder": e, "coupling": c} for e in EMBEDDERS for c in COUPLINGS]
FORMS += [
    {"block_length": 1},
    {"block_length": 1, "prefix": 1, "coupling": "cross"},
    {"block_length": 2, "prefix": 3, "positions": "learned"},
    {"layer": "lmu"},
    {"layer": "gtrxl", "options": {"memory": 8}, "positions": "none"},
    {"options": {"heads": 2, "window": 3}},
]


def form_id(form):
    return ", ".join(f"{key}={value}" for key, value in form.items())


def made(**form):
    torch.manual_seed(0)
    base = {"dim": 12, "block_length": 3, "block_layers": 2, "token_layers": 2, "encoder_layers": 1, "encoder_dim": 8}
    model = BlockTransformer(40, **{**base, "context": 60, **form}).double().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return model


def influence(model, tokens):
    """Whether each logit row depends on each token: the tokens differ, so each has rows of its own in the tables."""
    ids = torch.arange(tokens).unsqueeze(0)
    logits = model(ids)[0]
    tables = [model.embed.weight, model.embed_blocks.embed.weight]
    found = torch.zeros(logits.shape[0], tokens, dtype=torch.bool)
    for row, one in enumerate(logits):
        for grad in torch.autograd.grad(one.square().sum(), tables, retain_graph=True, allow_unused=True):
            if grad is not None:
                found[row] |= grad[:tokens].abs().sum(1) > 0
    return found


@pytest.mark.parametrize("form", FORMS, ids=form_id)
def test_logits_depend_on_all_earlier_tokens_and_on_no_other(form):
    model = made(**form)
    length = model.block_length
    tokens = 3 * length + max(length - 1, 1)
    expected = torch.arange(tokens) < torch.arange(length, tokens).unsqueeze(1)
    assert torch.equal(influence(model, tokens), expected)


def test_a_context_of_the_block_itself_would_be_seen():
    class Leaks(BlockTransformer):
        def contexts(self, blocks, state=None, **more):
            c, state = super().contexts(blocks, state, **more)
            return c.roll(-1, 1), state

    torch.manual_seed(0)
    model = Leaks(40, dim=12, block_length=3).double()
    seen = influence(model, 9)
    assert (seen & (torch.arange(9) >= torch.arange(3, 9).unsqueeze(1))).any()


@pytest.mark.parametrize("form", FORMS, ids=form_id)
def test_generation_has_the_logits_of_the_teacher_forced_forward(form):
    model = made(**form)
    length, new = model.block_length, 2 * model.block_length + 1
    prompts = [[5], [1, 2, 8, 4, 0, 9, 11, 3], [7, 7, 30]]
    seen = []
    hook = model.output.register_forward_hook(lambda module, given, out: seen.append(out))
    found = model.generate(prompts, new, temperature=0)
    hook.remove()
    seen = torch.stack(seen, 1)
    assert seen.shape[1] == new
    longest = -(-8 // length) * length
    ids = torch.full((3, longest + new), 39)
    real = torch.zeros(3, longest + new, dtype=torch.bool)
    for row, (prompt, more) in enumerate(zip(prompts, found, strict=True)):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt + more)
        real[row, longest - len(prompt) :] = True
    whole = model(ids, mask=Mask(padding=real))[:, longest - length :]
    torch.testing.assert_close(seen, whole, rtol=1e-10, atol=1e-10)
    assert whole.argmax(-1).tolist() == found


@pytest.mark.parametrize("form", FORMS, ids=form_id)
def test_padding_on_the_left_changes_no_logit(form):
    model = made(**form)
    length = model.block_length
    ids = torch.randint(40, (1, 3 * length + 1))
    real = torch.ones_like(ids, dtype=torch.bool)
    real[:, : length // 2] = False
    alone = model(ids, mask=Mask(padding=real))
    # two blocks of padding more, whose ids are not even of the vocabulary
    padded = functional.pad(ids.masked_fill(~real, 999), (2 * length, 0), value=-1)
    found = model(padded, mask=Mask(padding=functional.pad(real, (2 * length, 0))))
    torch.testing.assert_close(found[:, 2 * length :], alone, rtol=1e-12, atol=1e-12)
    prompt = ids[0, length // 2 :].tolist()
    both = model.generate([prompt, [1] * (4 * length)], 4, temperature=0)
    assert both[0] == model.generate([prompt], 4, temperature=0)[0]


def test_the_loss_is_over_real_tokens_after_a_real_block():
    model = made()
    ids = torch.randint(40, (2, 11))
    expected = functional.cross_entropy(model(ids).flatten(0, 1), ids[:, 3:].flatten())
    torch.testing.assert_close(model.loss(ids), expected)
    real = torch.arange(11) >= torch.tensor([[0], [4]])
    logits = model(ids, mask=Mask(padding=real))
    log_p = logits.log_softmax(-1).gather(2, ids[:, 3:, None])[..., 0]
    # row 1: tokens 4 and 5 are the rest of the first real block, which has no context
    expected = -(log_p[0].sum() + log_p[1, 3:].sum()) / (8 + 5)
    torch.testing.assert_close(model.loss(ids, mask=Mask(padding=real)), expected)
    model.loss(ids).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_short_sequences_have_no_logits():
    model = made()
    for tokens, rest in ((0, 0), (2, 0), (3, 0), (4, 1)):
        assert model(torch.zeros(2, tokens, dtype=torch.int64)).shape == (2, rest, 40)
    assert model(torch.zeros(0, 7, dtype=torch.int64)).shape == (0, 4, 40)


@pytest.mark.parametrize("coupling", COUPLINGS)
def test_the_caches_hold_the_bytes_of_the_formula(coupling):
    model = made(coupling=coupling)
    blocks = model.block_decoder.init_state(2, dtype=torch.float64)
    tokens = model.token_decoder.init_state(2, dtype=torch.float64)
    held = sum(leaf.nbytes for leaf in leaves((blocks, tokens)) if leaf.is_floating_point())
    assert held == model.kv_bytes(60, batch=2, dtype=torch.float64)


def test_a_long_cache_is_an_eighth_of_that_of_a_vanilla_model():
    model = BlockTransformer(10, dim=16, block_layers=3, token_layers=3, context=4)
    for tokens, least in ((64, 5.3), (2048, 7.9), (10**8, 7.99999)):
        vanilla = 2 * 6 * 16 * tokens * 4
        exact = 2 * 3 * 16 * tokens // 4 * 4 + 2 * 3 * 16 * (2 + 4) * 4
        assert model.kv_bytes(tokens) == exact
        assert least < vanilla / exact < 8


@pytest.mark.parametrize(
    ("name", "width", "layers", "millions"),
    [
        ("5m", 256, 6, 5),
        ("19m", 512, 6, 19),
        ("85m", 768, 12, 85),
        ("300m", 1024, 24, 300),
        ("800m", 2048, 16, 800),
        ("1.2b", 2048, 24, 1200),
    ],
)
def test_the_published_sizes_have_their_parameters(name, width, layers, millions):
    with torch.device("meta"):
        model = BlockTransformer.preset(name)
    decoders = [p.numel() for stack in (model.block_decoder, model.token_decoder) for p in stack.parameters()]
    # GPT-NeoX: a layer has 12 D^2 + 13 D parameters, a last norm 2 D
    assert sum(decoders) == layers * (12 * width**2 + 13 * width) + 4 * width
    assert sum(decoders) / 1e6 == pytest.approx(millions, rel=0.06)
    assert model.embed_blocks.embed.weight.shape == (50304, width // 4)
    assert sum(p.numel() for p in model.expand.parameters()) == width * 2 * width + 2 * width
    assert set(PRESETS) == {"5m", "19m", "85m", "300m", "800m", "1.2b"}


def test_a_projection_begins_as_the_mean():
    model = made(embedder="projection")
    with pytest.raises(ArgumentError, match="mean_start: found True with embedder='lookup'"):
        made(mean_start=True)
    model = BlockTransformer(40, dim=6, embedder="projection", mean_start=True)
    blocks = torch.randint(40, (2, 3, 4))
    torch.testing.assert_close(model.embed_blocks(blocks, None), model.embed_blocks.embed(blocks).mean(2))


@pytest.mark.parametrize(
    ("form", "said"),
    [
        ({"dim": 10}, "block_length: found 3 with embedder='lookup', expected a divisor of dim = 10"),
        ({"coupling": "summation", "prefix": 2}, "prefix: found 2 with coupling='summation', expected L = 3"),
        ({"layer": "auto-correlation"}, "layer: found auto-correlation with causality .no."),
        ({"block_length": 0}, "block_length: found 0, expected 1 or more"),
        ({"prefix": 0}, "prefix: found 0"),
    ],
)
def test_what_cannot_be_built_is_refused(form, said):
    with pytest.raises(ArgumentError, match=said):
        made(**form)


def test_what_cannot_be_run_is_refused():
    model = made(context=6)
    with pytest.raises(StateError, match="3 tokens do not fit into max_len = 2"):
        model.generate([[1]], 12)
    with pytest.raises(ArgumentError, match=r"prompts\[0\]: found the id 40"):
        model.generate([[40]], 1)
    with pytest.raises(ArgumentError, match="mask: found reset, expected padding alone"):
        model(torch.zeros(1, 6, dtype=torch.int64), mask=Mask(reset=torch.zeros(1, 6, dtype=torch.bool)))
    with pytest.raises(UnknownNameError, match="did you mean '85m'"):
        BlockTransformer.preset("85")


def test_a_row_ends_with_the_stop_token_and_the_others_go_on():
    model = made()
    free = model.generate([[1], [2, 3]], 8, temperature=0)
    stop = free[0][2]
    for row, all_tokens in zip(model.generate([[1], [2, 3]], 8, temperature=0, stop=stop), free, strict=True):
        assert row == all_tokens[: all_tokens.index(stop) + 1 if stop in all_tokens else 8]
    assert model.generate([], 3) == []
    assert model.generate([[1]], 0) == [[]]
