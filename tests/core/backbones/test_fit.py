"""FIT: the naive form, what outputs depend on, groups, weights of the authors' code."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from manyheads.core.backbones.fit import FIT, AutoregressiveFIT, GroupRead, ImageFIT, parse_schedule
from manyheads.core.errors import ArgumentError

SIZES = {"dim": 6, "latent_dim": 8, "heads": 2, "latent_heads": 4, "latents": 2, "group_size": 3, "groups": 4}


def randomised(model, std=0.5):
    torch.manual_seed(1)
    for parameter in model.double().parameters():
        torch.nn.init.normal_(parameter, std=std)
    return model


def encoder(schedule="(2)1(1)2(1)", **changes):
    return randomised(FIT(schedule, **{"inputs": 5, **SIZES, **changes}))


def language_model(schedule="(1)1(1)1(1)", kind=AutoregressiveFIT, **changes):
    return randomised(kind(schedule, **{"vocabulary": 20, **SIZES, **changes}))


# The naive form: all tokens and all latents in two lists, one mask over [x; z] for each step, no folding of groups.


def norm(x, module):
    mean = x.mean(-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(-1, keepdim=True)
    return (x - mean) / (variance + 1e-6).sqrt() * module.weight + module.bias


def affine(x, module):
    return x @ module.weight.T + module.bias


def attend(queries, sources, part, heads, allowed):
    """Attention of every query over the sources that ``allowed[i][j]`` names, head by head."""
    q, k, v = affine(queries, part.query), affine(sources, part.key), affine(sources, part.value)
    width = q.shape[-1] // heads
    rows = []
    for i in range(q.shape[1]):
        chosen = [j for j in range(k.shape[1]) if allowed[i][j]]
        mixed = []
        for h in range(heads):
            at = slice(h * width, (h + 1) * width)
            scores = torch.stack([(q[:, i, at] * k[:, j, at]).sum(-1) for j in chosen], -1) / width**0.5
            weights = scores.exp() / scores.exp().sum(-1, keepdim=True)
            mixed.append(sum(weights[:, n : n + 1] * v[:, j, at] for n, j in enumerate(chosen)))
        rows.append(torch.cat(mixed, -1))
    return affine(torch.stack(rows, 1), part.output)


def layer(x, block, heads, allowed):
    read = norm(x, block.layer_norm)
    x = x + attend(read, read, block.layer, heads, allowed)
    hidden = affine(norm(x, block.feed_forward_norm), block.feed_forward.up)
    return x + affine(hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5)), block.feed_forward.down)


def naive_body(body, x, z, heads, *, causal=False, context=None):
    """``x (B, t, n, D)`` and ``z (B, t, m, E)`` after all stages."""
    (t, n), m = x.shape[1:3], z.shape[2]
    of_x, of_z = [g for g in range(t) for _ in range(n)], [g for g in range(t) for _ in range(m)]
    group = [*of_x, *of_z]
    count = t * n
    x, z = x.reshape(len(x), count, -1), z.reshape(len(z), t * m, -1)
    everything = range(count + t * m)
    # one mask over [x; z] of each kind of step
    local = [[group[i] == group[j] and (not causal or j <= i) for j in everything] for i in everything]
    same = [[group[i] == group[j] for j in everything] for i in everything]
    across = [[not causal or group[j] <= group[i] for j in everything] for i in everything]
    before = [[group[j] == group[i] - 1 for j in everything] for i in everything]
    xs, zs = slice(0, count), slice(count, None)
    for index, stage in enumerate(body.stages):
        for block in stage.local:
            x = layer(x, block, heads[0], [row[xs] for row in local[xs]])
        if not len(stage.across):
            continue
        read = stage.read
        allowed = [row[xs] for row in same[zs]]
        z = z + attend(norm(z, read.norm), norm(x, read.context_norm), read, min(heads), allowed)
        if context is not None:
            part = stage.context
            full = [[True] * context.shape[1]] * z.shape[1]
            z = z + attend(norm(z, part.norm), norm(context, part.context_norm), part, heads[1], full)
        for block in stage.across:
            z = layer(z, block, heads[1], [row[zs] for row in across[zs]])
        if index < len(body.stages) - 1:
            write, source = stage.write, z
            allowed = [row[zs] for row in (before if causal else same)[xs]]
            if causal:
                # group 0 is written from latents of zeros: m more sources at the end
                source = torch.cat([z, torch.zeros_like(z[:, :m])], 1)
                allowed = [row + [of_x[i] == 0] * m for i, row in enumerate(allowed)]
            x = x + attend(norm(x, write.norm), norm(source, write.context_norm), write, min(heads), allowed)
    return x.unflatten(1, (t, n)), z.unflatten(1, (t, m))


def naive(model, x, context=None):
    t, n = x.shape[1:3]
    x = norm(affine(x, model.stem), model.stem_norm) + model.places.x[:n]
    z = model.places.z[:t].expand(len(x), -1, -1, -1)
    x, z = naive_body(model.body, x, z, (model.heads, model.latent_heads), context=context)
    x = norm(x, model.x_norm)
    return (affine(x, model.output) if model.outputs else x), norm(z, model.z_norm)


def naive_logits(model, ids):
    x = model.embed.weight[ids].unflatten(1, (-1, model.group_size)) + model.places.x
    z = model.places.z[: x.shape[1]].expand(len(x), -1, -1, -1)
    x, _ = naive_body(model.body, x, z, (model.heads, model.latent_heads), causal=True)
    return norm(x, model.x_norm).flatten(1, 2) @ model.output.weight.T + model.output.bias


def agree(model, found, expected, inputs=()):
    """Outputs, and the gradients of a random sum of them, to 1e-10."""
    wanted = [*inputs, *(p for p in model.parameters())]
    torch.manual_seed(2)
    weights = [torch.randn_like(one) for one in found]
    gradients = []
    for outputs in (found, expected):
        total = sum((one * w).sum() for one, w in zip(outputs, weights, strict=True))
        gradients.append(torch.autograd.grad(total, wanted, allow_unused=True))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
    for one, other in zip(*gradients, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-9)


@pytest.mark.parametrize(
    "changes", [{}, {"schedule": "(0)1(2)"}, {"outputs": 3, "context_dim": 7}, {"dim": 8, "latent_dim": 4}], ids=str
)
def test_the_encoder_is_masked_attention_over_tokens_and_latents(changes):
    model = encoder(**changes)
    x = torch.randn(2, 4, 3, 5, dtype=torch.float64, requires_grad=True)
    context = torch.randn(2, 2, 7, dtype=torch.float64) if model.context_dim else None
    agree(model, model(x, context=context), naive(model, x, context), (x,))


def test_the_autoregressive_form_is_masked_attention_over_tokens_and_latents():
    model = language_model("(1)1(1)2(1)")
    ids = torch.randint(20, (2, 9))
    agree(model, (model(ids),), (naive_logits(model, ids),))


def test_a_short_last_group_and_a_smaller_group_size_are_run():
    model = language_model()
    ids = torch.randint(20, (2, 12))
    for tokens in (1, 3, 4, 8, 11):
        torch.testing.assert_close(model(ids[:, :tokens]), model(ids)[:, :tokens], rtol=1e-12, atol=1e-12)
    assert model(ids[:, :6], group_size=2).shape == (2, 6, 20)
    assert model(ids[:, :0]).shape == (2, 0, 20)


def influence(model, tokens):
    """Whether each logit row depends on each token: the tokens differ, so each has a row of its own in the table."""
    logits = model(torch.arange(tokens).unsqueeze(0))[0]
    rows = [torch.autograd.grad(one.square().sum(), model.embed.weight, retain_graph=True)[0] for one in logits]
    return torch.stack(rows)[:, :tokens].abs().sum(2) > 0


def test_logits_depend_on_all_earlier_tokens_and_on_no_later_one():
    model = language_model(tied=False)
    assert torch.equal(influence(model, 11), torch.ones(11, 11, dtype=torch.bool).tril())


def test_without_the_shift_the_rest_of_the_group_would_be_seen():
    model = language_model(tied=False)
    model.body.source = lambda z: z
    seen = influence(model, 12)
    block = torch.arange(12) // 3
    assert torch.equal(seen, block.unsqueeze(1) >= block)


@pytest.mark.parametrize("changes", [{"latents": 0}, {"schedule": "(2)0(1)"}, {"schedule": "(3)"}], ids=str)
def test_without_latents_one_group_is_a_plain_transformer(changes):
    model = encoder(**changes)
    x = torch.randn(2, 1, 3, 5, dtype=torch.float64)
    y = norm(affine(x[:, 0], model.stem), model.stem_norm) + model.places.x
    for stage in model.body.stages:
        assert stage.read is None
        for block in stage.local:
            y = layer(y, block, 2, [[True] * 3] * 3)
    torch.testing.assert_close(model(x).x[:, 0], norm(y, model.x_norm), rtol=1e-10, atol=1e-10)


def test_without_global_layers_groups_are_independent():
    x = torch.randn(1, 4, 3, 5, dtype=torch.float64)
    other = x.clone()
    other[:, 2] += 1
    for schedule, independent in (("(2)0(2)", True), ("(2)1(2)", False)):
        model = encoder(schedule)
        difference = (model(x).x - model(other).x).abs().amax((0, 2, 3))
        assert ((difference == 0) == torch.tensor([True, True, False, True])).all() == independent


def test_a_permutation_of_groups_and_their_latents_permutes_the_outputs():
    model = encoder()
    x, order = torch.randn(2, 4, 3, 5, dtype=torch.float64), torch.tensor([2, 0, 3, 1])
    before = model(x)
    with torch.no_grad():
        model.places.z.copy_(model.places.z[order])
    for one, other in zip(model(x[:, order]), before, strict=True):
        torch.testing.assert_close(one, other[:, order], rtol=1e-12, atol=1e-12)


def test_sinusoidal_positions_take_any_number_of_groups_and_tokens():
    model = encoder(positions="sinusoidal", groups=None)
    for shape in ((1, 1), (9, 7)):
        x, z = model(torch.randn(2, *shape, 5, dtype=torch.float64))
        assert x.shape == (2, *shape, 6)
        assert z.shape == (2, shape[0], 2, 8)
    causal = language_model(positions="sinusoidal", groups=None)
    ids = torch.randint(20, (1, 40))
    torch.testing.assert_close(causal(ids)[:, :9], causal(ids[:, :9]), rtol=1e-12, atol=1e-12)


def test_the_loss_is_that_of_the_next_token():
    model = language_model()
    ids = torch.randint(20, (2, 10))
    logits = model(ids)[:, :-1].log_softmax(-1)
    expected = -logits.gather(2, ids[:, 1:, None]).mean()
    torch.testing.assert_close(model.loss(ids), expected)


@pytest.mark.parametrize(
    ("schedule", "stages"),
    [("(2)4(2)4(2)", ((2, 4), (2, 4), (2, 0))), ("(12)3", ((12, 3),)), ("(0)1(1)0", ((0, 1), (1, 0)))],
)
def test_a_schedule_is_parsed(schedule, stages):
    assert parse_schedule(schedule) == stages


@pytest.mark.parametrize("schedule", ["", "2", "(2)(2)", "(2)4(", "(a)1", "(2)4 (2)", "(0)0"])
def test_another_schedule_is_refused_in_words(schedule):
    with pytest.raises(ArgumentError, match=r"schedule: found '.*', expected"):
        parse_schedule(schedule)


def test_what_does_not_fit_is_refused_in_words():
    with pytest.raises(ArgumentError, match="groups: found none with positions='learned'"):
        encoder(groups=None)
    with pytest.raises(ArgumentError, match="found 5 groups, expected 4 at most"):
        encoder()(torch.zeros(1, 5, 3, 5, dtype=torch.float64))
    with pytest.raises(ArgumentError, match="found 4 tokens in a group, expected 3 at most"):
        encoder()(torch.zeros(1, 4, 4, 5, dtype=torch.float64))
    with pytest.raises(ArgumentError, match=r"fit: x: found .*, expected floats \(B, groups, tokens, 5\)"):
        encoder()(torch.zeros(1, 4, 4, dtype=torch.float64))
    with pytest.raises(ArgumentError, match="context: found none, but it is built with context_dim=3"):
        encoder(context_dim=3)(torch.zeros(1, 4, 3, 5, dtype=torch.float64))
    with pytest.raises(ArgumentError, match="heads: found 4, expected a divisor of the width 6"):
        GroupRead(8, 6, heads=4)
    with pytest.raises(ArgumentError, match="expected multiples of patch times window = 16"):
        ImageFIT(image_size=24, patch=4, window=4)
    with pytest.raises(ArgumentError, match="found the variable 'stem_y/kernel', expected those of FIT or FITAR"):
        encoder().from_reference({"stem_y/kernel": torch.zeros(1, 1)})


# Weights of the authors' code: variables by the names of a checkpoint of pix2seq, and its equations over them.


def variables(schedule, sizes, *, autoregressive):
    """Random variables in the shapes of Keras: dense kernels (in, out), attention kernels (in, heads, head width)."""
    found = {}
    d, e, h, i = sizes["dim"], sizes["latent_dim"], sizes["heads"], sizes["latent_heads"]
    torch.manual_seed(3)

    def new(name, *shape):
        found[f"{name}/.ATTRIBUTES/VARIABLE_VALUE"] = torch.randn(*shape, dtype=torch.float64) * 0.4

    def layer_norm(name, width):
        new(f"{name}/gamma", width)
        new(f"{name}/beta", width)

    def attention(name, to, source, heads, width):
        for part, given in (("query", to), ("key", source), ("value", source)):
            new(f"{name}/_{part}_dense/kernel", given, heads, width)
            new(f"{name}/_{part}_dense/bias", heads, width)
        new(f"{name}/_output_dense/kernel", heads, width, to)
        new(f"{name}/_output_dense/bias", to)

    def network(name, count, width, heads):
        for n in range(count):
            kind, first = ("dec_layers", "self_ln") if autoregressive else ("enc_layers", "mha_ln")
            base = f"{name}/{kind}/{n}"
            layer_norm(f"{base}/{first}", width)
            attention(f"{base}/{'self_mha' if autoregressive else 'mha'}", width, width, heads, width // heads)
            layer_norm(f"{base}/mlp/layernorms/0", width)
            for part, a, b in (("dense1", width, 4 * width), ("dense2", 4 * width, width)):
                new(f"{base}/mlp/mlp_layers/0/{part}/kernel", a, b)
                new(f"{base}/mlp/mlp_layers/0/{part}/bias", b)

    def exchange(name, to, source):
        layer_norm(f"{name}/cross_ln", to)
        layer_norm(f"{name}/enc_ln", source)
        attention(f"{name}/cross_mha", to, source, min(h, i), min(d, e) // min(h, i))

    if autoregressive:
        new("token_embedding", 20, d)
        new("outp_bias", 20)
    else:
        new("stem/kernel", 5, d)
        new("stem/bias", d)
        layer_norm("stem_ln", d)
        layer_norm("l_output_ln", e)
    new("x_pos_emb", sizes["group_size"], d)
    new("latent_pos_emb", sizes["groups"] * sizes["latents"], e)
    for n, (local, across) in enumerate(schedule):
        network(f"x_network/{n}", local, d, h)
        if across:
            exchange(f"l2x_cross_attn/{n}", e, d)
            network(f"l_network/{n}", across, e, i)
        if n < len(schedule) - 1:
            exchange(f"x2l_cross_attn/{n}", d, e)
    layer_norm("x_output_ln", d)
    return found


class Keras:
    """The equations of pix2seq's classes over such variables."""

    def __init__(self, values, prefix=""):
        self.values, self.prefix = values, prefix

    def __call__(self, name):
        return self.values[f"{self.prefix}{name}/.ATTRIBUTES/VARIABLE_VALUE"]

    def within(self, name):
        return Keras(self.values, f"{self.prefix}{name}/")

    def norm(self, x):
        return functional.layer_norm(x, x.shape[-1:], self("gamma"), self("beta"), 1e-6)

    def attention(self, x, source, allowed=None):
        q, k, v = (
            torch.einsum("bnd,dhe->bnhe", given, self(f"_{part}_dense/kernel")) + self(f"_{part}_dense/bias")
            for part, given in (("query", x), ("key", source), ("value", source))
        )
        scores = torch.einsum("bnhe,bshe->bhns", q, k) / q.shape[-1] ** 0.5
        if allowed is not None:
            scores = scores + (1 - allowed.double()) * -1e9
        mixed = torch.einsum("bhns,bshe->bnhe", scores.softmax(-1), v)
        return torch.einsum("bnhe,hed->bnd", mixed, self("_output_dense/kernel")) + self("_output_dense/bias")

    def network(self, x, count, kind, allowed=None):
        for n in range(count):
            one = self.within(f"{kind}_layers/{n}")
            read = one.within("mha_ln" if kind == "enc" else "self_ln").norm(x)
            x = x + one.within("mha" if kind == "enc" else "self_mha").attention(read, read, allowed)
            y, mlp = one.within("mlp/layernorms/0").norm(x), one.within("mlp/mlp_layers/0")
            y = functional.gelu(y @ mlp("dense1/kernel") + mlp("dense1/bias"))
            x = x + y @ mlp("dense2/kernel") + mlp("dense2/bias")
        return x

    def exchange(self, x, source):
        read = self.within("enc_ln").norm(source)
        return x + self.within("cross_mha").attention(self.within("cross_ln").norm(x), read)

    def run(self, x, z, schedule, *, autoregressive):
        """``x (B, t, n, D)``, ``z (B, t, m, E)``."""
        (b, t, n), m = x.shape[:3], z.shape[2]
        kind, x_mask, z_mask = "enc", None, None
        if autoregressive:
            kind, x_mask = "dec", torch.ones(n, n).tril()
            z_mask = torch.kron(torch.ones(t, t).tril(), torch.ones(m, m))
        x = x.reshape(b * t, n, -1)
        for index, (local, across) in enumerate(schedule):
            x = self.within(f"x_network/{index}").network(x, local, kind, x_mask)
            if across:
                z = self.within(f"l2x_cross_attn/{index}").exchange(z.reshape(b * t, m, -1), x)
                z = self.within(f"l_network/{index}").network(z.reshape(b, t * m, -1), across, kind, z_mask)
                z = z.reshape(b, t, m, -1)
                if index < len(schedule) - 1:
                    source = torch.cat([torch.zeros_like(z[:, -1:]), z[:, :-1]], 1) if autoregressive else z
                    x = self.within(f"x2l_cross_attn/{index}").exchange(x, source.reshape(b * t, m, -1))
        return x.reshape(b, t, n, -1), z


