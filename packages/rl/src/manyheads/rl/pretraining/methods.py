"""The networks around an encoder in pretraining; each maps views to the terms of its loss.

    JointEmbedding   VICReg, the order of a triple, or both (TOV-VICReg)
    Contrast         MoCo v3: predictor, and encoder and projector that follow by a moving average
    Distillation     DINO: a student learns the prototypes of its own moving average

A moving average is updated at the start of a training step, from the weights after the step before.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from manyheads.rl.encoders.frames import FrameEncoder
from manyheads.rl.pretraining import losses


class Views(NamedTuple):
    """Augmented observations of a batch."""

    pair: Tensor
    """``(2, B, S, H, W)``: two views of the centre."""
    triple: Tensor
    """``(B, 3, S, H, W)``: views of t - k, t, t + k; ``(B, 0, S, H, W)`` if nothing needs them."""
    shared: bool = False
    """Whether the second view of the pair is the centre of the triple, so that it is encoded once."""


def mlp(widths: Iterable[int], *, last_bias: bool = False, last_norm: bool = False) -> nn.Sequential:
    """Return linear maps with batch norm and ReLU between them; the last is linear, or normed without an affine map."""
    sizes = list(widths)
    layers: list[nn.Module] = []
    for place, (before, after) in enumerate(pairwise(sizes)):
        last = place == len(sizes) - 2
        layers.append(nn.Linear(before, after, bias=last_bias if last else True))
        if not last:
            layers += [nn.BatchNorm1d(after), nn.ReLU()]
    if last_norm:
        layers.append(nn.BatchNorm1d(sizes[-1], affine=False))
    return nn.Sequential(*layers)


class OrderHead(nn.Module):
    """Logit of "not in the order of time" for triples ``(B, 3, D)``.

    ``linear`` is the published head, one linear map of the concatenation. Its score is a sum over the three places:
    a stationary stream gives it nothing to learn, except a difference between the views of the places. ``mlp`` has two
    hidden layers. Batch norm before it, without an affine map, brings out the small part of a representation that
    changes within an episode.
    """

    def __init__(self, width: int, kind: Literal["mlp", "linear"] = "mlp", hidden: int = 128) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width, affine=False)
        if kind == "linear":
            self.score: nn.Module = nn.Linear(3 * width, 1)
        else:
            self.score = nn.Sequential(
                *(nn.Linear(3 * width, hidden), nn.ReLU()),
                *(nn.Linear(hidden, hidden), nn.ReLU()),
                nn.Linear(hidden, 1),
            )

    def forward(self, triples: Tensor) -> Tensor:
        """``(B, 3, D)`` to logits ``(B,)``."""
        # one norm for the three places, or it would tell them apart
        normed = self.norm(triples.flatten(0, 1)).view(triples.shape)
        return self.score(normed.flatten(1)).squeeze(-1)


class JointEmbedding(nn.Module):
    """VICReg on projections of a pair of views, order on representations of a triple.

    Args:
        encoder: from frames to ``(B, D)``.
        projector: widths of the projector; none for no VICReg.
        head: kind of the order head; None for no order term.
        shortcut: take the strong view of the centre into the triple, as published; the head can then tell the centre by
            its augmentation.
        in_order: share of triples that keep their order.
    """

    def __init__(
        self,
        encoder: FrameEncoder,
        *,
        projector: tuple[int, ...] = (),
        head: Literal["mlp", "linear"] | None = None,
        hidden: int = 128,
        shortcut: bool = False,
        in_order: float = 0.5,
    ) -> None:
        super().__init__()
        self.encoder, self.shortcut, self.in_order = encoder, shortcut, in_order
        self.projector = mlp((encoder.width, *projector)) if projector else None
        self.head = None if head is None else OrderHead(encoder.width, head, hidden)

    def forward(self, views: Views) -> dict[str, Tensor]:
        """Return the terms ``invariance``, ``variance``, ``covariance`` and ``order``, those that the network has."""
        terms: dict[str, Tensor] = {}
        strong = None if self.projector is None and not self.shortcut else self.encoder(views.pair[0])
        h = None if self.head is None else self._triple(views.triple, strong)
        if self.projector is not None:
            assert strong is not None
            # each view is encoded once: the second of the pair may be the centre of the triple
            again = h is not None and views.shared and not self.shortcut
            a, b = self.projector(strong), self.projector(h[:, 1] if again else self.encoder(views.pair[1]))
            terms["invariance"] = losses.invariance(a, b)
            terms["variance"] = losses.variance(a) + losses.variance(b)
            terms["covariance"] = losses.covariance(a) + losses.covariance(b)
        if self.head is not None:
            assert h is not None
            shuffled = losses.shuffle_triples(h, in_order=self.in_order)
            terms["order"] = losses.order_loss(self.head(shuffled.triples), shuffled.target)
        return terms

    def _triple(self, triple: Tensor, strong: Tensor | None) -> Tensor:
        """Representations ``(B, 3, D)``."""
        if not self.shortcut:
            return self.encoder(triple.flatten(0, 1)).view(len(triple), 3, -1)
        assert strong is not None
        sides = self.encoder(triple[:, ::2].flatten(0, 1)).view(len(triple), 2, -1)
        return torch.stack([sides[:, 0], strong, sides[:, 1]], 1)


class Follower(nn.Module):
    """A copy of a module whose weights follow it by an exponential moving average."""

    def __init__(self, leader: nn.Module, momentum: float) -> None:
        super().__init__()
        self.module, self.momentum = copy.deepcopy(leader).requires_grad_(False), momentum

    @torch.no_grad()
    def follow(self, leader: nn.Module) -> None:
        """Take one step of the average; buffers are copied."""
        for own, other in zip(self.module.parameters(), leader.parameters(), strict=True):
            own.lerp_(other.to(own.dtype), 1 - self.momentum)
        for own, other in zip(self.module.buffers(), leader.buffers(), strict=True):
            own.copy_(other)

    def forward(self, x: Tensor) -> Tensor:
        """Run the copy, without gradients."""
        with torch.no_grad():
            return self.module(x)


class Contrast(nn.Module):
    """MoCo v3: the prediction of each view should find the momentum projection of the other view in the batch.

    ``freeze_patches`` keeps the random patch projection, which the paper found to make ViT training stable.
    """

    def __init__(
        self,
        encoder: FrameEncoder,
        *,
        projector: tuple[int, ...],
        hidden: int,
        momentum: float = 0.99,
        temperature: float = 0.2,
        freeze_patches: bool = True,
    ) -> None:
        super().__init__()
        if freeze_patches:
            encoder.network.patches.requires_grad_(False)
        self.encoder, self.temperature = encoder, temperature
        self.projector = mlp((encoder.width, *projector), last_norm=True)
        self.predictor = mlp((projector[-1], hidden, projector[-1]), last_norm=True)
        self.keys = Follower(nn.Sequential(self.encoder, self.projector), momentum)

    def forward(self, views: Views) -> dict[str, Tensor]:
        """Return the term ``contrast``, over both directions."""
        if self.training:
            self.keys.follow(nn.Sequential(self.encoder, self.projector))
        a, b = (self.predictor(self.projector(self.encoder(view))) for view in views.pair)
        first, second = (self.keys(view) for view in views.pair)
        one, other = (losses.contrastive(q, k, self.temperature) for q, k in ((a, second), (b, first)))
        return {"contrast": one + other}


class PrototypeHead(nn.Module):
    """DINO's head: an MLP with GELU, a norm to length 1, cosines to prototypes."""

    def __init__(self, width: int, hidden: int, bottleneck: int, prototypes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Linear(width, hidden), nn.GELU()),
            *(nn.Linear(hidden, hidden), nn.GELU()),
            nn.Linear(hidden, bottleneck),
        )
        self.prototypes = nn.Parameter(torch.randn(prototypes, bottleneck) / bottleneck**0.5)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, D)`` to scores ``(B, P)``."""
        h = functional.normalize(self.layers(x), dim=-1)
        return h @ functional.normalize(self.prototypes, dim=-1).T


class Distillation(nn.Module):
    """DINO with two views: the student learns the centred and sharpened scores of its moving average."""

    centre: Tensor

    def __init__(
        self,
        encoder: FrameEncoder,
        *,
        hidden: int,
        bottleneck: int = 256,
        prototypes: int = 1024,
        momentum: float = 0.996,
        centre_momentum: float = 0.9,
        student_temperature: float = 0.1,
        teacher_temperature: float = 0.04,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.prototype_head = PrototypeHead(encoder.width, hidden, bottleneck, prototypes)
        self.teacher = Follower(nn.Sequential(self.encoder, self.prototype_head), momentum)
        self.centre_momentum = centre_momentum
        self.temperatures = {"student_temperature": student_temperature, "teacher_temperature": teacher_temperature}
        self.register_buffer("centre", torch.zeros(prototypes))

    def forward(self, views: Views) -> dict[str, Tensor]:
        """Return the term ``distillation``; in training also move teacher and centre."""
        if self.training:
            self.teacher.follow(nn.Sequential(self.encoder, self.prototype_head))
        student = torch.stack([self.prototype_head(self.encoder(view)) for view in views.pair])
        teacher = torch.stack([self.teacher(view) for view in views.pair])
        loss = losses.distillation(student, teacher, self.centre, **self.temperatures)
        if self.training:
            with torch.no_grad():
                self.centre.lerp_(teacher.mean((0, 1)), 1 - self.centre_momentum)
        return {"distillation": loss}
