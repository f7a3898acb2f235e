"""The training loop of agents: rollout, update, checkpoint; a killed run resumes from its last checkpoint.

What determines the rest of a run is in a checkpoint: weights, optimiser, statistics of rewards and observations, random
generators, the memory and the position in the environments. Our own tasks go on where they were, so that the metrics of
a resumed run are bit-identical to those of an unbroken one. Environments that cannot store their state are reset on
resuming, with a seed drawn from seed and update number, and a warning says so; ``budget.reset_every`` makes them exact
at a price (:class:`StepBudget`).
"""

from __future__ import annotations

import json
import math
import os
import time
import warnings
from collections import deque
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from torch import Tensor

from manyheads.core import state as trees
from manyheads.core.errors import ArgumentError, DataError, ManyheadsError, ManyheadsWarning
from manyheads.lab.data.files import make_folder, write_atomically
from manyheads.lab.data.storage import save_model
from manyheads.lab.progress import progress as show_progress
from manyheads.lab.training import checkpoint
from manyheads.lab.training.report import SeedResult
from manyheads.rl.environments.episodes import evaluate
from manyheads.rl.policies.player import PolicyPlayer
from manyheads.rl.policies.policy import Policy
from manyheads.rl.training.environment_state import environment_state, restore_environment
from manyheads.rl.training.learner import AgentOptimiser, Algorithm
from manyheads.rl.training.rollout import Rollout, Stream, collect
from manyheads.rl.training.settings import AgentExperiment, StepBudget
from manyheads.rl.training.stored import FILE, save_policy

# Episodes of the running mean return.
RECENT = 100
# Lines of progress where standard error is no terminal.
LINES = 50
# Second part of the seeds of environments: update numbers count from 0, the evaluation has its own.
EVALUATION = 2**31


