"""Drop the noise of synthetic images with IA-RED2: ``python benchmarks/iared2.py --csv FILE``.

An image has 8 x 8 patches of 16 values. One to four of them hold the pattern of the label, one of ten, in noise of
standard deviation 0.5; the others are noise of the same power as those. A small ViT (three blocks of width 32, a class
token, learned positions, patches embedded by a hidden layer of 64) learns the labels. The curriculum of IA-RED2 then
trains an interpreter before each block, with the blocks frozen, and the blocks and the head behind it, with the
interpreter frozen.

Columns: accuracy on 4,000 new images before and after; the share of patches that each block sees; the mean over images
of the intersection over union of the patches that the first block sees and the informative ones; the share of
informative patches that it sees (the class token has read them before the later blocks); the work of the blocks
(:meth:`IARed2.cost`); CPU time of inference on batches of 64, over that of the ViT without dropping, interleaved in one
process.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from manyheads.core.backbones.stack import build_stack
from manyheads.core.methods.iared2 import IARed2, IARed2Output, self_critical_loss
from manyheads.lab.data.files import write_csv

PATCHES, VALUES, CLASSES, DIM, GROUPS = 64, 16, 10, 32, 3
# of each group, as the derived work has them
PENALTIES = (3.0, 5.0, 8.0)


class Images:
    """Batches of images ``(B, 64, 16)`` with their labels and informative patches."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        # one set of patterns for all seeds
        self.patterns = torch.randn(CLASSES, VALUES, generator=torch.Generator().manual_seed(0))

    def batch(self, rows: int) -> tuple[Tensor, Tensor, Tensor]:
        label = torch.randint(CLASSES, (rows,), generator=self.generator)
        count = torch.randint(1, 5, (rows, 1), generator=self.generator)
        rank = torch.rand(rows, PATCHES, generator=self.generator).argsort(1).argsort(1)
        informative = rank < count
        noise = torch.randn(rows, PATCHES, VALUES, generator=self.generator)
        pattern = self.patterns[label].unsqueeze(1) + 0.5 * noise
        x = torch.where(informative.unsqueeze(-1), pattern, 1.25**0.5 * noise)
        return x, label, informative


class Network(nn.Module):
    """A ViT on patches, with dropping."""

    def __init__(self) -> None:
        super().__init__()
        stack = build_stack("softmax", DIM, depth=GROUPS, options={"heads": 4}, expansion=2.0)
        # what is informative has to show in the tokens before the first block
        self.embed = nn.Sequential(nn.Linear(VALUES, 64), nn.GELU(), nn.Linear(64, DIM))
        self.first = nn.Parameter(0.02 * torch.randn(1, 1, DIM))
        self.positions = nn.Parameter(0.02 * torch.randn(1, PATCHES + 1, DIM))
        self.dropping = IARed2(stack.residual_blocks, groups=GROUPS, heads=4)
        self.head = nn.Sequential(nn.LayerNorm(DIM), nn.Linear(DIM, CLASSES))

    def forward(self, x: Tensor, policy: str) -> tuple[Tensor, IARed2Output]:
        tokens = torch.cat([self.first.expand(len(x), -1, -1), self.embed(x)], 1) + self.positions
        out = self.dropping(tokens, policy=policy)
        return self.head(out.y[:, 0]), out


def fit(network: Network, images: Images, parameters: list[nn.Parameter], steps: int, policy: str, rate: float) -> None:
    """Train on the labels."""
    optimiser = torch.optim.Adam(parameters, rate)
    for _ in range(steps):
        x, label, _ = images.batch(64)
        loss = functional.cross_entropy(network(x, policy)[0], label)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


def fit_policy(network: Network, images: Images, steps: int, penalty: float, rate: float, phase: int) -> None:
    """Train the interpreter of a phase on the reward."""
    dropping = network.dropping
    optimiser = torch.optim.Adam(dropping.set_phase(phase), rate)
    for _ in range(steps):
        x, label, _ = images.batch(64)
        logits, sampled = network(x, "sample")
        with torch.no_grad():
            greedy_logits, greedy = network(x, "greedy")
        right, greedy_right = (part.argmax(1) == label for part in (logits, greedy_logits))
        loss = self_critical_loss(sampled, right, greedy, greedy_right, penalty=penalty, shares=dropping.shares)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


@torch.no_grad()
def accuracy(network: Network, policy: str) -> tuple[float, IARed2Output, Tensor]:
    """On 4,000 images, the same for every policy and seed."""
    network.eval()
    x, label, informative = Images(10**6).batch(4000)
    logits, out = network(x, policy)
    network.train()
    return float((logits.argmax(1) == label).float().mean()), out, informative


@torch.no_grad()
def relative_time(network: Network, rounds: int = 40) -> float:
    """CPU time of inference with dropping over that without."""
    network.eval()
    images, spent = Images(1), {"all": 0.0, "greedy": 0.0}
    for index in range(rounds + 5):
        x, _, _ = images.batch(64)
        for policy in spent:
            start = time.process_time()
            network(x, policy)
            spent[policy] += (time.process_time() - start) * (index >= 5)
    return spent["greedy"] / spent["all"]


def run(seed: int, scale: float) -> dict[str, object]:
    """One row."""
    start = time.process_time()
    torch.manual_seed(seed)
    network, images = Network().train(), Images(seed)
    fit(network, images, list(network.parameters()), round(300 * scale), "all", 3e-3)
    before, _, _ = accuracy(network, "all")
    for group, penalty in enumerate(PENALTIES):
        fit_policy(network, images, round(150 * scale), penalty, 1e-2, 2 * group)
        trained = network.dropping.set_phase(2 * group + 1)
        fit(network, images, [*trained, *network.head.parameters()], round(50 * scale), "greedy", 1e-3)
    after, out, informative = accuracy(network, "greedy")
    kept = out.kept[:, 0, 1:]
    overlap = (kept & informative).sum(1) / (kept | informative).sum(1)
    row: dict[str, object] = {"seed": seed, "accuracy_before": f"{before:.4f}", "accuracy": f"{after:.4f}"}
    row |= {f"kept_{g + 1}": f"{float(out.ratio[:, g].mean()):.3f}" for g in range(GROUPS)}
    row |= {
        "informative": f"{float(informative.float().mean()):.3f}",
        "overlap": f"{float(overlap.mean()):.3f}",
        "informative_kept": f"{float((kept & informative).sum() / informative.sum()):.3f}",
        "work": f"{float(network.dropping.cost(out.ratio).mean()):.3f}",
        "relative_time": f"{relative_time(network):.2f}",
        "cpu_s": f"{time.process_time() - start:.0f}",
    }
    print(json.dumps(row), file=sys.stderr, flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", type=Path, help="file for the rows")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--scale", type=float, default=1.0, help="of the numbers of steps")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    rows = [run(seed, asked.scale) for seed in asked.seeds]
    if asked.csv is not None:
        write_csv(asked.csv, rows)


if __name__ == "__main__":
    main()
