"""Evaluation of a frozen encoder on held-out episodes: probes of state, action and order, collapse, sparsity."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from manyheads.rl.encoders.frames import FrameEncoder
from manyheads.rl.pretraining.data import ProbePart
from manyheads.rl.pretraining.games import GAMES
from manyheads.rl.pretraining.measures import Collapse, collapse, sparsity_by_layer
from manyheads.rl.pretraining.probes import (
    ClassScore,
    Features,
    StateScore,
    action_probe,
    features_of,
    order_probe,
    order_score,
    state_probe,
)

# Most triples for fitting and for scoring, evenly spread; state and action use their frames.
FITTED, HELD = 3000, 1500
# Frames whose tokens give the sparsity.
SPARSITY_FRAMES = 128


@dataclass(frozen=True)
class Evaluation:
    """Scores of one encoder; those of the state are by kind of feature, "pooled" and "patches"."""

    state: dict[str, StateScore]
    """Empty for a game without labels."""
    action: ClassScore
    order: ClassScore
    """Of an MLP trained on the frozen pooled features."""
    own_order: ClassScore | None
    """Of the order head that was trained with the encoder."""
    collapse: Collapse
    sparsity: list[float]
    """By block."""

    def metrics(self) -> dict[str, float]:
        """Return all scores as numbers."""
        found: dict[str, float] = {}
        for kind, score in self.state.items():
            found[f"r2_{kind}"] = score.mean().value
        for kind, score in self.state.items():
            found |= {f"r2_{kind}.{name}": float(value) for name, value in zip(score.labels, score.r2(), strict=True)}
        found["action_accuracy"] = self.action.balanced().value
        found["order_accuracy"] = self.order.balanced().value
        if self.own_order is not None:
            found["own_order_accuracy"] = self.own_order.balanced().value
        found["effective_rank"] = self.collapse.effective_rank
        found["off_diagonal"] = self.collapse.off_diagonal
        found["least_deviation"] = float(self.collapse.deviation.min())
        found |= {f"sparsity.{block}": value for block, value in enumerate(self.sparsity, 1)}
        return found


def evaluate(encoder: FrameEncoder, part: ProbePart, *, own_head: nn.Module | None = None) -> Evaluation:
    """Fit the probes on the fitted episodes of a part, score them on the held-out ones.

    Raises :class:`ArgumentError` for a recording in which an object is absent.
    """
    recording, labels = part.recording, GAMES.get(part.recording.game, ())
    centres = [_thinned(part.centres(episodes), most) for episodes, most in ((part.fitted, FITTED), (part.held, HELD))]
    steps = np.array([-part.gap, 0, part.gap])
    at = [np.unique(one[:, None] + steps) for one in centres]
    features = [features_of(encoder, recording, one, stack=part.stack) for one in at]
    episodes = (recording.episodes[at[0]], recording.episodes[at[1]])
    state: dict[str, StateScore] = {}
    for kind in Features._fields if labels else ():
        pair = (getattr(features[0], kind), getattr(features[1], kind))
        state[kind] = state_probe(pair, (recording.ram[at[0]], recording.ram[at[1]]), episodes, labels)
    pooled = (features[0].pooled, features[1].pooled)
    action = action_probe(pooled, (recording.actions[at[0]], recording.actions[at[1]]), episodes[1])
    fitted, held = (
        one[torch.from_numpy(np.searchsorted(frames, where[:, None] + steps))]
        for one, frames, where in zip(pooled, at, centres, strict=True)
    )
    of_held = recording.episodes[centres[1]]
    own = None if own_head is None else order_score(own_head.eval(), held, of_held)
    frames = torch.from_numpy(recording.observations(at[1][:SPARSITY_FRAMES], stack=part.stack))
    return Evaluation(
        state,
        action,
        order_probe((fitted, held), of_held),
        own,
        collapse(features[1].pooled),
        sparsity_by_layer(encoder, frames),
    )


def _thinned(rows: np.ndarray, most: int) -> np.ndarray:
    """Return at most so many rows, evenly spread."""
    return rows[np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(np.int64)]
