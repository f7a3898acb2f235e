"""Synthetic data set with known feature interactions, to compare models and interaction maps with the truth.

    logit = b + sum over the pairs (i, j) of s_ij z[v_i]' W_ij z[v_j],    label ~ Bernoulli(sigmoid(logit))

Every field draws its value v_i from one vocabulary with one latent vector z per value. Fields differ only in their
role: some pairs have their own bilinear form W_ij, all others have none. No field has a main effect (z has mean 0 over
the vocabulary). The term of each pair has exactly mean 0 and standard deviation s_ij, the strength of the interaction.

If the fields of a model share their embedding table too (``shared_tables``), only its layers can tell the fields apart:
a vanilla Transformer without positions sees a bag of values.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy.special import expit as sigmoid

from manyheads.core.errors import ArgumentError
from manyheads.lab.training.experiment import Splits
from manyheads.recsys.features.columns import family_of
from manyheads.recsys.features.encoder import Encoder
from manyheads.recsys.features.labels import Labels
from manyheads.recsys.features.layout import Rows
from manyheads.recsys.features.spec import FeatureSpec, Field

LABEL = "label"


class Pair(NamedTuple):
    """An interaction: two fields, and the standard deviation of their term in the logit."""

    first: int
    second: int
    strength: float


class Truth(NamedTuple):
    """Parameters of the true model: z ``(V, k)``, and W scaled by s ``(pairs, k, k)``."""

    latent: np.ndarray
    pairs: tuple[Pair, ...]
    forms: np.ndarray


@dataclass(frozen=True)
class Synthetic:
    """Rows with known field interactions; see :mod:`manyheads.recsys.datasets.synthetic`."""

    fields: int = 8
    values: int = 40
    """V: size of the vocabulary that all fields draw from, uniformly."""
    width: int = 4
    """k: width of the latent vectors."""
    pairs: int = 7
    """Number of interacting pairs of fields; the strongest is three times as strong as the weakest."""
    scale: float = 2.5
    """Standard deviation of the logit."""
    offset: float = -0.5
    """b."""
    train: int = 60_000
    validation: int = 20_000
    test: int = 20_000
    seed: int = 2021

    def open(self) -> Splits:
        return _open(self)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f"field{i}" for i in range(self.fields))

    @property
    def true_pairs(self) -> tuple[Pair, ...]:
        """The interacting pairs, strongest first."""
        return self.truth().pairs

    def interactions(self) -> np.ndarray:
        """Return ``(T, T)``, symmetric: the standard deviation of the term of each pair in the logit, 0 without one."""
        found = np.zeros((self.fields, self.fields))
        for i, j, strength in self.true_pairs:
            found[i, j] = found[j, i] = strength
        return found

    def truth(self) -> Truth:
        """Draw the true model. Raises :class:`ArgumentError` for impossible settings."""
        self._check()
        rng = np.random.default_rng([self.seed, 0])
        latent = rng.standard_normal((self.values, self.width))
        latent -= latent.mean(0)
        every = [(i, j) for i in range(self.fields) for j in range(i + 1, self.fields)]
        chosen = [every[index] for index in rng.permutation(len(every))[: self.pairs]]
        strengths = np.linspace(3.0, 1.0, self.pairs)
        # terms of different pairs are uncorrelated: the variance of the logit is the sum of squares
        strengths *= self.scale / math.sqrt((strengths**2).sum())
        forms = rng.standard_normal((self.pairs, self.width, self.width))
        for index, strength in enumerate(strengths):
            forms[index] *= strength / (latent @ forms[index] @ latent.T).std()
        pairs = (Pair(i, j, float(s)) for (i, j), s in zip(chosen, strengths, strict=True))
        return Truth(latent, tuple(pairs), forms)

    def part(self, index: int) -> tuple[pd.DataFrame, np.ndarray]:
        """Return rows of train (0), validation (1) or test (2) with labels, and their true logits."""
        truth = self.truth()
        rng = np.random.default_rng([self.seed, 1, index])
        values = rng.integers(0, self.values, ((self.train, self.validation, self.test)[index], self.fields))
        logits = np.full(len(values), self.offset)
        for (i, j, _), form in zip(truth.pairs, truth.forms, strict=True):
            logits += ((truth.latent @ form)[values[:, i]] * truth.latent[values[:, j]]).sum(1)
        labels = (rng.random(len(values)) < sigmoid(logits)).astype(np.int64)
        return pd.DataFrame({**dict(zip(self.names, values.T, strict=True)), LABEL: labels}), logits

    def best(self) -> dict[str, float]:
        """Return the expected ``auc`` and ``log_loss`` of the true probabilities on the test rows, over random labels.

        No model can be expected to do better.
        """
        logits = self.part(2)[1]
        return expected_scores(logits)

    def _check(self) -> None:
        most = self.fields * (self.fields - 1) // 2
        for name, least in (("fields", 2), ("values", 2), ("width", 1), ("train", 1), ("validation", 1), ("test", 1)):
            if getattr(self, name) < least:
                raise ArgumentError(f"synthetic: {name}: found {getattr(self, name)}, expected {least} or more")
        if not 1 <= self.pairs <= most:
            raise ArgumentError(f"synthetic: pairs: found {self.pairs}, expected 1 to {most} with {self.fields} fields")
        if not self.scale > 0:
            raise ArgumentError(f"synthetic: scale: found {self.scale}, expected more than 0")


def expected_scores(logits: np.ndarray) -> dict[str, float]:
    """Return AUC and log loss of ``p = sigmoid(logits)`` against labels drawn from p. With p in ascending order,

    AUC = sum_{a < b} (1 - p_a) p_b / (sum_a (1 - p_a) sum_b p_b)  over a != b, ties half;   log loss = mean entropy
    """
    p = np.sort(sigmoid(logits))
    below = np.cumsum(1.0 - p) - (1.0 - p)
    _, tie, size = np.unique(p, return_inverse=True, return_counts=True)
    # ties: each pair of equal p counts half in each direction, whatever their order after sorting
    inside = p * (1.0 - p)
    start = np.cumsum(size) - size
    below = below[start][tie] + 0.5 * (size[tie] - 1) * (1.0 - p)
    pairs = p.sum() * (1.0 - p).sum() - inside.sum()
    log_loss = -(p * np.log(p) + (1.0 - p) * np.log1p(-p)).mean()
    return {"auc": float((p * below).sum() / pairs), "log_loss": float(log_loss)}


@lru_cache(maxsize=1)
def _open(config: Synthetic) -> Splits:
    names = list(config.names)
    # each value once per field: all vocabularies have the same order, so that an id means the same in every field
    all_values = pd.DataFrame({name: np.arange(config.values) for name in names})
    spec = FeatureSpec(tuple(Field(name, "categorical", family_of(all_values[name])) for name in names))
    encoder = Encoder.fit(all_values, spec)
    labels = Labels.of(pd.DataFrame({LABEL: [0, 1]}), (LABEL,))
    parts = []
    for index in range(3):
        frame, _ = config.part(index)
        encoded = encoder.transform(frame)
        parts.append(Rows(encoded.ids, encoded.numbers, torch.from_numpy(labels.encode(frame))))
    facts = {"layout": encoder.layout(labels.tasks), "files": {**encoder.files(), **labels.files()}}
    return Splits(*parts, facts)
