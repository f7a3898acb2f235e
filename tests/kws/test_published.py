"""Published networks: exact parameter counts, weight layout and arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from manyheads.core import create
from manyheads.core.errors import CheckpointError
from manyheads.kws.models import from_reference, published
from manyheads.kws.models.published import PARAMETERS
from manyheads.kws.training.data import ClipBatch
from manyheads.kws.training.objective import clip_scores
from tests.kws.networks import CONFIGS, LABELS

WORDS = tuple(f"word{n}" for n in range(35))
WIDTH, ORDER, BINS = 12, 16, 20  # of the small ones in CONFIGS


@pytest.mark.parametrize(("spiking", "count"), [(False, 1_621_796), (True, 1_689_894)])
@pytest.mark.filterwarnings("ignore:lmuformer. order")
def test_parameter_counts_equal_the_published_ones(spiking: bool, count: int) -> None:
    assert published(spiking=spiking).make(128, WORDS).parameter_count == count == PARAMETERS[spiking]


def test_centred_convolutions_look_five_frames_ahead() -> None:
    network = CONFIGS["published"].make(BINS, LABELS)
    convolutions = [*network.stem.each_convolution, network.stem.position]
    assert [c.lookahead for c in convolutions] == [1] * 5
    assert published(spiking=False).lookahead == 5


def reference_weights(spiking: bool) -> dict[str, Tensor]:
    """Random weights in the layout of the authors' code, at a small width."""
    draw = torch.Generator().manual_seed(4)
    made: dict[str, Tensor] = {}

    def product(name: str, *shape: int, bias: bool = True) -> None:
        made[f"{name}.weight"] = torch.randn(*shape, generator=draw, dtype=torch.float64) * 0.3
        if bias:
            made[f"{name}.bias"] = torch.randn(shape[0], generator=draw, dtype=torch.float64) * 0.3

    def norm(name: str, width: int) -> None:
        for part, low, high in (("weight", 0.7, 1.5), ("bias", -0.2, 0.6), ("running_mean", -0.3, 0.3)):
            made[f"{name}.{part}"] = low + (high - low) * torch.rand(width, generator=draw, dtype=torch.float64)
        made[f"{name}.running_var"] = 0.1 + torch.rand(width, generator=draw, dtype=torch.float64)
        made[f"{name}.num_batches_tracked"] = torch.tensor(7)

    for n in range(4):
        inputs, number = (BINS if n == 0 else WIDTH), str(n) if n else ""
        if spiking:
            product(f"patch_embed.proj_conv{number}", WIDTH, inputs, 3, bias=False)
            norm(f"patch_embed.proj_bn{number}", WIDTH)
        else:
            product(f"patch_embed.conv_layers.{n}.0", WIDTH, inputs, 3, bias=False)
            norm(f"patch_embed.conv_layers.{n}.3", WIDTH)
    product("patch_embed.rpe_conv", WIDTH, WIDTH, 3, bias=False)
    product("block.0.attn.lmu.W_u", 1, WIDTH)
    product("block.0.attn.lmu.W_h", WIDTH, ORDER + WIDTH)
    product("block.0.attn.proj_conv", WIDTH, WIDTH, 1)
    norm("block.0.attn.proj_bn", WIDTH)
    product("block.0.mlp.fc1_conv", 4 * WIDTH, WIDTH, 1)
    product("block.0.mlp.fc2_conv", WIDTH, 4 * WIDTH, 1)
    norm("block.0.mlp.fc1_bn", WIDTH if spiking else 4 * WIDTH)
    norm("block.0.mlp.fc2_bn", 4 * WIDTH if spiking else WIDTH)
    product("head", len(LABELS), WIDTH)
    if spiking:
        norm("block.0.attn.prev_bn", WIDTH)
        for name, width in (("u", 1), ("m", ORDER), ("h", WIDTH)):
            norm(f"block.0.attn.lmu.bn_{name}", width)
        made["block.0.attn.lmu.bn_u.running_mean"] = made["block.0.attn.lmu.W_u.bias"] - 0.6  # so that u fires, and m
        made["block.0.attn.lmu.bn_m.running_var"] *= 0.05
        norm("head_bn", WIDTH)
    made["block.0.attn.lmu.A"] = torch.eye(ORDER)
    return made


