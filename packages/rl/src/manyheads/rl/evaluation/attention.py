"""What an agent attends to: the earlier steps that its memory core reads, and the parts of its frames.

    found = attention_over_memory(agent.player, make("manyheads/TMaze-v0"), seed=1)
    found.weights                               (layers, heads, steps, steps)
    memory_attention(found)                     a figure (evaluation.plots)

Axes: b batch, t steps, h heads, l layers of the core.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import VectorEnv
from torch import Tensor

from manyheads.core.errors import ArgumentError
from manyheads.core.methods.mixing_matrix import mixing_matrices
from manyheads.core.registry import LAYERS
from manyheads.rl.cores import core_names
from manyheads.rl.encoders.frames import patch_attention
from manyheads.rl.encoders.images import ImageEncoder
from manyheads.rl.encoders.observations import is_image, leaves, to_tensors
from manyheads.rl.encoders.vectors import one_hot
from manyheads.rl.environments.episodes import play
from manyheads.rl.environments.task import whole
from manyheads.rl.policies.player import PolicyPlayer
from manyheads.rl.policies.policy import Policy

# Steps of an episode that are kept: the weights grow with their square.
MAX_STEPS = 500


@dataclass(frozen=True)
class Episode:
    """The first T steps of one episode, as the agent saw them."""

    observations: Mapping[str, Tensor]
    """``(T, …)`` by name, as encoders take them."""
    actions: Tensor
    """``(T, …)``, as the policy codes them."""
    rewards: np.ndarray
    """``(T,)``, each given after the action of its step."""
    ended: bool
    """Whether the episode ended within these steps."""


@dataclass(frozen=True)
class MemoryAttention:
    """The attention of an agent over its own past in one episode."""

    weights: np.ndarray
    """``(layers, heads, T, T)``: the share of its attention that step t gives to what the layer got at step s.

    Each row sums to 1; it is 0 for later steps and for those that the memory has dropped.
    """
    rewards: np.ndarray
    """``(T,)``."""
    seen: np.ndarray
    """``(parts, T)``: the numbers of the observation, those of discrete parts one-hot; no rows for images."""
    parts: tuple[str, ...]
    """Their names."""

    def most_read(self, step: int = -1) -> list[tuple[int, float]]:
        """For each layer the step that ``step`` reads most, and its share, averaged over heads."""
        means = self.weights[:, :, step].mean(1)
        return [(int(row.argmax()), float(row.max())) for row in means]


def cores_with_attention() -> list[str]:
    """Return the names of the cores that attend to past steps."""
    # gtrxl has its attention inside a gated block
    names = [name for name in core_names() if name in LAYERS and "window" in LAYERS[name].info.state]
    return [name for name in names if name == "gtrxl" or LAYERS[name].info.linear_in_value]


def watch_episode(
    player: PolicyPlayer,
    env: VectorEnv,
    *,
    seed: int = 1,
    deterministic: bool = True,
    max_steps: int = MAX_STEPS,
) -> Episode:
    """Play one episode in the first environment, or its first ``max_steps`` steps, and keep what the agent saw."""
    whole("max_steps", max_steps, 1)
    head, space = player.policy.head, player.observation_space
    observations, actions, rewards, ended = [], [], [], False
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for step in play(player, env, seed=seed, deterministic=deterministic):
            seen = to_tensors(space, step.observations)
            # some environments write the next observations into the same arrays
            observations.append({name: one[:1].clone() for name, one in seen.items()})
            actions.append(head.from_environment(np.array(step.actions)[:1]))
            rewards.append(float(step.rewards[0]))
            ended = bool(step.terminated[0] or step.truncated[0])
            if ended or len(rewards) == max_steps:
                break
    joined = {name: torch.cat([one[name] for one in observations]) for name in observations[0]}
    return Episode(joined, torch.cat(actions), np.array(rewards), ended)


def memory_weights(
    policy: Policy,
    observations: Mapping[str, Tensor],
    is_first: Tensor,
    previous_action: Tensor,
    previous_reward: Tensor,
) -> Tensor:
    """Return ``(B, layers, heads, T, T)``: what each step of a segment reads of each step, in every layer of the core.

    The memory is empty before the segment. Steps of another episode and empty slots get exactly 0. The arguments are
    those of the policy; a segment gives the weights of a rollout step by step.

    Raises:
        ArgumentError: a core without attention.
    """
    batch, steps = is_first.shape
    start = policy.init_state(batch)
    found = mixing_matrices(
        policy.core, lambda: policy(observations, start, is_first, previous_action, previous_reward)
    )
    if not found:
        raise ArgumentError(
            "attention over memory: found a core without attention, expected one of "
            f"{', '.join(cores_with_attention())}: train an agent with such a core (model.core=gtrxl)"
        )
    # the slots of the empty memory come first
    return torch.stack([one[..., -steps:] for one in found.values()], 1)


def attention_over_memory(
    player: PolicyPlayer,
    env: VectorEnv,
    *,
    seed: int = 1,
    deterministic: bool = True,
    max_steps: int = MAX_STEPS,
) -> MemoryAttention:
    """Play one episode and return what each step read of the steps before it.

    Args:
        player: of an agent, ``agent.player``.
        env: its environment, from :func:`~manyheads.rl.environments.vector.make`; the first one is played.
        seed: of the environment and of drawn actions.
        deterministic: the most probable actions, else drawn ones.
        max_steps: of the episode that are kept.

    Raises:
        ArgumentError: a core without attention.
    """
    policy = player.policy
    episode = watch_episode(player, env, seed=seed, deterministic=deterministic, max_steps=max_steps)
    is_first = torch.arange(len(episode.rewards)) == 0
    rewards = torch.from_numpy(episode.rewards).to(policy.value.weight.dtype)
    weights = memory_weights(
        policy,
        {name: one.unsqueeze(0) for name, one in episode.observations.items()},
        is_first.unsqueeze(0),
        # not read at the first step
        episode.actions.roll(1, 0).unsqueeze(0),
        rewards.roll(1, 0).unsqueeze(0),
    )
    names = getattr(env.unwrapped, "observation_names", ())
    seen, parts = _numbers(player.observation_space, episode.observations, names)
    return MemoryAttention(weights[0].numpy(), episode.rewards, seen, parts)


def _numbers(
    space: spaces.Space[Any], observations: Mapping[str, Tensor], names: tuple[str, ...]
) -> tuple[np.ndarray, tuple[str, ...]]:
    """The numbers of an observation ``(parts, T)`` and their names; images are left out."""
    rows, found = [], []
    for name, part in leaves(space).items():
        values = observations[name]
        if is_image(part):
            continue
        if isinstance(part, spaces.Discrete | spaces.MultiDiscrete):
            sizes = [int(part.n)] if isinstance(part, spaces.Discrete) else [int(n) for n in part.nvec.flatten()]
            values = one_hot(values.reshape(len(values), -1), sizes)
        values = values.reshape(len(values), -1).float()
        rows.append(values.T.numpy())
        found += [f"{name} {index}" for index in range(values.shape[1])]
    if not rows:
        steps = len(next(iter(observations.values())))
        return np.zeros((0, steps), np.float32), ()
    return np.concatenate(rows), tuple(names) if len(names) == len(found) else tuple(found)


@dataclass(frozen=True)
class FrameAttention:
    """What the last block of an encoder reads in N frames."""

    frames: np.ndarray
    """``(N, H, W, C)`` bytes."""
    weights: np.ndarray
    """``(N, heads, rows, columns)``, the share of each patch."""
    covered: tuple[int, int]
    """Height and width of the pixels that the patches cover, from the upper left; the encoder pads or cuts."""


def attention_over_frames(policy: Policy, observations: Mapping[str, Tensor]) -> FrameAttention:
    """Return how much the encoder reads each patch of the frames it saw.

    Args:
        policy: of an agent whose encoder of images is a vision transformer; of several images the first is taken.
        observations: ``(N, …)`` by name.

    Raises:
        ArgumentError: an agent without images, or another encoder.
    """
    encoder = policy.encoder
    if not encoder.images:
        raise ArgumentError("attention over frames: found an agent without images, expected one that sees frames")
    picture, frames = encoder.pictures[0], observations[encoder.images[0]]
    assert isinstance(picture, ImageEncoder)
    weights = patch_attention(picture.network, lambda: picture(frames))
    covered = (frames.shape[1] + picture.pad[0], frames.shape[2] + picture.pad[1])
    return FrameAttention(frames.numpy(), weights.numpy(), covered)
