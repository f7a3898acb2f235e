"""The Gymnasium names of our own tasks. ``import manyheads.rl.environments`` registers them."""

from __future__ import annotations

from gymnasium.envs.registration import register, registry

# Name, module, class without its ending, and time limit: gymnasium.make adds it, gymnasium.make_vec passes it on.
TASKS = (
    ("manyheads/TMaze-v0", "t_maze", "TMaze", None),
    ("manyheads/RepeatPrevious-v0", "repeat_previous", "RepeatPrevious", None),
    ("manyheads/HiddenCartPole-v0", "hidden_cartpole", "HiddenCartPole", 500),
)


def register_tasks() -> None:
    """Register our tasks with Gymnasium, once."""
    for name, module, kind, limit in TASKS:
        if name not in registry:
            place = f"manyheads.rl.environments.{module}:{kind}"
            register(name, entry_point=f"{place}Env", vector_entry_point=f"{place}VectorEnv", max_episode_steps=limit)