def memory_by_recurrence(u: Tensor, order: int, window: int) -> Tensor:
    """``u (B, N)`` -> ``(B, N, order)`` from the continuous system, a step at a time."""
    i = torch.arange(order, dtype=torch.float64)
    scale = (2 * i + 1) / window
    sign = torch.where(i[:, None] < i, -1.0, (-1.0) ** (i[:, None] - i + 1))
    a, b = scale[:, None] * sign, scale * (-1.0) ** i
    held = torch.linalg.matrix_exp(a)
    drive = torch.linalg.solve(a, (held - torch.eye(order, dtype=torch.float64)) @ b)
    memory, rows = torch.zeros(u.shape[0], order, dtype=torch.float64), []
    for u_t in u.unbind(1):
        memory = memory @ held.T + u_t[:, None] * drive
        rows.append(memory)
    return torch.stack(rows, 1)


class Fire(torch.autograd.Function):
    """A step in the forward pass, the slope of a sigmoid of 4 (v - threshold) in the backward pass."""

    @staticmethod
    def forward(ctx, above: Tensor) -> Tensor:
        ctx.save_for_backward(above)
        return (above >= 0).to(above)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        s = torch.sigmoid(4 * ctx.saved_tensors[0])
        return gradient * 4 * s * (1 - s)


class Reference:
    """The published arithmetic, written directly from the paper, clip by clip and channels first.

    A clip is ``(M, N)`` with its own length N. In training, batch norm takes its statistics from the frames of all
    clips, and stores the running statistics in ``running``.
    """

    def __init__(
        self, weights: dict[str, Tensor], *, spiking: bool, lookahead: int = 5, training: bool = False
    ) -> None:
        self.w, self.spiking, self.training = weights, spiking, training
        self.after = 1 if lookahead == 5 else 0  # frames to the right that each of the five convolutions of 3 sees
        self.running: dict[str, Tensor] = {}

    def norm(self, name: str, clips: list[Tensor]) -> list[Tensor]:
        mean, var = self.w[f"{name}.running_mean"], self.w[f"{name}.running_var"]
        if self.training:
            every = torch.cat(clips, 1)
            count = every.shape[1]
            old = mean, var
            mean = every.sum(1) / count
            var = (every - mean[:, None]).square().sum(1) / count
            self.running[f"{name}.running_mean"] = 0.9 * old[0] + 0.1 * mean.detach()
            self.running[f"{name}.running_var"] = 0.9 * old[1] + 0.1 * var.detach() * count / (count - 1)
            self.running[f"{name}.num_batches_tracked"] = self.w[f"{name}.num_batches_tracked"] + 1
        scale, shift = self.w[f"{name}.weight"][:, None], self.w[f"{name}.bias"][:, None]
        return [(y - mean[:, None]) / (var[:, None] + 1e-5).sqrt() * scale + shift for y in clips]

    def fire(self, clips: list[Tensor], threshold: float = 1.0) -> list[Tensor]:
        found = []
        for y in clips:
            v, spikes = torch.zeros_like(y[:, 0]), []
            for y_t in y.unbind(1):
                v = v + (y_t - v) / 2
                spikes.append(Fire.apply(v - threshold))
                v = v * (1 - spikes[-1].detach())
            found.append(torch.stack(spikes, 1))
        return found

    def conv(self, name: str, clips: list[Tensor]) -> list[Tensor]:
        weight, bias = self.w[f"{name}.weight"], self.w.get(f"{name}.bias")
        reach = weight.shape[2] - 1
        after = self.after if reach else 0
        return [functional.conv1d(functional.pad(y, (reach - after, after))[None], weight, bias)[0] for y in clips]

    def linear(self, name: str, clips: list[Tensor]) -> list[Tensor]:
        return [self.w[f"{name}.weight"] @ y + self.w[f"{name}.bias"][:, None] for y in clips]

    def __call__(self, clips: list[Tensor]) -> list[Tensor]:
        """Frames ``(N, M)`` of each clip -> logits ``(N, labels)`` of each."""
        spiking, norm, fire, conv = self.spiking, self.norm, self.fire, self.conv
        relu: Callable[[list[Tensor]], list[Tensor]] = lambda ys: [torch.relu(y) for y in ys]  # noqa: E731
        add: Callable[..., list[Tensor]] = lambda xs, ys: [x + y for x, y in zip(xs, ys, strict=True)]  # noqa: E731
        ys = [clip.T for clip in clips]
        for n in range(4):
            if not spiking:
                ys = norm(f"patch_embed.conv_layers.{n}.3", relu(conv(f"patch_embed.conv_layers.{n}.0", ys)))
            else:
                number = str(n) if n else ""
                ys = conv(f"patch_embed.proj_conv{number}", ys)
                side = fire(norm(f"patch_embed.proj_bn{number}", ys))
                ys = side if n < 3 else add(ys, conv("patch_embed.rpe_conv", side))
        ys = ys if spiking else add(ys, conv("patch_embed.rpe_conv", ys))
        lmu = "block.0.attn.lmu"
        zs = fire(norm("block.0.attn.prev_bn", ys), 0.5) if spiking else ys
        us = self.linear(f"{lmu}.W_u", zs)
        us = fire(norm(f"{lmu}.bn_u", us)) if spiking else relu(us)
        ms = [memory_by_recurrence(u, ORDER, 32)[0].T for u in us]
        ms = fire(norm(f"{lmu}.bn_m", ms)) if spiking else ms
        hs = self.linear(f"{lmu}.W_h", [torch.cat([m, z]) for m, z in zip(ms, zs, strict=True)])
        hs = fire(norm(f"{lmu}.bn_h", hs)) if spiking else relu(hs)
        ys = add(ys, norm("block.0.attn.proj_bn", conv("block.0.attn.proj_conv", hs)))
        if spiking:
            zs = conv("block.0.mlp.fc1_conv", fire(norm("block.0.mlp.fc1_bn", ys)))
            ys = add(ys, conv("block.0.mlp.fc2_conv", fire(norm("block.0.mlp.fc2_bn", zs))))
            ys = fire(norm("head_bn", ys))
        else:
            zs = norm("block.0.mlp.fc1_bn", conv("block.0.mlp.fc1_conv", ys))
            zs = [functional.gelu(z) for z in zs]
            ys = add(ys, relu(norm("block.0.mlp.fc2_bn", conv("block.0.mlp.fc2_conv", zs))))
        return [logits.T for logits in self.linear("head", ys)]