class Training:
    """The position of a training: policy, learner, optimiser, environments, counts.

    Args:
        environments: running environments.
        policy: to be trained.
        algorithm: PPO or V-MPO.
        optimiser: its settings.
        seed: of actions, minibatches and environments.
        name: of the task, for messages.
        keep_best: hold the weights of the highest mean return of 100 training episodes.
    """

    def __init__(
        self,
        environments: VectorEnv,
        policy: Policy,
        algorithm: Algorithm,
        optimiser: AgentOptimiser,
        *,
        seed: int,
        name: str = "environment",
        keep_best: bool = False,
    ) -> None:
        self.environments, self.policy, self.seed, self.name = environments, policy, seed, name
        self.algorithm, self.settings, self.keep_best = algorithm, optimiser, keep_best
        self.learner = algorithm.learner(policy, environments.num_envs)
        self.optimiser = optimiser.make(self.learner)
        self.generator = torch.Generator().manual_seed(seed)
        self.updates = self.steps = self.episodes = 0
        self.recent: deque[float] = deque(maxlen=RECENT)
        self.best: dict[str, Tensor] = {}
        self.best_return = -math.inf
        self.stream = self._restarted()

    @property
    def mean_return(self) -> float | None:
        """Mean return of the last :data:`RECENT` episodes; None before the first ends."""
        return sum(self.recent) / len(self.recent) if self.recent else None

    def update(self, done: float) -> dict[str, float | None]:
        """Collect a rollout and learn from it; ``done`` is the share of the budget that is spent.

        Raises :class:`DataError` for an environment that fails, and for a loss that is not finite.
        """
        rate = self.settings.rate(done)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        rollout = self._collect()
        self.steps += rollout.steps
        self.episodes += len(rollout.finished)
        self.recent.extend(reward for reward, _ in rollout.finished)
        mean = self.mean_return
        # before the learner changes the weights that earned these returns
        if self.keep_best and len(self.recent) == RECENT and mean is not None and mean > self.best_return:
            self.best_return = mean
            self.best = {name: one.clone() for name, one in self.policy.state_dict().items()}
        found = self.learner.update(rollout, self.optimiser, self.settings.clip_norm, self.generator)
        # after the update, so that the weights were trained on what acted
        self.policy.encoder.take_in(
            {name: one.flatten(0, 1)[rollout.valid.flatten()] for name, one in rollout.observations.items()}
        )
        self.updates += 1
        counts = {"update": self.updates, "step": self.steps, "episodes": self.episodes}
        return {**counts, "return": self.mean_return, **found, "learning_rate": rate}

    def restart(self) -> None:
        """Reset all environments, with a seed drawn from seed and update number."""
        self.stream = self._restarted()

    def tensors(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything that determines the rest of the run, as tensors and JSON."""
        tensors, groups = checkpoint.optimiser_tensors(self.optimiser)
        states, others = checkpoint.random_states(self.generator)
        tensors |= states
        tensors |= {f"learner.{name}": one for name, one in self.learner.state_dict().items()}
        stream = self.stream
        for name in ("is_first", "over", "previous_action", "previous_reward"):
            tensors[f"stream.{name}"] = getattr(stream, name)
        for name in ("episode_return", "episode_length"):
            tensors[f"stream.{name}"] = torch.from_numpy(getattr(stream, name))
        tensors |= {f"stream.observations.{name}": one for name, one in stream.observations.items()}
        tensors |= {f"stream.state.{at}": one for at, one in enumerate(trees.leaves(stream.state))}
        for name, one in (environment_state(self.environments) or {}).items():
            tensors[f"environment.{name}"] = torch.from_numpy(one)
        tensors |= {f"best.{name}": one for name, one in self.best.items()}
        counts = {"updates": self.updates, "steps": self.steps, "episodes": self.episodes}
        best = self.best_return if self.best else None
        return tensors, {**counts, "recent": list(self.recent), "best": best, "groups": groups, "random": others}

    def restore(self, tensors: Mapping[str, Tensor], stored: Mapping[str, Any]) -> bool:
        """Take the position of :meth:`tensors`; return whether the environments go on where they were."""
        self.learner.load_state_dict(_without("learner.", tensors))
        checkpoint.restore_optimiser(self.optimiser, tensors, stored["groups"])
        checkpoint.restore_random_states(self.generator, tensors, stored["random"])
        self.updates, self.steps, self.episodes = stored["updates"], stored["steps"], stored["episodes"]
        self.recent.extend(stored["recent"])
        self.best = _without("best.", tensors)
        self.best_return = -math.inf if stored["best"] is None else stored["best"]
        held = {name: one.numpy() for name, one in _without("environment.", tensors).items()}
        if not restore_environment(self.environments, held):
            self.restart()
            return False
        own = _without("stream.", tensors)
        memory = iter([own[f"state.{at}"] for at in range(len(trees.leaves(self.stream.state)))])
        self.stream = Stream(
            observations=_without("observations.", own),
            state=trees.tree_map(lambda _: next(memory), self.stream.state),
            is_first=own["is_first"],
            over=own["over"],
            previous_action=own["previous_action"],
            previous_reward=own["previous_reward"],
            episode_return=own["episode_return"].numpy().copy(),
            episode_length=own["episode_length"].numpy().copy(),
        )
        return True

    def _collect(self) -> Rollout:
        try:
            return collect(self.environments, self.policy, self.stream, self.algorithm.segment, self.generator)
        except ManyheadsError:
            raise
        except Exception as error:
            raise DataError(
                f"{self.name}: found {type(error).__name__} ({error}) after {self.steps} steps, expected environments "
                "that step: the last checkpoint is kept; correct the environment and run again to resume"
            ) from error

    def _restarted(self) -> Stream:
        return Stream.start(self.environments, self.policy, drawn_seed(self.seed, self.updates))


def drawn_seed(seed: int, place: int) -> int:
    """Draw the seed of environments from that of a run and a place in it."""
    return int(np.random.SeedSequence([seed % 2**64, place]).generate_state(1)[0]) % 2**31


def fit_agent(
    experiment: AgentExperiment,
    seed: int,
    folder: Path | None,
    *,
    resume: bool = True,
    progress: bool = True,
    tensorboard: bool = False,
) -> SeedResult:
    """Train one seed, evaluate it in new environments, and write its files; without a ``folder`` nothing is written.

    The folder then holds ``metrics.jsonl`` with a line for each update, ``model.safetensors``, and
    ``agent.safetensors``, which :meth:`Agent.load` reads.
    """
    task, budget = experiment.data, experiment.budget
    before, earlier = time.process_time(), 0.0
    environments = task.open()
    try:
        seen, acted = environments.single_observation_space, environments.single_action_space
        policy = experiment.model.seeded(seen, acted, seed)
        training = Training(
            environments,
            policy,
            experiment.objective,
            experiment.optimiser,
            seed=seed,
            name=task.environment,
            keep_best=budget.keep == "best",
        )
        identity = {"experiment": experiment.hash if folder else "", "seed": seed}
        reached: int | None = None
        checkpoints = None if folder is None else folder / "checkpoints"
        if checkpoints is not None and not resume:
            checkpoint.remove_checkpoints(checkpoints)
        if checkpoints is not None and resume and (found := checkpoint.load_latest(checkpoints, expect=identity)):
            exact = training.restore(*found) or budget.reset_every is not None
            earlier, reached = checkpoint.load_cpu_seconds(checkpoints), found[1]["reached"]
            if not exact:
                warnings.warn(
                    f"{task.environment}: it cannot store its state, so new episodes begin at update "
                    f"{training.updates}; metrics from there differ from those of an unbroken run "
                    "(budget.reset_every makes them equal)",
                    ManyheadsWarning,
                    stacklevel=2,
                )
        log = _log(folder, training.updates, tensorboard)
        per_update = environments.num_envs * experiment.objective.segment
        expected = max(1, math.ceil((budget.steps - training.steps) / per_update))
        every = max(1, expected // LINES)
        title = f"{experiment.name}, seed {seed}"
        with show_progress(title, math.ceil(expected / every)) if progress else nullcontext(None) as advance:
            start = training.steps
            while not _finished(budget, training, reached):
                if budget.reset_every is not None and training.updates and training.updates % budget.reset_every == 0:
                    training.restart()
                line = training.update(training.steps / budget.steps)
                cpu_seconds = time.process_time() - before + earlier
                mean = training.mean_return
                full = len(training.recent) == RECENT
                if reached is None and task.target is not None and full and mean is not None and mean >= task.target:
                    reached = training.steps
                log({**line, "cpu_s": round(cpu_seconds, 3)}, training.steps)
                if checkpoints is not None and _is_due(budget, training, reached):
                    tensors, stored = training.tensors()
                    stored = {**identity, **stored, "reached": reached}
                    checkpoint.save_checkpoint(checkpoints, training.updates, tensors, stored)
                    checkpoint.save_cpu_seconds(checkpoints, cpu_seconds)
                if advance is not None and training.updates % every == 0:
                    rate = (training.steps - start) / (cpu_seconds - earlier)
                    said = "no episode yet" if mean is None else f"return {mean:.3g}"
                    advance(f"{training.steps:,} steps, {said}, {rate:.0f} steps/CPU s")
    finally:
        environments.close()
    if training.best:
        policy.load_state_dict(training.best)
    metrics = _evaluated(experiment, policy, seed)
    if task.target is not None:
        metrics["reached"] = float(reached is not None)
        metrics["steps_to_target"] = float(training.steps if reached is None else reached)
    metrics["steps"] = float(training.steps)
    parameters = sum(one.numel() for one in policy.parameters())
    if folder is not None:
        about = {"experiment": experiment.description(), "seed": seed, "metrics": metrics}
        save_model(folder, policy.state_dict(), about)
        save_policy(folder / FILE, policy, experiment.model, seen, acted, about)
    return SeedResult(metrics, parameters, time.process_time() - before + earlier, training.updates)


def _evaluated(experiment: AgentExperiment, policy: Policy, seed: int) -> dict[str, float]:
    task = experiment.data
    if task.evaluation_episodes < 1:
        raise ArgumentError(f"evaluation_episodes: found {task.evaluation_episodes}, expected 1 or more")
    environments = task.open(min(task.environments, task.evaluation_episodes))
    try:
        player = PolicyPlayer(policy, environments.single_observation_space)
        start = drawn_seed(seed, EVALUATION)
        played = evaluate(player, environments, task.evaluation_episodes, seed=start, deterministic=task.deterministic)
    finally:
        environments.close()
    return {"return": played.mean, "episode_length": float(played.lengths.mean())}


def _finished(budget: StepBudget, training: Training, reached: int | None) -> bool:
    return training.steps >= budget.steps or (budget.until_target and reached is not None)


def _is_due(budget: StepBudget, training: Training, reached: int | None) -> bool:
    """Whether a checkpoint follows this update: with ``reset_every`` right before a reset and at the end only."""
    every = budget.reset_every or budget.checkpoint_every
    return _finished(budget, training, reached) or training.updates % every == 0


def _log(folder: Path | None, updates: int, tensorboard: bool) -> Any:
    """Return a function that adds a line to ``metrics.jsonl``; lines after ``updates`` are cut first."""
    if folder is None:
        return lambda line, step: None
    make_folder(folder)
    path = folder / "metrics.jsonl"
    kept = path.read_bytes().splitlines(keepends=True)[:updates] if path.exists() else []
    write_atomically(path, b"".join(kept))
    write = None
    if tensorboard:
        from manyheads.lab.training.tensorboard import event_writer

        write = event_writer(folder / "events")

    def log(line: dict[str, Any], step: int) -> None:
        with open(path, "a") as stream:
            stream.write(json.dumps(line) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        if write is not None:
            write({name: value for name, value in line.items() if value is not None}, step)

    return log


def _without(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): one for name, one in tensors.items() if name.startswith(prefix)}
