"""Compare the speed of our layers with public implementations, same work, same run: ``nox -s peers``.

Measured are the CPU seconds of forward, and of forward with backward, on one thread. The two implementations take turns
and the shortest time of each counts. Each library initialises its own weights: this compares cost, not output (the
tests compare outputs with oracles).
"""

from __future__ import annotations

import math
import sys
import time
import types
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor, nn

from manyheads.core import create
from manyheads.core.backbones.vit import ViT
from manyheads.lab.data.files import write_csv

RESULT = Path(__file__).parent / "results" / "peers.csv"
DIM, HEADS = 128, 4
TURNS = 15

Run = Callable[[Tensor], Tensor]


def pairs() -> Iterator[tuple[str, str, Tensor, Run, Run]]:
    """Yield each pair: name of our layer, name of the peer, an input, and both as functions."""
    from axial_attention import AxialAttention
    from routing_transformer.routing_transformer import SelfAttention
    from spikingjelly.activation_based import functional as spiking
    from spikingjelly.activation_based import neuron
    from x_transformers.x_transformers import Attention

    for tokens in (1024, 4096):
        x = torch.randn(1, tokens, DIM, requires_grad=True)
        for causal in (False, True):
            theirs = Attention(DIM, heads=HEADS, dim_head=DIM // HEADS, causal=causal, flash=True)
            label = "softmax, causal" if causal else "softmax"
            yield label, "x-transformers", x, _ours("softmax", heads=HEADS, causal=causal), _first(theirs)
        width = math.isqrt(tokens)
        routing = SelfAttention(
            DIM, 1, tokens, HEADS, HEADS // 2, window_size=width, causal=True, shared_qk=True, rel_pos_emb=False
        )
        sizes = {"local_heads": HEADS // 2, "clusters": width, "window": width, "block": width}
        ours = _ours("routing", heads=HEADS, causal=True, shared_qk=True, **sizes)
        yield "routing, half of the heads local", "routing-transformer", x, ours, _first(routing)
        side = math.isqrt(tokens)
        grid = torch.randn(1, side, side, DIM, requires_grad=True)
        axial = AxialAttention(DIM, num_dimensions=2, heads=HEADS)
        lines = [_ours("axial", heads=HEADS, axis=axis) for axis in (0, 1)]
        yield "axial, along both axes", "axial-attention", grid, lambda x, lines=lines: lines[0](x) + lines[1](x), axial
        for plan in ("vertical", "rowmajor"):
            ours = _ours("combiner-axial", heads=HEADS, plan=plan)
            yield f"combiner-axial, {plan}: causal, full support", "axial-attention", grid, ours, axial
    yield from image_pairs()
    spikes = torch.randn(32, 128, DIM, requires_grad=True)
    node = neuron.LIFNode(tau=2.0, detach_reset=True, step_mode="m")

    def lif(x: Tensor) -> Tensor:
        spiking.reset_net(node)
        return node(x.transpose(0, 1))

    yield "lif", "spikingjelly", spikes, _ours("lif"), lif


def image_pairs() -> Iterator[tuple[str, str, Tensor, Run, Run]]:
    """Yield the layers of images and the Vision Transformer, with the same arguments on both sides."""
    _without_torchvision()
    from halonet_pytorch import HaloAttention
    from vit_pytorch.vit import ViT as TheirViT

    for side in (64, 128):
        grid = torch.randn(1, side, side, DIM, requires_grad=True)
        theirs = HaloAttention(dim=DIM, block_size=8, halo_size=3, dim_head=DIM // HEADS, heads=HEADS)
        ours = _ours("halo", heads=HEADS, block=8, halo=3)
        yield "halo", "halonet-pytorch", grid, ours, lambda x, theirs=theirs: theirs(x.permute(0, 3, 1, 2))
    sizes = {"dim": 192, "depth": 4, "heads": 3}
    for side, batch in ((224, 4), (384, 2)):
        images = torch.randn(batch, 3, side, side, requires_grad=True)
        theirs = TheirViT(
            image_size=side, patch_size=16, num_classes=1000, mlp_dim=768, pool="mean", dim_head=64, **sizes
        )
        yield "vit, 4 blocks", "vit-pytorch", images, ViT(image_size=side, **sizes), theirs


def _without_torchvision() -> None:
    """Give vit-pytorch an empty torchvision, which it imports for one class and which has no wheel for this torch."""
    empty = types.ModuleType("torchvision")
    empty.transforms = types.ModuleType("torchvision.transforms")  # ty: ignore[unresolved-attribute]
    sys.modules.update({"torchvision": empty, "torchvision.transforms": empty.transforms})


def _ours(name: str, **config) -> Run:
    layer = create(name, dim=DIM, **config)
    return lambda x: layer(x).y


def _first(module: nn.Module) -> Run:
    def run(x: Tensor) -> Tensor:
        out = module(x)
        return out[0] if isinstance(out, tuple) else out

    return run


def take_turns(x: Tensor, *runs: Run, turns: int = TURNS) -> list[tuple[float, float]]:
    """Return, for each function, the shortest CPU seconds of forward and of forward with backward.

    The first two turns are warm-up and do not count.
    """

    def seconds(call: Callable[[], object]) -> float:
        before = time.process_time()
        call()
        return time.process_time() - before

    def forward(run: Run) -> object:
        with torch.no_grad():
            return run(x)

    best = [(math.inf, math.inf)] * len(runs)
    for turn in range(turns + 2):
        for index, run in enumerate(runs):
            once, both = seconds(lambda run=run: forward(run)), seconds(lambda run=run: run(x).sum().backward())
            if turn >= 2:
                best[index] = min(best[index][0], once), min(best[index][1], both)
    return best


def main() -> None:
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows = []
    for layer, peer, x, ours, theirs in pairs():
        (forward, both), (their_forward, their_both) = take_turns(x, ours, theirs)
        rows.append(
            {
                "layer": layer,
                "peer": f"{peer} {version(peer)}",
                "shape": " x ".join(map(str, x.shape)),
                "forward_cpu_s": forward,
                "peer_forward_cpu_s": their_forward,
                "forward_ratio": their_forward / forward,
                "both_cpu_s": both,
                "peer_both_cpu_s": their_both,
                "both_ratio": their_both / both,
                "torch": torch.__version__,
                "command": "nox -s peers",
            }
        )
        print(
            f"{layer} {rows[-1]['shape']}: {their_forward / forward:.2f} times as fast as {peer} forward, "
            f"{their_both / both:.2f} with backward",
            file=sys.stderr,
        )
    write_csv(RESULT, rows)


if __name__ == "__main__":
    main()
