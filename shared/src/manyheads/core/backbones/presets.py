"""Image backbones by name and preset: ``create_backbone("vit-small")``.

Every class in a module of ``core/backbones`` that has an ``info`` of its own is registered; the name is that of the
backbone and one of its presets.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from manyheads.core import backbones
from manyheads.core.arguments import checked
from manyheads.core.backbones.image import ImageBackbone
from manyheads.core.discovery import Discovered
from manyheads.core.errors import UnknownNameError

BACKBONES: Mapping[str, type[ImageBackbone]] = Discovered(backbones, ImageBackbone)

__all__ = ["BACKBONES", "create_backbone", "find_backbone", "preset_names"]


def preset_names() -> list[str]:
    """Return every name that :func:`create_backbone` takes."""
    return [f"{name}-{preset}" for name, kind in BACKBONES.items() for preset in kind.info.presets]


@checked
def find_backbone(name: str) -> tuple[type[ImageBackbone], dict[str, Any]]:
    """Return class and arguments of a preset such as "vit-small".

    Raises :class:`UnknownNameError` with the nearest name.
    """
    for place, letter in reversed(list(enumerate(name))):
        if letter == "-" and name[:place] in BACKBONES:
            kind = BACKBONES[name[:place]]
            if name[place + 1 :] in kind.info.presets:
                return kind, dict(kind.info.presets[name[place + 1 :]])
    own = [preset for preset in preset_names() if name and preset.startswith(f"{name}-")]
    raise UnknownNameError("backbone", name, dict.fromkeys(own or preset_names()))


@checked
def create_backbone(name: str, **changes: Any) -> ImageBackbone:
    """Build a backbone by name of a preset: ``create_backbone("vit-small", classes=10, channels=1)``.

    With another ``layer``, the arguments ``info.for_layer`` of the preset are dropped.

    Raises :class:`UnknownNameError`, and :class:`ArgumentError` for arguments that do not fit.
    """
    kind, arguments = find_backbone(name)
    if changes.get("layer", arguments.get("layer")) != arguments.get("layer"):
        arguments = {key: value for key, value in arguments.items() if key not in kind.info.for_layer}
    return kind(**{**arguments, **changes})
