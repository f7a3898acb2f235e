"""The commands of ``manyheads images``."""

from __future__ import annotations

from manyheads.images.commands.predict import predict

commands = {"predict": predict}