@pytest.mark.parametrize("spiking", [False, True])
@pytest.mark.parametrize("prefix", ["", "module."])
@torch.no_grad()
def test_reference_weights_give_the_published_logits(spiking: bool, prefix: str) -> None:
    network = CONFIGS["published-spiking" if spiking else "published"].make(BINS, LABELS).double().eval()
    weights = reference_weights(spiking)
    network.load_state_dict(from_reference({prefix + name: value for name, value in weights.items()}, network))
    x = torch.randn(3, 50, BINS, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    expected = torch.stack(Reference(weights, spiking=spiking)(list(x)))
    assert expected.std() > 0.1
    if spiking:
        rates = network(x).aux
        assert min(rates.values()) > 0.01, min(rates, key=lambda site: float(rates[site]))
    torch.testing.assert_close(network.whole(x), expected, atol=1e-10, rtol=0)
    torch.testing.assert_close(network.fold().whole(x), expected, atol=1e-10, rtol=0)


LENGTHS = (50, 31, 7, 44)


@pytest.mark.parametrize("lookahead", [5, 0])
@pytest.mark.parametrize("spiking", [False, True])
def test_training_equals_the_published_arithmetic_on_valid_frames(spiking: bool, lookahead: int) -> None:
    """Compares outputs, all gradients and the running statistics. The padding after a clip is NaN."""
    config = replace(CONFIGS["published-spiking" if spiking else "published"], lookahead=lookahead)
    network = config.make(BINS, LABELS).double().train()
    weights = reference_weights(spiking)
    for name in ("u", "m") if spiking else ():
        weights[f"block.0.attn.lmu.bn_{name}.weight"] *= 3  # so that they fire with the statistics of the clips too
    network.load_state_dict(from_reference(weights, network))
    draw = torch.Generator().manual_seed(3)
    clips = [torch.randn(n, BINS, generator=draw, dtype=torch.float64).requires_grad_() for n in LENGTHS]
    shares = [torch.randn(n, len(LABELS), generator=draw, dtype=torch.float64) for n in LENGTHS]

    trained = [name for name in weights if name.endswith((".weight", ".bias"))]
    for name in trained:
        weights[name].requires_grad_()
    reference = Reference(weights, spiking=spiking, lookahead=lookahead, training=True)
    logits = reference(clips)
    loss = sum((share * z.square()).sum() for share, z in zip(shares, logits, strict=True))
    gradients = torch.autograd.grad(loss, [*clips, *(weights[name] for name in trained)])

    frames = torch.full((len(clips), max(LENGTHS) + lookahead, BINS), torch.nan, dtype=torch.float64)
    for row, clip in enumerate(clips):
        frames[row, : len(clip)] = clip.detach()
    frames.requires_grad_()
    out = network(frames, ends=torch.tensor(LENGTHS))
    found = [out.logits[row, lookahead : lookahead + n] for row, n in enumerate(LENGTHS)]
    sum((share * z.square()).sum() for share, z in zip(shares, found, strict=True)).backward()

    if spiking:
        assert min(out.aux.values()) > 0.01, "a site is silent"
    for ours, theirs in zip(found, logits, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=0)
    for row, n in enumerate(LENGTHS):
        assert gradients[row].abs().max() > 1e-3
        torch.testing.assert_close(frames.grad[row, :n], gradients[row], atol=1e-10, rtol=1e-10)
        assert (frames.grad[row, n:] == 0).all(), "padding has no gradient"
    theirs = dict(zip(trained, gradients[len(clips) :], strict=True)) | reference.running
    expected = from_reference(theirs, network)
    ours = dict(network.named_buffers()) | {name: p.grad for name, p in network.named_parameters()}
    assert expected.keys() == network.state_dict().keys()
    for name, value in expected.items():
        torch.testing.assert_close(ours[name], value, atol=1e-10, rtol=1e-10, msg=lambda m, name=name: f"{name}: {m}")


def test_loss_uses_valid_frames_only() -> None:
    """The loss uses the mean of the published logits over the valid frames of a clip."""
    network = CONFIGS["published"].make(BINS, LABELS).double().train()
    weights = reference_weights(False)
    network.load_state_dict(from_reference(weights, network))
    draw = torch.Generator().manual_seed(3)
    clips = [torch.randn(n, BINS, generator=draw, dtype=torch.float64) for n in LENGTHS]
    frames = torch.nn.utils.rnn.pad_sequence(clips, batch_first=True, padding_value=9.0)
    batch = ClipBatch(frames, torch.tensor(LENGTHS), torch.eye(4, dtype=torch.float64))
    expected = torch.stack([z.mean(0) for z in Reference(weights, spiking=False, training=True)(clips)])
    torch.testing.assert_close(clip_scores(network, batch)[0], expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda w: w.pop("block.0.attn.proj_conv.bias"), "block.0.attn.proj_conv.bias: missing"),
        (lambda w: w.pop("block.0.attn.lmu.W_h.weight"), "W_h.weight: missing"),
        (lambda w: w.update(extra=torch.zeros(1)), r"\['extra'\]"),
        (lambda w: w.update({"head.weight": torch.zeros(9, WIDTH)}), r"head.weight: found shape \(9, 12\), expected"),
        (lambda w: w.update({"block.0.attn.lmu.W_h.weight": torch.zeros(12, 30)}), r"W_h .*found shape"),
    ],
)
def test_weights_with_another_layout_are_refused(change, says: str) -> None:
    network = CONFIGS["published"].make(BINS, LABELS).double()
    weights = reference_weights(False)
    change(weights)
    with pytest.raises(CheckpointError, match=says):
        from_reference(weights, network)


