"""Memory inside Stable-Baselines3: PPO over whole sequences, and our encoders as feature extractors.

    model = MemoryPPO(MemoryPolicy, env, n_steps=64, batch_size=256,
                      policy_kwargs={"features_extractor_kwargs": {"core": "gtrxl", "memory": 16}})

``PPO`` shuffles single transitions, for which a memory would have to be stored with each of them, without a gradient
through time. Here a minibatch holds all ``n_steps`` of some environments. The buffer stores the memory at the first
step only; training runs through the segment again, with the resets where they were, so that the ratio of the first
epoch is 1. The loss is that of ``PPO.train``, unchanged.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from manyheads.core import state as trees
from manyheads.core.errors import ArgumentError, MissingPackageError
from manyheads.core.state import State
from manyheads.rl.adapters.features import MemoryFeatures
from manyheads.rl.encoders import build_encoder, to_tensors

try:
    from stable_baselines3 import PPO
    from stable_baselines3.common.buffers import RolloutBuffer
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.distributions import Distribution
    from stable_baselines3.common.policies import ActorCriticPolicy
    from stable_baselines3.common.preprocessing import is_image_space
    from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
    from stable_baselines3.common.type_aliases import RolloutBufferSamples, Schedule
    from stable_baselines3.common.utils import obs_as_tensor
    from stable_baselines3.common.vec_env import VecEnv
except ImportError as error:
    raise MissingPackageError(
        "stable-baselines3 is not installed: pip install -c constraints.txt -e './packages/rl[stable-baselines3]'"
    ) from error


class Sequences(NamedTuple):
    """T steps of B environments, as the policy reads them."""

    observations: Any
    """``(B, T, …)``, a tensor or a dict of tensors."""
    state: State
    """Memory before the first step."""
    is_first: Tensor
    """``(B, T)``: True at the first observation of an episode."""


class MemoryPolicy(ActorCriticPolicy):
    """Actor and critic on the features of one encoder and memory core.

    ``features_extractor_kwargs`` are the arguments of :class:`~manyheads.rl.adapters.features.MemoryFeatures`. The
    heads stand right on the features, unless ``net_arch`` is given. Methods of the base class take
    :class:`Sequences` instead of observations.

    Args:
        observation_space: of one environment.
        action_space: Box, Discrete, MultiDiscrete or MultiBinary.
        lr_schedule: learning rate.
        net_arch: layers between features and heads, as in ``ActorCriticPolicy``.
        features_extractor_class: a subclass of ``MemoryFeatures``.
        use_sde: False.
        share_features_extractor: True.
        options: further arguments of ``ActorCriticPolicy``.

    Raises:
        ArgumentError, UnknownNameError: state-dependent exploration, two extractors, or a memory that does not exist.
    """

    features_extractor: MemoryFeatures  # ty: ignore[incompatible-attribute-override]

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        net_arch: list[int] | dict[str, list[int]] | None = None,
        *,
        features_extractor_class: type[MemoryFeatures] = MemoryFeatures,
        use_sde: bool = False,
        share_features_extractor: bool = True,
        **options: Any,
    ) -> None:
        if use_sde:
            raise ArgumentError("use_sde: found True, expected False: its noise is not stored with the sequences")
        if not share_features_extractor:
            raise ArgumentError("share_features_extractor: found False, expected True: there is one memory")
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            [] if net_arch is None else net_arch,
            features_extractor_class=features_extractor_class,  # ty: ignore[invalid-argument-type]
            **options,
        )

    def _build(self, lr_schedule: Schedule) -> None:
        # Stable-Baselines3 makes the weights of extractor, layers and heads orthogonal: encoder and core have their own
        extractor, self.features_extractor = self.features_extractor, torch.nn.Identity()  # ty: ignore
        super()._build(lr_schedule)
        self.features_extractor = extractor

    def step(self, observations: Any, state: State, is_first: Any) -> Sequences:
        """One step of B environments, observations ``(B, …)`` and ``is_first (B,)``, as sequences."""
        seen = obs_as_tensor(observations, self.device) if not isinstance(observations, Tensor) else observations
        seen = {k: v.unsqueeze(1) for k, v in seen.items()} if isinstance(seen, dict) else seen.unsqueeze(1)
        return Sequences(seen, state, torch.as_tensor(is_first, dtype=torch.bool, device=self.device).unsqueeze(1))

    def _run(self, seen: Sequences) -> tuple[Distribution, Tensor, State]:
        features, state = self.features_extractor(*seen)
        actor, critic = self.mlp_extractor(features.flatten(0, 1))
        return self._get_action_dist_from_latent(actor), self.value_net(critic), state

    def forward(self, obs: Sequences, deterministic: bool = False) -> tuple[Tensor, Tensor, Tensor, State]:  # ty: ignore
        """Return actions, values and log-probabilities ``(B T, …)``, and the state after the last step."""
        distribution, values, state = self._run(obs)
        actions = distribution.get_actions(deterministic=deterministic)
        return actions.reshape(-1, *(self.action_space.shape or ())), values, distribution.log_prob(actions), state

    def evaluate_actions(self, obs: Sequences, actions: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:  # ty: ignore
        """Return values, log-probabilities and entropies ``(B T, …)`` of the actions of sequences."""
        distribution, values, _ = self._run(obs)
        return values, distribution.log_prob(actions), distribution.entropy()

    def predict_values(self, obs: Sequences) -> Tensor:  # ty: ignore
        """Return the values ``(B T, 1)`` of sequences."""
        return self._run(obs)[1]

    def get_distribution(self, obs: Sequences) -> Distribution:  # ty: ignore
        """Return the distribution of the actions of sequences."""
        return self._run(obs)[0]

    def predict(  # ty: ignore
        self,
        observation: Any,
        state: dict[str, np.ndarray] | None = None,
        episode_start: Any = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Return actions, and the state for the next call.

        Args:
            observation: of one environment, or with a leading batch axis.
            state: of the call before, see :meth:`MemoryFeatures.pack`; None starts an episode.
            episode_start: whether an episode starts, one truth value or one for each row.
            deterministic: the most probable action, else a drawn one.

        Raises:
            StateError: a state of another core or batch.
        """
        self.set_training_mode(False)
        seen, is_batch = self.obs_to_tensor(observation)
        count = len(next(iter(seen.values())) if isinstance(seen, dict) else seen)
        memory = self.features_extractor
        first = torch.as_tensor(False if episode_start is None else episode_start).bool().reshape(-1).expand(count)
        before = memory.init_state(count) if state is None else memory.unpack(state)
        with torch.no_grad():
            found, _, _, after = self(self.step(seen, before, first), deterministic)
        actions = _clipped(self.action_space, found.cpu().numpy())
        return actions if is_batch else actions.squeeze(0), _arrays(memory.pack(after))