SCHEDULE = ((2, 1), (1, 2), (1, 0))


def test_an_encoder_takes_the_weights_of_pix2seq():
    state = variables(SCHEDULE, SIZES, autoregressive=False)
    theirs, model = Keras(state), FIT("(2)1(1)2(1)", inputs=5, **SIZES).double()
    model.load_state_dict(model.from_reference(state))
    given = torch.randn(2, 4, 3, 5, dtype=torch.float64)
    x = theirs.within("stem_ln").norm(given @ theirs("stem/kernel") + theirs("stem/bias")) + theirs("x_pos_emb")
    z = theirs("latent_pos_emb").reshape(1, 4, 2, 8).expand(2, -1, -1, -1)
    x, z = theirs.run(x, z, SCHEDULE, autoregressive=False)
    found = model(given)
    torch.testing.assert_close(found.x, theirs.within("x_output_ln").norm(x), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found.z, theirs.within("l_output_ln").norm(z), rtol=1e-10, atol=1e-10)


def test_the_autoregressive_form_takes_the_weights_of_pix2seq():
    state = variables(SCHEDULE, SIZES, autoregressive=True)
    theirs, model = Keras(state), AutoregressiveFIT("(2)1(1)2(1)", vocabulary=20, **SIZES).double()
    model.load_state_dict(model.from_reference(state))
    ids = torch.randint(20, (2, 12))
    x = theirs("token_embedding")[ids].reshape(2, 4, 3, -1) + theirs("x_pos_emb")
    z = theirs("latent_pos_emb").reshape(1, 4, 2, 8).expand(2, -1, -1, -1)
    x, _ = theirs.run(x, z, SCHEDULE, autoregressive=True)
    logits = theirs.within("x_output_ln").norm(x) @ theirs("token_embedding").T + theirs("outp_bias")
    torch.testing.assert_close(model(ids), logits.reshape(2, 12, -1), rtol=1e-10, atol=1e-10)


