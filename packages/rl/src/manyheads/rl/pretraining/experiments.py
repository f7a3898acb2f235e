"""The experiments of pretraining: each method around a small vision transformer, and TOV-VICReg as published."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from manyheads.lab.training.experiment import Budget, Experiment, Source, Splits
from manyheads.lab.training.optimisers import Optimiser
from manyheads.rl.encoders.frames import FrameEncoder
from manyheads.rl.pretraining.data import RecordingData
from manyheads.rl.pretraining.methods import Contrast, Distillation, JointEmbedding
from manyheads.rl.pretraining.objective import PretrainingLoss

Method = Literal["tov-vicreg", "vicreg", "order", "moco", "dino"]


@dataclass(frozen=True)
class PretrainingModel:
    """A method around a vision transformer."""

    method: Method = "tov-vicreg"
    dim: int = 64
    """Width of the encoder."""
    depth: int = 2
    """Blocks of the encoder."""
    heads: int = 4
    """Attention heads."""
    patch: int = 14
    """Side of a patch in pixels."""
    pool: Literal["token", "mean"] = "token"
    """The representation: the class token (published), or the mean of the patches."""
    projector: int = 256
    """Width of the three layers of the projector."""
    head: Literal["mlp", "linear"] = "mlp"
    """Order head; linear is the published one, which learns nothing without the shortcut."""
    shortcut: bool = False
    """Whether the triple has the strong view of the centre, as published."""
    in_order: float = 0.5
    """Share of triples that keep their order; published: 1/6."""

    def encoder(self, size: int, stack: int) -> FrameEncoder:
        """Return the encoder with random weights."""
        arguments = {
            "channels": stack, "dim": self.dim, "depth": self.depth, "heads": self.heads, "patch": self.patch,
            "pool": self.pool, "options": {"bias": True},
        }  # fmt: skip
        return FrameEncoder(size, arguments)

    def build(self, splits: Splits) -> nn.Module:
        """Build encoder and heads for the frames of the data."""
        encoder = self.encoder(splits.facts["size"], splits.facts["stack"])
        widths = (self.projector,) * 3
        if self.method == "moco":
            return Contrast(encoder, projector=widths, hidden=self.projector)
        if self.method == "dino":
            return Distillation(encoder, hidden=self.projector)
        return JointEmbedding(
            encoder,
            projector=() if self.method == "order" else widths,
            head=None if self.method == "vicreg" else self.head,
            hidden=2 * self.dim,
            shortcut=self.shortcut,
            in_order=self.in_order,
        )


SMALL = Budget(epochs=2, batch_size=128, keep="last", checkpoint_every=200)
ADAM = Optimiser("adamw", 1e-3, weight_decay=0.05, schedule="one-cycle", clip_norm=1.0)


def experiments() -> list[Experiment]:
    """Return each method with a small encoder on 42 x 42 frames of Pong, and TOV-VICReg as published."""
    methods: tuple[Method, ...] = ("tov-vicreg", "vicreg", "order", "moco", "dino")
    small = [
        Experiment(f"{method}-small", RecordingData(size=42), PretrainingModel(method), PretrainingLoss(), ADAM, SMALL)
        for method in methods
    ]
    published = Experiment(
        "tov-vicreg-published",
        RecordingData(size=84),
        PretrainingModel(
            dim=192, depth=12, heads=3, patch=8, pool="token", projector=1024,
            head="linear", shortcut=True, in_order=1 / 6,
        ),
        PretrainingLoss(10.0, 10.0, 10.0, 0.1, views="published"),
        Optimiser("lars", 1.2, weight_decay=1e-6, schedule="one-cycle", warm_up=0.2),
        Budget(epochs=10, batch_size=512, keep="last", checkpoint_every=50),
        source=Source("2209.10901", "code, run_tov-vicreg.sh"),
    )  # fmt: skip
    return [*small, published]
