"""What order heads can learn: ``python benchmarks/rl_order.py --csv FILE``.

Pong, 30,000 frames of random play, a quarter of them held out in whole episodes; triples at t - 3, t, t + 3, half of
them in the order of time. On states: the four RAM positions of three successive frames, the heads linear (published), a
sum of three MLPs, one for each place (what any encoder with the linear head is), and an MLP on the concatenation; then
the same on triples with the ball in sight throughout, where the stream is not stationary: a ball flies away from its
serve, so that the places differ in their marginal distribution. On pixels: a small encoder is trained for 150 steps of
128 triples by the order term alone. ``shortcut`` has the published views: the centre is strongly augmented, its
neighbours are not; ``no shortcut`` has the triple as it is. The encoder with the shortcut is scored in its own setting,
and on triples as they are.

Columns: balanced accuracy on held-out triples with its 95 % bootstrap interval over episodes; CPU seconds.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from manyheads.lab.data.files import write_csv
from manyheads.rl.pretraining.data import ProbePart, RecordingData, TriplePart
from manyheads.rl.pretraining.experiments import PretrainingModel
from manyheads.rl.pretraining.games import labels_of
from manyheads.rl.pretraining.methods import JointEmbedding, OrderHead
from manyheads.rl.pretraining.objective import PretrainingLoss
from manyheads.rl.pretraining.probes import ClassScore, order_score, train_order

STEPS, BATCH = 150, 128


class SumOfThree(nn.Module):
    """An additive score: one MLP for each place."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width, affine=False)
        self.places = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 1))
            for _ in range(3)
        )

    def forward(self, triples: Tensor) -> Tensor:
        normed = self.norm(triples.flatten(0, 1)).view(triples.shape)
        return sum((one(normed[:, place]) for place, one in enumerate(self.places)), torch.zeros(1)).squeeze(-1)


def states(part: ProbePart, episodes: np.ndarray, *, in_sight: bool) -> tuple[Tensor, np.ndarray]:
    """RAM positions of the three frames of each observation of a triple; only with the ball in sight if asked."""
    recording, labels = part.recording, labels_of("pong")
    centres = part.centres(episodes)
    at = centres[:, None, None] + np.array([-part.gap, 0, part.gap])[:, None] + np.arange(-2, 1)
    seen = labels[0].visible(recording.ram)[at].all((1, 2)) | (not in_sight)
    values = np.stack([label.values(recording.ram) for label in labels], 1)[at[seen]]
    return torch.tensor(values, dtype=torch.float32).flatten(2) / 255, recording.episodes[centres[seen]]


def trained_on_pixels(train: TriplePart, kind: str, views: str, seed: int) -> JointEmbedding:
    """Train encoder and head by the order term alone."""
    torch.manual_seed(seed)
    shortcut = views == "published"
    encoder = PretrainingModel().encoder(42, train.stack)
    model = JointEmbedding(encoder, head="linear" if kind == "linear" else "mlp", shortcut=shortcut)
    loss = PretrainingLoss(views="published" if shortcut else "mild")
    optimiser = torch.optim.AdamW(model.parameters(), 1e-3)
    for _ in range(STEPS):
        batch = train.batch(torch.randint(len(train), (BATCH,)))
        optimiser.zero_grad()
        loss.loss(model, batch).backward()
        optimiser.step()
    return model.eval()


@torch.no_grad()
def pixel_score(model: JointEmbedding, part: ProbePart, views: str) -> ClassScore:
    """Score the head on held-out triples, with the published views or as they are."""
    assert model.head is not None
    centres = part.centres(part.held)
    centres = centres[np.linspace(0, len(centres) - 1, 2048).astype(np.int64)]
    held, features = TriplePart(part.recording, centres, part.gap), []
    loss = PretrainingLoss(views="published" if views == "published" else "mild")
    for rows in torch.arange(len(centres)).split(256):
        seen = loss.make_views(held.batch(rows))
        triple = seen.triple.clone()
        if views == "published":
            triple[:, 1] = seen.pair[0]
        features.append(model.encoder(triple.flatten(0, 1)).view(len(rows), 3, -1))
    return order_score(model.head, torch.cat(features), part.recording.episodes[centres])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", type=Path, help="file for the rows")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    asked = parser.parse_args()
    torch.set_num_threads(1)
    splits = RecordingData("pong", size=42).open()
    part, train = splits.test, splits.train
    assert isinstance(part, ProbePart)
    assert isinstance(train, TriplePart)
    chosen = {
        name: (states(part, part.fitted, in_sight=only)[0], states(part, part.held, in_sight=only))
        for name, only in (("states", False), ("states, ball in sight", True))
    }
    rows: list[dict[str, object]] = []

    def keep(inputs: str, head: str, views: str, seed: int, score: ClassScore, start: float) -> None:
        found, seconds = score.balanced(), time.process_time() - start
        row = {"input": inputs, "head": head, "views": views, "seed": seed, "accuracy": f"{found.value:.4f}"}
        rows.append({**row, "low": f"{found.low:.4f}", "high": f"{found.high:.4f}", "cpu_s": f"{seconds:.0f}"})
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
        if asked.csv is not None:
            write_csv(asked.csv, rows)

    width = chosen["states"][0].shape[2]
    heads = {
        "linear": lambda: OrderHead(width, "linear"),
        "sum of three MLPs": lambda: SumOfThree(width),
        "MLP": lambda: OrderHead(width),
    }
    for seed in asked.seeds:
        for inputs, (fitted, held) in chosen.items():
            for name, make in heads.items():
                start = time.process_time()
                torch.manual_seed(seed)
                head = make()
                train_order(head, fitted, steps=1500, rate=3e-3, generator=torch.Generator().manual_seed(seed))
                keep(inputs, name, "", seed, order_score(head.eval(), *held), start)
        for kind, views in (("linear", "published"), ("linear", "mild"), ("mlp", "mild")):
            start = time.process_time()
            model = trained_on_pixels(train, kind, views, seed)
            name = "MLP" if kind == "mlp" else kind
            said = "shortcut" if views == "published" else "no shortcut"
            keep("pixels", name, said, seed, pixel_score(model, part, views), start)
            if views == "published":
                keep("pixels", name, "trained with the shortcut, scored without", seed,
                     pixel_score(model, part, "mild"), start)  # fmt: skip


if __name__ == "__main__":
    main()