def image_model(**changes):
    sizes = {"dim": 6, "latent_dim": 8, "heads": 2, "latents": 2}
    base = {"schedule": "(1)1(1)", "image_size": (8, 16), "patch": 2, "window": 2, "channels": 3, "classes": 4}
    return randomised(ImageFIT(**{**base, **sizes, **changes}))


@pytest.mark.parametrize("pool", ["tokens", "latents"])
def test_an_image_is_groups_of_patches_in_square_windows(pool):
    model = image_model(pool=pool)
    images = torch.randn(2, 3, 8, 16, dtype=torch.float64)
    features = model.forward_features(images)[0]
    groups = []
    for down in range(2):
        for right in range(4):
            tokens = []
            for row in range(2):
                for column in range(2):
                    top, left = 4 * down + 2 * row, 4 * right + 2 * column
                    pixels = images[:, :, top : top + 2, left : left + 2].flatten(1)
                    kernel = model.patches.project.weight.flatten(1)
                    tokens.append(norm(pixels @ kernel.T + model.patches.project.bias, model.stem_norm))
            groups.append(torch.stack(tokens, 1) + model.x_places)
    z = model.z_places.view(1, 8, 2, 8).expand(2, -1, -1, -1)
    x, z = naive_body(model.body, torch.stack(groups, 1), z, (2, 4))
    x = norm(x, model.x_norm)
    torch.testing.assert_close(features[:, 3, 2], x[:, 5, 2], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(features[:, 0, 7], x[:, 3, 1], rtol=1e-10, atol=1e-10)
    pooled = x.mean((1, 2)) if pool == "tokens" else norm(z, model.z_norm).mean((1, 2))
    torch.testing.assert_close(model(images), affine(pooled, model.head), rtol=1e-10, atol=1e-10)
    assert model(torch.zeros(1, 3, 12, 4, dtype=torch.float64)).shape == (1, 4)


def test_an_image_backbone_takes_the_weights_of_pix2seq():
    model = image_model(image_size=8, dim=6)
    sizes = {**SIZES, "group_size": 4, "groups": 4}
    state = variables(((1, 1), (1, 0)), sizes, autoregressive=False)
    state = {name: value for name, value in state.items() if not name.startswith("stem/")}
    state["stem/kernel"], state["stem/bias"] = torch.randn(2 * 2 * 3, 6).double(), torch.randn(6).double()
    model.load_weights(model.from_reference(state))
    pixels = torch.randn(1, 3, 8, 8, dtype=torch.float64)
    patch = pixels[0, :, 2:4, 4:6].permute(1, 2, 0).flatten()
    theirs = patch @ state["stem/kernel"] + state["stem/bias"]
    torch.testing.assert_close(model.patches(pixels)[0, 1, 2], theirs)
    encoder = FIT("(1)1(1)", inputs=12, **sizes).double()
    encoder.load_state_dict(encoder.from_reference(state))
    patches = pixels.view(1, 3, 4, 2, 4, 2).permute(0, 2, 4, 3, 5, 1).flatten(3)  # (1, 4, 4, 12)
    windows = patches.view(1, 2, 2, 2, 2, 12).transpose(2, 3).reshape(1, 4, 4, 12)
    features = model.forward_features(pixels)[0]
    torch.testing.assert_close(features[0, 2:, :2].flatten(0, 1), encoder(windows).x[0, 2], rtol=1e-10, atol=1e-10)
