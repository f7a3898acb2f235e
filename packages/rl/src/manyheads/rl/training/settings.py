"""The description of an agent's training: task, network, budget. All of it can be overridden on the command line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from gymnasium import spaces
from gymnasium.vector import VectorEnv

from manyheads.core.errors import ArgumentError, UnknownNameError
from manyheads.core.registry import LAYERS
from manyheads.lab.training.experiment import Experiment
from manyheads.rl.cores import Core, build_core, core_names
from manyheads.rl.encoders import Encoder, build_encoder
from manyheads.rl.policies import ActionHead, Policy
from manyheads.rl.training.learner import AgentOptimiser, Algorithm
from manyheads.rl.training.ppo import PPO

Option = int | float | bool | str


@dataclass(frozen=True)
class Task:
    """Environments to learn in, and the evaluation afterwards."""

    environment: str = "manyheads/TMaze-v0"
    """Gymnasium's name."""
    environments: int = 32
    """Environments that run side by side."""
    options: Mapping[str, Option] = field(default_factory=dict)
    """Arguments of the environment."""
    target: float | None = None
    """Mean return of the last 100 training episodes; the report says after how many steps it is reached."""
    evaluation_episodes: int = 100
    """Episodes of the evaluation after training, in new environments."""
    deterministic: bool = True
    """Evaluate with the most probable action; else with actions drawn as in training."""

    def open(self, count: int | None = None) -> VectorEnv:
        """Make the environments."""
        from manyheads.rl.environments.vector import make

        options: dict[str, Any] = dict(self.options)
        return make(self.environment, self.environments if count is None else count, **options)


@dataclass(frozen=True)
class AgentModel:
    """The network of an agent."""

    core: str = "gtrxl"
    """Memory: none, lstm, gru, gtrxl, lmu, or another strictly causal streaming layer (manyheads list)."""
    width: int = 64
    """Width of features, core and heads."""
    depth: int = 2
    """Layers of the core."""
    memory: int | None = None
    """Steps that the core looks back, for layers with such an argument; their default if None."""
    gate: str | None = None
    """Gate of gtrxl: gru, residual (TrXL-I), input, output, highway, sigmoid-tanh; gru if None."""
    heads: int | None = None
    """Attention heads, for layers with such an argument."""
    options: Mapping[str, Option] = field(default_factory=dict)
    """Further arguments of the layer."""
    encoder: str = "auto"
    """mlp, nature-cnn, small-cnn, impala-resnet or an image backbone such as vit-nano; auto: by the observations."""
    encoder_depth: int = 1
    """Linear maps of the MLP."""
    encoder_weights: str | None = None
    """File with a pretrained network for images: of manyheads rl pretrain, or the tensors of ``encoder``."""
    frozen: bool = False
    """Do not train the network for images."""
    normalise_observations: bool = False
    """Running normalisation of vectors."""
    previous_action: bool = True
    """Read the action before."""
    previous_reward: bool = False
    """Read the reward before."""

    def core_options(self) -> dict[str, Any]:
        """Arguments of the core. Raises :class:`ArgumentError` for one that the core does not have."""
        if self.core not in LAYERS and self.core not in core_names():
            raise UnknownNameError("core", self.core, core_names())
        known = {one.name for one in LAYERS[self.core].arguments} if self.core in LAYERS else set()
        found = dict(self.options)
        for name in ("memory", "gate", "heads"):
            value = getattr(self, name)
            if value is None:
                continue
            key = "window" if name == "memory" and name not in known and "window" in known else name
            if key not in known:
                raise ArgumentError(f"{name}: found {value!r}, expected none: the core {self.core!r} has no {name}")
            found[key] = value
        return found

    def parts(
        self, observation_space: spaces.Space[Any], pretrained: Mapping[str, Any] | None = None
    ) -> tuple[Encoder, Core]:
        """Build encoder and core."""
        encoder = build_encoder(
            self.encoder,
            observation_space,
            self.width,
            depth=self.encoder_depth,
            normalise=self.normalise_observations,
            weights=self.encoder_weights,
            frozen=self.frozen,
            stored=pretrained,
        )
        core = build_core(self.core, self.width, depth=self.depth, **self.core_options())
        return encoder, core

    def build(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        pretrained: Mapping[str, Any] | None = None,
    ) -> Policy:
        """Build the policy for one environment's spaces; torch is seeded before the call.

        ``pretrained`` is the header of a file of pretraining, to build its network without the file.
        """
        encoder, core = self.parts(observation_space, pretrained)
        head = ActionHead(action_space, self.width)
        previous = {"previous_action": self.previous_action, "previous_reward": self.previous_reward}
        return Policy(encoder, core, head, **previous)

    def seeded(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        seed: int,
        pretrained: Mapping[str, Any] | None = None,
    ) -> Policy:
        """Build the policy from a seed, without a change of the global generator."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.build(observation_space, action_space, pretrained)


@dataclass(frozen=True)
class StepBudget:
    """How long to train."""

    steps: int = 100_000
    """Steps of all environments together, without those that only reset one."""
    until_target: bool = False
    """Stop as soon as ``data.target`` is reached."""
    keep: Literal["last", "best"] = "last"
    """The weights that are kept: the last, or those at the highest mean return of 100 training episodes."""
    checkpoint_every: int = 1
    """Updates between checkpoints."""
    reset_every: int | None = None
    """Updates between resets of all environments.

    Only for environments that cannot store their state (Atari): checkpoints are then made right before a reset, and a
    resumed run gives the numbers of an unbroken one bit for bit. The price is that episodes are cut there, as by a time
    limit. None: a resumed run starts new episodes, and says so.
    """


@dataclass(frozen=True)
class AgentExperiment(Experiment):
    """An experiment of this domain."""

    data: Task = field(default_factory=Task)  # ty: ignore[incompatible-attribute-override]
    model: AgentModel = field(default_factory=AgentModel)  # ty: ignore[incompatible-attribute-override]
    objective: Algorithm = field(default_factory=PPO)  # ty: ignore[incompatible-attribute-override]
    optimiser: AgentOptimiser = field(default_factory=AgentOptimiser)  # ty: ignore[incompatible-attribute-override]
    budget: StepBudget = field(default_factory=StepBudget)  # ty: ignore[incompatible-attribute-override]
    seeds: tuple[int, ...] = (1, 2, 3, 4, 5)

    def smoke(self) -> AgentExperiment:
        """Return the experiment cut to one update and one seed."""
        data = replace(self.data, evaluation_episodes=1, target=None)
        budget = replace(self.budget, steps=1)
        return replace(self, name=f"{self.name}-smoke", data=data, budget=budget, seeds=self.seeds[:1], source=None)
