"""Linear probes of frozen features, scored on held-out episodes with intervals over episodes.

    state    ridge regression of each RAM label, R^2;  labels of absent objects are left out
    action   multinomial logistic regression, balanced accuracy
    order    MLP on the features of a triple, balanced accuracy: each triple once in order and once in another

The episode is the unit of every interval: 95 % of bootstrap resamples of the held-out episodes. All scores are sums
over episodes, so that two encoders are compared on the same resamples.

Axes: n frames, d width, e episodes, r resamples, l labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from manyheads.core.errors import ArgumentError
from manyheads.rl.encoders.frames import FrameEncoder
from manyheads.rl.pretraining.games import Label
from manyheads.rl.pretraining.losses import ORDERS, order_loss, shuffle_triples
from manyheads.rl.pretraining.methods import OrderHead
from manyheads.rl.pretraining.recording import Recording

RESAMPLES = 2000
PENALTIES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
BATCH = 512


class Interval(NamedTuple):
    """A value with its 95 % bootstrap interval over episodes."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


class Features(NamedTuple):
    """Features of frames ``(N, D)``, float32: the pooled vector, and the mean of the patches."""

    pooled: Tensor
    patches: Tensor


@torch.no_grad()
def features_of(encoder: FrameEncoder, recording: Recording, at: np.ndarray, *, stack: int = 3) -> Features:
    """Encode the observations of the frames ``at``."""
    encoder.eval()
    device = next(encoder.parameters()).device
    pooled, patches = [], []
    for start in range(0, len(at), BATCH):
        frames = torch.from_numpy(recording.observations(at[start : start + BATCH], stack=stack)).to(device)
        encoded = encoder.encode(frames)
        pooled.append(encoded.pooled.cpu())
        patches.append(encoded.levels[0].mean((1, 2)).cpu())
    return Features(torch.cat(pooled), torch.cat(patches))


