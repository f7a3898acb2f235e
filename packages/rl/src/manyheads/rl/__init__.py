"""Agents with memory for Gymnasium environments: PPO around GTrXL, LSTM, GRU or any streaming layer of the core.

    from manyheads.rl import Agent
    agent = Agent("gtrxl", "manyheads/TMaze-v0").learn(40_000)
    agent.save("agent.safetensors")

Names are imported on first use: ``import manyheads.rl`` alone loads neither torch nor gymnasium.
"""

from __future__ import annotations

import importlib
from typing import Any

from manyheads.lab.domain import Domain

domain = Domain(
    name="rl",
    summary="reinforcement learning: agents with memory on Gymnasium environments, pretraining of Atari encoders",
    package="manyheads-rl",
    commands="manyheads.rl.commands:commands",
    experiments="manyheads.rl.experiments:experiments",
    train_options="manyheads.rl.training.options:AgentOptions",
)

_HOMES = {"Agent": "agent"}
__all__ = ["domain", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
