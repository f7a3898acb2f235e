"""The experiments: every image backbone on scikit-learn's digits, and every preset on a folder of pictures.

``digits-<backbone>-nano`` trains the nano preset; ``folder-<backbone>-<preset>`` any preset on ``data.folder``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from manyheads.core.backbones.presets import create_backbone, find_backbone, preset_names
from manyheads.core.errors import ArgumentError
from manyheads.images.training.data import ImageData
from manyheads.images.training.objective import ImageLoss
from manyheads.lab.training.experiment import Budget, Experiment, Splits
from manyheads.lab.training.optimisers import Optimiser

NANO = Budget(epochs=30, batch_size=32, keep="last")
LARGE = Budget(epochs=100, batch_size=32, keep="best", patience=20)


@dataclass(frozen=True)
class BackboneModel:
    """An image backbone by name of a preset."""

    name: str = "vit-nano"
    """Backbone and preset, such as "vit-nano" (manyheads list --backbones)."""
    layer: str | None = None
    """The layer that mixes the tokens, for a backbone around any layer; its own by default. With a chosen layer, the
    head reads the mean of the tokens."""

    def build(self, splits: Splits) -> nn.Module:
        """Build the backbone for the labels, channels and size of the pictures.

        Raises :class:`UnknownNameError`, and :class:`ArgumentError` for a layer where none can be chosen.
        """
        kind, _ = find_backbone(self.name)
        known = {one.name for one in kind.arguments}
        changes: dict[str, Any] = {"classes": len(splits.facts["labels"]), "channels": splits.facts["channels"]}
        if "image_size" in known:
            changes["image_size"] = splits.facts["image_size"]
        if self.layer is not None:
            if "layer" not in known:
                raise ArgumentError(
                    f"model.layer: found {self.layer!r}, expected none: {self.name} has layers of its own"
                )
            changes["layer"] = self.layer
        return create_backbone(self.name, **changes)


def experiments() -> list[Experiment]:
    """Return the nano presets on digits, and all presets on a folder."""
    small = [
        _experiment(f"digits-{name}", name, "digits", 1, NANO) for name in preset_names() if name.endswith("-nano")
    ]
    own = [
        _experiment(f"folder-{name}", name, "folder", 3, NANO if name.endswith("-nano") else LARGE)
        for name in preset_names()
    ]
    return [*small, *own]


def _experiment(title: str, name: str, of: str, channels: int, budget: Budget) -> Experiment:
    kind, arguments = find_backbone(name)
    default = 32 if name.endswith("-nano") else 224
    own = next((one.default for one in kind.arguments if one.name == "image_size"), default)
    size = arguments.get("image_size", own if isinstance(own, int) else default)
    return Experiment(
        title,
        ImageData(of, image_size=size, channels=channels, shift=max(1, size // 16)),
        BackboneModel(name),
        ImageLoss(),
        Optimiser("adamw", 2e-3, weight_decay=0.05, schedule="one-cycle", clip_norm=1.0),
        budget,
    )