class SequenceBuffer(RolloutBuffer):
    """A rollout whose minibatches are whole environments, with their memory at the start.

    Stored: observations, actions, rewards, starts of episodes, values and log-probabilities of each step,
    ``(T, B, …)``; the memory of each environment once.
    """

    state: State
    """Memory before the first step; the rollout sets it."""

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        device: torch.device | str = "auto",
        gae_lambda: float = 1,
        gamma: float = 0.99,
        n_envs: int = 1,
    ) -> None:
        # the base class has room for arrays only: observations, arrays or dicts, are kept here
        nothing = spaces.Box(0, 0, (0,))
        super().__init__(buffer_size, nothing, action_space, device, gae_lambda, gamma, n_envs)

    def reset(self) -> None:
        super().reset()
        self.seen: list[Any] = []

    def add(self, obs: Any, *others: Any) -> None:  # ty: ignore
        """Store a step: observations, action, reward, start of an episode, value, log-probability."""
        self.seen.append({key: np.array(one) for key, one in obs.items()} if isinstance(obs, dict) else np.array(obs))
        super().add(self.observations[self.pos], *others)

    def get(self, batch_size: int | None = None) -> Generator[RolloutBufferSamples]:
        """Yield minibatches of ``batch_size // n_steps`` environments in random order."""
        assert self.full
        count = self.n_envs if batch_size is None else batch_size // self.buffer_size
        order = torch.randperm(self.n_envs).numpy()
        for start in range(0, self.n_envs, count):
            yield self.sequences(order[start : start + count])

    def sequences(self, rows: np.ndarray) -> RolloutBufferSamples:
        """Return the sequences of some environments; all but the observations are ``(B T, …)``."""

        def flat(values: np.ndarray) -> Tensor:
            taken = values[:, rows].swapaxes(0, 1)
            return self.to_torch(taken.reshape(-1, *values.shape[2:]).astype(np.float32))

        def stacked(steps: list[np.ndarray]) -> Tensor:
            return self.to_torch(np.stack([one[rows] for one in steps], 1))

        seen, first = self.seen, self.seen[0]
        return RolloutBufferSamples(
            Sequences(
                {key: stacked([one[key] for one in seen]) for key in first}
                if isinstance(first, dict)
                else stacked(seen),
                trees.select(self.state, torch.as_tensor(rows, device=self.device)),
                self.to_torch(self.episode_starts[:, rows].T.astype(bool)),
            ),  # ty: ignore[invalid-argument-type]
            *(flat(one) for one in (self.actions, self.values, self.log_probs, self.advantages, self.returns)),
        )


