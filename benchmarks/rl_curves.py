"""Compare learning curves of our PPO with those of Stable-Baselines3's: ``python benchmarks/run.py rl_curves``.

Two tasks without a need for memory: CartPole-v1, and Catch, a falling ball on 42 x 42 pixels. Both learners have the
same encoder (initialised by us) with linear heads, the same settings and the same seeds. Written are the mean return
over the training (the area under the curve) and the last one, of the last 100 episodes each.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces

from manyheads.lab.data.files import write_csv, write_figure
from manyheads.rl import Agent

HERE = Path(__file__).parent
RESULT = HERE / "results" / "rl_curves.csv"
PICTURE = HERE.parent / "docs" / "pictures" / "rl-curves.png"
ENVIRONMENTS = 8
SEEDS = (1, 2, 3, 4, 5)

Curve = tuple[list[float], list[float]]


class Catch(gym.Env):
    """A ball of 3 x 3 pixels falls through 14 x 14 cells; the paddle below moves left, not, or right."""

    observation_space = spaces.Box(0, 255, (1, 42, 42), np.uint8)
    action_space = spaces.Discrete(3)
    cells = 14

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.row, self.column, self.paddle = 0, int(self.np_random.integers(self.cells)), self.cells // 2
        return self._seen(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.paddle = min(max(self.paddle + int(action) - 1, 1), self.cells - 2)
        self.row += 1
        over = self.row == self.cells - 1
        caught = abs(self.column - self.paddle) <= 1
        return self._seen(), float((1 if caught else -1) if over else 0), over, False, {}

    def _seen(self) -> np.ndarray:
        board = np.zeros((self.cells, self.cells), np.uint8)
        board[self.row, self.column] = 255
        board[-1, self.paddle - 1 : self.paddle + 2] = 255
        return board.repeat(3, 0).repeat(3, 1)[None]


@dataclass(frozen=True)
class Task:
    """A task with the settings of both learners."""

    make: Callable[[], gym.Env]
    encoder: str
    width: int
    depth: int
    steps: int
    segment: int
    epochs: int
    minibatches: int
    discount: float
    trace: float
    entropy: float
    rate: float


TASKS: Mapping[str, Task] = {
    "CartPole-v1": Task(lambda: gym.make("CartPole-v1"), "mlp", 64, 2, 60_000, 32, 20, 1, 0.98, 0.8, 0.0, 1e-3),
    "Catch 42 x 42": Task(Catch, "small-cnn", 128, 1, 40_000, 64, 4, 1, 0.99, 0.95, 0.01, 1e-3),
}


def ours(task: Task, seed: int) -> Curve:
    """Train our agent; return steps and mean returns."""
    agent = Agent(
        *("none", task.make),
        environments=ENVIRONMENTS,
        seed=seed,
        **{"encoder": task.encoder, "width": task.width, "encoder_depth": task.depth, "previous_action": False},
        **{"segment": task.segment, "epochs": task.epochs, "minibatches": task.minibatches},
        **{"discount": task.discount, "trace": task.trace, "entropy_weight": task.entropy},
        **{"learning_rate": task.rate, "decay": "constant"},
    )
    curve: Curve = ([], [])
    while agent.steps < task.steps:
        agent.learn(1, progress=False)
        if agent.mean_return is not None:
            curve[0].append(agent.steps)
            curve[1].append(agent.mean_return)
    return curve


def theirs(task: Task, seed: int) -> Curve:
    """Train Stable-Baselines3's; return steps and mean returns."""
    from stable_baselines3 import PPO
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_vec_env

    from manyheads.rl.adapters.stable_baselines3 import EncoderFeatures

    curve: Curve = ([], [])

    class Log(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_rollout_end(self) -> None:
            if self.model.ep_info_buffer:
                curve[0].append(self.num_timesteps)
                curve[1].append(float(np.mean([one["r"] for one in self.model.ep_info_buffer])))

    rollout = task.segment * ENVIRONMENTS
    model = PPO(
        "CnnPolicy" if task.encoder == "small-cnn" else "MlpPolicy",
        make_vec_env(task.make, ENVIRONMENTS, seed=seed),
        **{"n_steps": task.segment, "batch_size": rollout // task.minibatches, "n_epochs": task.epochs, "seed": seed},
        **{"gamma": task.discount, "gae_lambda": task.trace, "ent_coef": task.entropy, "learning_rate": task.rate},
        policy_kwargs={
            "net_arch": [],
            "features_extractor_class": EncoderFeatures,
            "features_extractor_kwargs": {"encoder": task.encoder, "width": task.width, "depth": task.depth},
        },
        device="cpu",
    )
    model.learn(task.steps, callback=Log())
    return curve


LEARNERS = {"manyheads": ours, "stable-baselines3": theirs}


def rows(found: Mapping[tuple[str, str], list[tuple[int, Curve, float]]]) -> Iterator[dict[str, Any]]:
    """One row a seed."""
    for (task, learner), seeds in found.items():
        for seed, (steps, returns), seconds in seeds:
            area = np.trapezoid(returns, steps) / (steps[-1] - steps[0])
            yield {
                "task": task,
                "learner": learner,
                "seed": seed,
                "steps": steps[-1],
                "mean_return": round(float(area), 4),
                "last_return": round(returns[-1], 4),
                "cpu_s": round(seconds, 1),
            }


def main() -> None:
    """Train all, write the table and draw the curves."""
    from matplotlib.figure import Figure

    from manyheads.rl.evaluation.plots import at_common_steps

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--csv", type=Path, default=RESULT)
    parser.add_argument("--picture", type=Path, default=PICTURE)
    given = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[tuple[str, str], list[tuple[int, Curve, float]]] = {}
    for seed in given.seeds:
        for name, task in TASKS.items():
            for learner, train in LEARNERS.items():
                start = time.process_time()
                curve = train(task, seed)
                seconds = time.process_time() - start
                found.setdefault((name, learner), []).append((seed, curve, seconds))
                print(f"{name}, {learner}, seed {seed}: last {curve[1][-1]:.3f}, {seconds:.0f} CPU s", flush=True)
    write_csv(given.csv, list(rows(found)))
    figure = Figure(figsize=(9.0, 3.6), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(TASKS)), TASKS, strict=True):
        for learner in LEARNERS:
            steps, returns = at_common_steps([curve for _, curve, _ in found[name, learner]], learner)
            (line,) = axes.plot(steps, returns.mean(1), label=learner)
            axes.fill_between(steps, returns.min(1), returns.max(1), color=line.get_color(), alpha=0.2, linewidth=0)
        axes.set(title=name, xlabel="environment steps", ylabel="return of the last 100 episodes")
        axes.grid(alpha=0.3)
        axes.legend()
    write_figure(given.picture, figure)


if __name__ == "__main__":
    main()
