"""The objective of pretraining: views of each triple, the weighted sum of the terms, probes and collapse measures.

Differs from the published TOV-VICReg (2209.10901 and its code):

- the order head is an MLP, with a batch norm before it; ``head="linear"`` is the published one;
- half of the triples keep their order, one of six as published; "in order" is t - k, t, t + k (the code has t, t - k,
  t + k);
- the triple is seen as it is, and its centre is the second view of VICReg. Published are two strong views, one of them
  in the triple, by which the linear head tells the centre (``views="published"``, ``shortcut=True``);
- there is no crop, which hides where an object is, and no hue, grayscale or flip;
- the views of t - k and t + k are not projected; triples never cross an episode.

Of MoCo v3 and DINO: the momentum of the average is constant, the temperature of the teacher too, and DINO has two views
of full size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from manyheads.core.errors import ArgumentError
from manyheads.lab.training.environment import first_process
from manyheads.lab.training.experiment import Splits
from manyheads.rl.encoders.frames import FILE, FrameEncoder
from manyheads.rl.pretraining.augment import (
    PUBLISHED_LIGHT,
    PUBLISHED_SECOND,
    PUBLISHED_STRONG,
    Augmentation,
)
from manyheads.rl.pretraining.data import ProbePart
from manyheads.rl.pretraining.evaluate import evaluate
from manyheads.rl.pretraining.methods import Views

# A crop makes a representation indifferent to the place of ball and paddle.
STRONG = Augmentation(jitter=0.4, blur=(0.1, 0.6), blur_probability=0.3, solarise_probability=0.2)


@dataclass(frozen=True)
class PretrainingLoss:
    """Weighted sum of the terms of the method."""

    invariance: float = 10.0
    """Weight of the invariance."""
    variance: float = 10.0
    """Weight of the variance."""
    covariance: float = 10.0
    """Weight of the covariance."""
    order: float = 5.0
    """Weight of the order of time; published: 0.1."""
    views: Literal["mild", "published"] = "mild"
    """mild: one strong view of the centre without a crop, and the triple as it is, whose centre is the second view.
    published: two strong views of the centre with crops of 8 to 100 % of the area, light views of its neighbours."""

    def make_views(self, triples: Tensor, generator: torch.Generator | None = None) -> Views:
        """Return the views of triples of bytes ``(B, 3, S, H, W)``."""
        pixels = triples.float() / 255
        centre = pixels[:, 1]
        if self.views == "published":
            pair = [PUBLISHED_STRONG.views(centre, generator), PUBLISHED_SECOND.views(centre, generator)]
            return Views(torch.stack(pair), PUBLISHED_LIGHT.shared_views(pixels, generator))
        return Views(torch.stack([STRONG.views(centre, generator), centre]), pixels, shared=True)

    def loss(self, model: nn.Module, batch: Tensor) -> Tensor:
        """Return the loss of a batch. Raises :class:`ArgumentError` if no term has a weight."""
        terms: Mapping[str, Tensor] = model(self.make_views(batch))
        weights = {name: getattr(self, name, 1.0) for name in terms}
        if not any(weights.values()):
            raise ArgumentError(f"objective: found weight 0 for {', '.join(terms)}, expected one above 0")
        return torch.stack([weights[name] * term for name, term in terms.items()]).sum()

    def metrics(self, model: nn.Module, part: ProbePart) -> dict[str, float]:
        """Return probes on held-out episodes and collapse measures."""
        encoder = model.encoder
        assert isinstance(encoder, FrameEncoder)
        return evaluate(encoder, part, own_head=getattr(model, "head", None)).metrics()

    def after(self, model: nn.Module, splits: Splits, folder: Path) -> None:
        """Write the encoder file."""
        if first_process():
            encoder = model.encoder
            assert isinstance(encoder, FrameEncoder)
            encoder.save(folder / FILE, splits.facts)