class MemoryPPO(PPO):
    """PPO whose minibatches are whole sequences, for a :class:`MemoryPolicy`.

    Arguments, ``learn``, ``predict``, ``save`` and ``load`` are those of ``PPO``; ``batch_size`` is a multiple of
    ``n_steps``.

    Raises :class:`ArgumentError` for another batch size or another policy.
    """

    policy_aliases: ClassVar[dict[str, Any]] = {"MemoryPolicy": MemoryPolicy}
    policy: MemoryPolicy  # ty: ignore[incompatible-mutable-override]
    _last_memory: dict[str, np.ndarray] | None = None
    """Memory after the last step of the environments, as ``_last_obs`` is the last observation."""

    def _setup_model(self) -> None:
        if self.batch_size % self.n_steps:
            raise ArgumentError(
                f"batch_size: found {self.batch_size}, expected a multiple of n_steps, which is {self.n_steps}: "
                "minibatches hold whole sequences"
            )
        if not issubclass(self.policy_class, MemoryPolicy):
            raise ArgumentError(f"policy: found {self.policy_class.__name__}, expected MemoryPolicy")
        self.rollout_buffer_class = SequenceBuffer
        super()._setup_model()

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        """Fill the buffer with ``n_rollout_steps`` of each environment; False if the callback stops the training."""
        assert isinstance(rollout_buffer, SequenceBuffer)
        policy, memory = self.policy, self.policy.features_extractor
        policy.set_training_mode(False)
        rollout_buffer.reset()
        stored = self._last_memory
        state = memory.init_state(env.num_envs) if stored is None else memory.unpack(stored)
        rollout_buffer.state = state
        callback.on_rollout_start()
        for _ in range(n_rollout_steps):
            with torch.no_grad():
                found, values, log_probs, state = policy(policy.step(self._last_obs, state, self._last_episode_starts))
            actions = found.cpu().numpy()
            new_obs, rewards, dones, infos = env.step(_clipped(self.action_space, actions))
            self.num_timesteps += env.num_envs
            callback.update_locals(locals())
            if not callback.on_step():
                return False
            self._update_info_buffer(infos, dones)
            rewards = rewards + self.gamma * self._values_at_limits(state, dones, infos)
            rollout_buffer.add(self._last_obs, actions, rewards, self._last_episode_starts, values, log_probs)
            self._last_obs, self._last_episode_starts = new_obs, dones
        self._last_memory = _arrays(memory.pack(state))
        with torch.no_grad():
            last = policy.predict_values(policy.step(self._last_obs, state, dones))
        rollout_buffer.compute_returns_and_advantage(last_values=last, dones=dones)
        callback.update_locals(locals())
        callback.on_rollout_end()
        return True

    def _values_at_limits(self, state: State, dones: np.ndarray, infos: list[dict[str, Any]]) -> np.ndarray:
        """``(B,)``: value of the last observation, in the memory of its episode, if a time limit ended it; else 0."""
        found = np.zeros(len(dones), np.float32)
        rows = [row for row, info in enumerate(infos) if dones[row] and info.get("TimeLimit.truncated", False)]
        if not rows:
            return found
        last = [infos[row]["terminal_observation"] for row in rows]
        is_dict = isinstance(last[0], dict)
        seen = {key: np.stack([one[key] for one in last]) for key in last[0]} if is_dict else np.stack(last)
        before = trees.select(state, torch.tensor(rows, device=self.device))
        with torch.no_grad():
            values = self.policy.predict_values(self.policy.step(seen, before, np.zeros(len(rows), bool)))
        found[rows] = values.flatten().cpu().numpy()
        return found


