"""The published networks: exact counts, their layout of weights, and their arithmetic."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from manyheads.core import create
from manyheads.core.errors import CheckpointError
from manyheads.kws.models import from_reference, published
from manyheads.kws.models.published import PARAMETERS
from tests.kws.networks import CONFIGS, LABELS

WORDS = tuple(f"word{n}" for n in range(35))
WIDTH, ORDER, BINS = 12, 16, 20  # of the small ones in CONFIGS


@pytest.mark.parametrize(("spiking", "count"), [(False, 1_621_796), (True, 1_689_894)])
@pytest.mark.filterwarnings("ignore:lmuformer. order")
def test_parameters_are_those_published(spiking: bool, count: int) -> None:
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


def reference_forward(w: dict[str, Tensor], x: Tensor, spiking: bool) -> Tensor:
    """The published arithmetic, channels first, straight from the description: ``(B, N, M)`` -> ``(B, N, labels)``."""

    def norm(name: str, y: Tensor) -> Tensor:
        shape = (1, -1, 1)
        mean, var = w[f"{name}.running_mean"].view(shape), w[f"{name}.running_var"].view(shape)
        return (y - mean) / (var + 1e-5).sqrt() * w[f"{name}.weight"].view(shape) + w[f"{name}.bias"].view(shape)

    def fire(y: Tensor, threshold: float = 1.0) -> Tensor:
        v, spikes = torch.zeros_like(y[:, :, 0]), []
        for y_t in y.unbind(2):
            v = v + (y_t - v) / 2
            spike = (v >= threshold).to(y)
            v = v * (1 - spike)
            spikes.append(spike)
        return torch.stack(spikes, 2)

    def conv(name: str, y: Tensor) -> Tensor:
        weight = w[f"{name}.weight"]
        return functional.conv1d(y, weight, w.get(f"{name}.bias"), padding=weight.shape[2] // 2)

    def linear(name: str, y: Tensor) -> Tensor:
        return torch.einsum("oc,bcn->bon", w[f"{name}.weight"], y) + w[f"{name}.bias"].view(1, -1, 1)

    y = x.mT
    for n in range(4):
        if not spiking:
            y = norm(f"patch_embed.conv_layers.{n}.3", torch.relu(conv(f"patch_embed.conv_layers.{n}.0", y)))
        else:
            number = str(n) if n else ""
            y = conv(f"patch_embed.proj_conv{number}", y)
            side = fire(norm(f"patch_embed.proj_bn{number}", y))
            y = side if n < 3 else y + conv("patch_embed.rpe_conv", side)
    y = y if spiking else y + conv("patch_embed.rpe_conv", y)
    lmu = "block.0.attn.lmu"
    z = fire(norm("block.0.attn.prev_bn", y), 0.5) if spiking else y
    site: Callable[[str, Tensor], Tensor] = lambda n, v: fire(norm(f"{lmu}.bn_{n}", v)) if spiking else torch.relu(v)  # noqa: E731
    u = site("u", linear(f"{lmu}.W_u", z))
    m = memory_by_recurrence(u[:, 0], ORDER, 32).mT
    m = site("m", m) if spiking else m
    h = site("h", linear(f"{lmu}.W_h", torch.cat([m, z], 1)))
    y = y + norm("block.0.attn.proj_bn", conv("block.0.attn.proj_conv", h))
    if spiking:
        z = conv("block.0.mlp.fc1_conv", fire(norm("block.0.mlp.fc1_bn", y)))
        y = y + conv("block.0.mlp.fc2_conv", fire(norm("block.0.mlp.fc2_bn", z)))
        y = fire(norm("head_bn", y))
    else:
        z = functional.gelu(norm("block.0.mlp.fc1_bn", conv("block.0.mlp.fc1_conv", y)))
        y = y + torch.relu(norm("block.0.mlp.fc2_bn", conv("block.0.mlp.fc2_conv", z)))
    return linear("head", y).mT


@pytest.mark.parametrize("spiking", [False, True])
@pytest.mark.parametrize("prefix", ["", "module."])
@torch.no_grad()
def test_reference_weights_give_the_published_arithmetic(spiking: bool, prefix: str) -> None:
    network = CONFIGS["published-spiking" if spiking else "published"].make(BINS, LABELS).double().eval()
    weights = reference_weights(spiking)
    network.load_state_dict(from_reference({prefix + name: value for name, value in weights.items()}, network))
    x = torch.randn(3, 50, BINS, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    expected = reference_forward(weights, x, spiking)
    assert expected.std() > 0.1
    if spiking:
        rates = network(x).aux
        assert min(rates.values()) > 0.01, min(rates, key=lambda site: float(rates[site]))
    torch.testing.assert_close(network.whole(x), expected, atol=1e-10, rtol=0)
    torch.testing.assert_close(network.fold().whole(x), expected, atol=1e-10, rtol=0)


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
def test_weights_of_another_layout_are_refused(change, says: str) -> None:
    network = CONFIGS["published"].make(BINS, LABELS).double()
    weights = reference_weights(False)
    change(weights)
    with pytest.raises(CheckpointError, match=says):
        from_reference(weights, network)


@pytest.mark.parametrize("name", ["published-causal", "published-spiking"])
@torch.no_grad()
def test_the_mixer_holds_the_layer_of_the_core(name: str) -> None:
    """With the entry and the map after it taken away, the mixer is ``lmu``, or ``spiking-lmu``."""
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