@pytest.mark.parametrize("name", ["published-causal", "published-spiking"])
@torch.no_grad()
def test_mixer_contains_the_core_layer(name: str) -> None:
    """Without its input and output maps, the mixer equals ``lmu`` or ``spiking-lmu``."""
    network = CONFIGS[name].make(BINS, LABELS).double().eval()
    mixer, spiking = network.blocks[0].mixer, network.config.spiking
    layer = create("spiking-lmu" if spiking else "lmu", dim=WIDTH, order=ORDER, window=32).double().eval()
    parts = {"encoder": mixer.encoder, "readout": mixer.readout, "skip": mixer.skip}
    if spiking:
        sites = {"input": mixer.input_site, "memory": mixer.memory_site, "output": mixer.hidden_site}
        for part, site in sites.items():
            site.norm.running_var.fill_(0.02)
            parts[f"{part}_norm"] = site.norm
    layer.load_state_dict({f"{a}.{k}": v for a, module in parts.items() for k, v in module.state_dict().items()})
    mixer.entry, mixer.output, mixer.output_norm = None, torch.nn.Identity(), torch.nn.Identity()
    x = torch.randn(2, 40, WIDTH, dtype=torch.float64)
    from manyheads.kws.models.network import Passage

    state = mixer.init_state(2, device=None, dtype=torch.float64)
    y, _ = mixer(x, state, Passage(), 0, 1)
    expected = layer(x).y
    assert expected.abs().mean() > 0.01
    torch.testing.assert_close(y, expected, atol=1e-10, rtol=0)
