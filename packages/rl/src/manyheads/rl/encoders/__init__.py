"""Encoders: observations to vectors of one width."""

from manyheads.rl.encoders.build import Encoder, build_encoder
from manyheads.rl.encoders.observations import to_tensors

__all__ = ["Encoder", "build_encoder", "to_tensors"]