class EncoderFeatures(BaseFeaturesExtractor):
    """Our encoders for policies without memory: ``policy_kwargs={"features_extractor_class": EncoderFeatures}``.

    Args:
        observation_space: of one environment.
        encoder: name, see :func:`~manyheads.rl.encoders.build_encoder`; "auto" chooses by the observations.
        width: of the features.
        depth: linear maps of the MLP.
        weights: file of pretraining.
        frozen: do not train the network for images.
        normalize_images: that of the policy, which divides bytes by 255.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        encoder: str = "auto",
        width: int = 64,
        *,
        depth: int = 1,
        weights: str | None = None,
        frozen: bool = False,
        normalize_images: bool = True,
    ) -> None:
        super().__init__(observation_space, width)
        self.space, self.normalize_images = _preprocessed(observation_space), normalize_images
        self.encoder = build_encoder(encoder, self.space, width, depth=depth, weights=weights, frozen=frozen)

    def apply(self, fn: Any) -> EncoderFeatures:
        """Keep the weights: a policy of Stable-Baselines3 applies orthogonal ones, over pretrained ones too."""
        return self

    def forward(self, observations: Tensor | dict[str, Tensor]) -> Tensor:
        """Observations as Stable-Baselines3 has preprocessed them to ``(B, width)``."""
        return self.encoder(to_tensors(self.space, self._restored(self.space, observations)))

    def _restored(self, space: spaces.Space[Any], observations: Any) -> Any:
        """Images from 0 to 255, as the encoders take them."""
        if isinstance(space, spaces.Dict):
            return {key: self._restored(part, observations[key]) for key, part in space.spaces.items()}
        is_scaled = self.normalize_images and is_image_space(space)
        return (observations * 255 if is_scaled else observations).reshape(-1, *(space.shape or ()))


def _preprocessed(space: spaces.Space[Any]) -> spaces.Space[Any]:
    """The space of observations after Stable-Baselines3 has replaced discrete parts by one-hot codes."""
    if isinstance(space, spaces.Dict):
        return spaces.Dict({key: _preprocessed(part) for key, part in space.spaces.items()})
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary):
        return spaces.Box(0, 1, (spaces.flatdim(space),))
    return space


def _clipped(space: spaces.Space[Any], actions: np.ndarray) -> np.ndarray:
    """Actions as the environment takes them."""
    return np.clip(actions, space.low, space.high) if isinstance(space, spaces.Box) else actions


def _arrays(parts: dict[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: one.cpu().numpy() for name, one in parts.items()}