def resamples_of(episodes: int, *, count: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """Return ``(R, E)``: how often each episode occurs in each bootstrap resample."""
    if episodes < 1:
        raise ArgumentError("resamples: found no episode, expected one or more")
    return np.random.default_rng(seed).multinomial(episodes, np.full(episodes, 1 / episodes), size=count)


def interval(value: float, resampled: np.ndarray) -> Interval:
    """Return the value with the central 95 % of its resamples."""
    low, high = np.nanquantile(resampled, (0.025, 0.975))
    return Interval(float(value), float(low), float(high))


@dataclass(frozen=True)
class StateScore:
    """Sums of a regression probe by label and held-out episode."""

    labels: tuple[str, ...]
    sums: np.ndarray
    """``(L, E, 4)``: number of frames, sum of y, of y squared, of squared errors."""

    def r2(self, counts: np.ndarray | None = None) -> np.ndarray:
        """Return R^2 of each label: ``(L,)``, or ``(L, R)`` for resamples ``(R, E)``."""
        total = self.sums.sum(1) if counts is None else np.einsum("re,lek->lrk", counts, self.sums)
        number, first, second, errors = np.moveaxis(total, -1, 0)
        with np.errstate(divide="ignore", invalid="ignore"):
            return 1 - errors / (second - first**2 / number)

    def mean(self) -> Interval:
        """Return the mean R^2 over the labels."""
        counts = resamples_of(self.sums.shape[1])
        return interval(self.r2().mean(), self.r2(counts).mean(0))

    def above(self, other: StateScore) -> Interval:
        """Return the mean R^2 minus that of another encoder on the same episodes."""
        counts = resamples_of(self.sums.shape[1])
        return interval(self.r2().mean() - other.r2().mean(), self.r2(counts).mean(0) - other.r2(counts).mean(0))


@dataclass(frozen=True)
class ClassScore:
    """Counts of a classification probe by held-out episode and class."""

    counts: np.ndarray
    """``(E, K, 2)``: examples and right ones."""

    def balanced(self) -> Interval:
        """Return the balanced accuracy: the mean over the classes of the share that is right."""

        def score(totals: np.ndarray) -> np.ndarray:
            with np.errstate(divide="ignore", invalid="ignore"):
                return np.nanmean(totals[..., 1] / totals[..., 0], -1)

        resampled = np.einsum("re,ekc->rkc", resamples_of(len(self.counts)), self.counts)
        return interval(float(score(self.counts.sum(0))), score(resampled))


class Scaling(NamedTuple):
    """Mean and standard deviation of each feature."""

    mean: Tensor
    sd: Tensor

    @classmethod
    def of(cls, x: Tensor) -> Scaling:
        return cls(x.mean(0), x.std(0).clamp_min(1e-6))

    def __call__(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.sd


def ridge(x: Tensor, y: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
    """Return weights ``(D,)`` and bias of ``min mean (y - x w - b)^2 + penalty |w|^2``."""
    mean, level = x.mean(0), y.mean()
    centred = x - mean
    gram = centred.T @ centred / len(x) + penalty * torch.eye(x.shape[1], dtype=x.dtype)
    weights = torch.linalg.solve(gram, centred.T @ (y - level) / len(x))
    return weights, level - mean @ weights


def _best_penalty(x: Tensor, y: Tensor, inner: Tensor) -> float:
    """Return the penalty of the least error on the inner held-out rows."""
    errors = {}
    for penalty in PENALTIES:
        weights, bias = ridge(x[~inner], y[~inner], penalty)
        errors[penalty] = float((y[inner] - x[inner] @ weights - bias).square().mean())
    return min(errors, key=lambda penalty: errors[penalty])


def state_probe(
    features: tuple[Tensor, Tensor],
    ram: tuple[np.ndarray, np.ndarray],
    episodes: tuple[np.ndarray, np.ndarray],
    labels: Sequence[Label],
) -> StateScore:
    """Fit a ridge regression of each label on the first of each pair, score it on the second.

    The penalty is chosen on the last quarter of the episodes of the first part.

    Raises :class:`ArgumentError` if an object is absent from a part.
    """
    scaling = Scaling.of(features[0])
    x, x_held = (scaling(one).double() for one in features)
    numbers = np.unique(episodes[0])
    inner = np.isin(episodes[0], numbers[-max(len(numbers) // 4, 1) :]) if len(numbers) > 1 else _alternate(episodes[0])
    held = np.unique(episodes[1])
    sums = np.zeros((len(labels), len(held), 4))
    for row, label in enumerate(labels):
        seen, seen_held = label.visible(ram[0]), label.visible(ram[1])
        if min((seen & inner).sum(), (seen & ~inner).sum(), seen_held.sum()) < 2:
            raise ArgumentError(f"probe: {label.name}: found it absent from a part, expected a longer recording")
        y = torch.from_numpy(label.values(ram[0]))
        penalty = _best_penalty(x[seen], y[seen], torch.from_numpy(inner[seen]))
        weights, bias = ridge(x[seen], y[seen], penalty)
        target = label.values(ram[1])
        errors = (target - (x_held @ weights + bias).numpy()) ** 2
        for column, episode in enumerate(held):
            at = seen_held & (episodes[1] == episode)
            sums[row, column] = at.sum(), target[at].sum(), (target[at] ** 2).sum(), errors[at].sum()
    return StateScore(tuple(label.name for label in labels), sums)


def _alternate(rows: np.ndarray) -> np.ndarray:
    """Hold out the last quarter of the rows of a single episode."""
    return np.arange(len(rows)) >= 3 * len(rows) // 4


@torch.enable_grad()
def action_probe(
    features: tuple[Tensor, Tensor],
    actions: tuple[np.ndarray, np.ndarray],
    episodes: np.ndarray,
    *,
    penalty: float = 1e-3,
) -> ClassScore:
    """Fit a multinomial logistic regression of the action on the first of each pair, score it on the second.

    ``episodes`` are those of the second part.
    """
    scaling = Scaling.of(features[0])
    x, x_held = (scaling(one).float() for one in features)
    classes = int(max(actions[0].max(), actions[1].max())) + 1
    target = torch.from_numpy(actions[0]).long()
    weights = torch.zeros(classes, x.shape[1] + 1, requires_grad=True)
    optimiser = torch.optim.LBFGS([weights], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        logits = x @ weights[:, 1:].T + weights[:, 0]
        loss = functional.cross_entropy(logits, target) + penalty * weights[:, 1:].square().sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    with torch.no_grad():
        found = (x_held @ weights[:, 1:].T + weights[:, 0]).argmax(1).numpy()
    return _class_score(actions[1], found, episodes, classes)


def _class_score(target: np.ndarray, found: np.ndarray, episodes: np.ndarray, classes: int) -> ClassScore:
    numbers = np.unique(episodes)
    counts = np.zeros((len(numbers), classes, 2))
    for row, episode in enumerate(numbers):
        for one in range(classes):
            at = (episodes == episode) & (target == one)
            counts[row, one] = at.sum(), (found[at] == one).sum()
    return ClassScore(counts)


def order_probe(
    triples: tuple[Tensor, Tensor],
    episodes: np.ndarray,
    *,
    head: str = "mlp",
    hidden: int = 128,
    steps: int = 600,
    rate: float = 3e-3,
    seed: int = 0,
) -> ClassScore:
    """Train an order head on features of triples ``(N, 3, D)`` of the first part, score it on the second.

    ``episodes`` are those of the second part.
    """
    flat = triples[0].flatten(0, 1)
    scaling = Scaling.of(flat)
    fitted, held = (scaling(one).float() for one in triples)
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = OrderHead(flat.shape[1], "linear" if head == "linear" else "mlp", hidden)
    train_order(network, fitted, steps=steps, rate=rate, generator=generator)
    return order_score(network, held, episodes)


@torch.enable_grad()
def train_order(
    network: nn.Module, triples: Tensor, *, steps: int, rate: float, generator: torch.Generator, batch: int = 256
) -> None:
    """Train an order head by Adam; half of each batch is in the order of time."""
    optimiser = torch.optim.Adam(network.parameters(), rate)
    for _ in range(steps):
        chosen = torch.randint(len(triples), (batch,), generator=generator)
        shuffled = shuffle_triples(triples[chosen], generator=generator)
        loss = order_loss(network(shuffled.triples), shuffled.target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


@torch.no_grad()
def order_score(network: nn.Module, triples: Tensor, episodes: np.ndarray, *, seed: int = 1) -> ClassScore:
    """Score an order head on each triple in the order of time and in one other order."""
    other = torch.randint(1, len(ORDERS), (len(triples),), generator=torch.Generator().manual_seed(seed))
    order = ORDERS[other]
    permuted = triples.gather(1, order[:, :, None].expand(-1, -1, triples.shape[2]))
    found = torch.cat([network(triples), network(permuted)]) > 0
    target = np.repeat([0, 1], len(triples))
    return _class_score(target, found.numpy().astype(int), np.concatenate([episodes, episodes]), 2)
