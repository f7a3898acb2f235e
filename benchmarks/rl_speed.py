"""Compare the speed of our PPO with Stable-Baselines3's and its RecurrentPPO on Pong: ``nox -s rl_speed``.

Both learn with the Nature CNN of width 512 on 84 x 84 pixels (RecurrentPPO and ours with one shared LSTM of 512
besides), 8 environments x 128 steps an update, 4 epochs of 4 minibatches, one thread. Each row is a process of its own;
the rows take turns, and the shortest time of each counts. CPU seconds include the emulator.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from manyheads.lab.data.files import write_csv

RESULT = Path(__file__).parent / "results" / "rl_speed.csv"
ENVIRONMENTS, SEGMENT, EPOCHS, MINIBATCHES = 8, 128, 4, 4
UPDATE = ENVIRONMENTS * SEGMENT
# name: the row that it is compared with, updates that are timed
ROWS = {
    "stable-baselines3 PPO": (None, 3),
    "manyheads PPO": ("stable-baselines3 PPO", 3),
    "manyheads pong-42": ("stable-baselines3 PPO", 12),
    "sb3-contrib RecurrentPPO": (None, 1),
    "manyheads PPO, LSTM": ("sb3-contrib RecurrentPPO", 3),
}
TURNS = 3


def theirs(recurrent: bool) -> Callable[[int], object]:
    """A learner of Stable-Baselines3 with its own environments."""
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_util import make_atari_env
    from stable_baselines3.common.vec_env import VecFrameStack

    envs = VecFrameStack(make_atari_env("ALE/Pong-v5", ENVIRONMENTS, seed=0), 4)
    sizes = {"n_steps": SEGMENT, "n_epochs": EPOCHS, "batch_size": UPDATE // MINIBATCHES, "seed": 0}
    if recurrent:
        from sb3_contrib import RecurrentPPO

        memory = {"lstm_hidden_size": 512, "shared_lstm": True, "enable_critic_lstm": False}
        model = RecurrentPPO("CnnLstmPolicy", envs, policy_kwargs=memory, **sizes)
    else:
        model = PPO("CnnPolicy", envs, **sizes)
    return lambda steps: model.learn(steps, reset_num_timesteps=False)


def ours(core: str, game: str, encoder: str, width: int) -> Callable[[int], object]:
    """Our learner with the same sizes."""
    from manyheads.rl import Agent

    sizes = {"segment": SEGMENT, "epochs": EPOCHS, "minibatches": MINIBATCHES, "rewards": "sign", "clip": 0.1}
    agent = Agent(
        *(core, game), environments=ENVIRONMENTS, encoder=encoder, width=width, depth=1, previous_action=False, **sizes
    )
    return lambda steps: agent.learn(steps, progress=False)


def timed(name: str) -> None:
    """Print the CPU seconds of a thousand steps of one row, after a first update that does not count."""
    import torch

    torch.set_num_threads(1)
    if name.startswith("manyheads"):
        small = name.endswith("pong-42")
        sizes = ("pong-42", "small-cnn", 256) if small else ("pong-84", "nature-cnn", 512)
        learn = ours("lstm" if name.endswith("LSTM") else "none", *sizes)
    else:
        import ale_py
        import gymnasium

        gymnasium.register_envs(ale_py)
        learn = theirs("Recurrent" in name)
    learn(UPDATE)
    updates = ROWS[name][1]
    start = time.process_time()
    learn(updates * UPDATE)
    print(json.dumps((time.process_time() - start) / updates / UPDATE * 1000))


def main() -> None:
    """Time all rows in turn, print and write them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--row", choices=ROWS)
    parser.add_argument("--turns", type=int, default=TURNS)
    parser.add_argument("--csv", type=Path, default=RESULT)
    given = parser.parse_args()
    if given.row:
        timed(given.row)
        return
    best: dict[str, float] = {}
    for turn in range(given.turns):
        for name in ROWS:
            command = [sys.executable, __file__, "--row", name]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            told = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout
            seconds = json.loads(told.splitlines()[-1])
            best[name] = min(seconds, best.get(name, seconds))
            print(f"turn {turn + 1}, {name}: {seconds:.2f} CPU s per 1,000 steps", flush=True)
    versions = " ".join(f"{one}={version(one)}" for one in ("torch", "stable-baselines3", "sb3-contrib", "ale-py"))
    rows = [
        {
            "learner": name,
            "cpu_s_per_1000_steps": round(best[name], 3),
            "steps_per_cpu_s": round(1000 / best[name], 1),
            "compared_with": peer or "",
            "times_as_fast": round(best[peer] / best[name], 2) if peer else "",
            "versions": versions,
        }
        for name, (peer, _) in ROWS.items()
    ]
    write_csv(given.csv, rows)


if __name__ == "__main__":
    main()
