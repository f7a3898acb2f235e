"""An agent as one file: tensors of the policy, and its settings and spaces as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces

from manyheads.core.errors import ArgumentError, CheckpointError, ManyheadsError
from manyheads.lab.data.fields import from_json, plain
from manyheads.lab.data.storage import checked_tensors, load_tensors, save_tensors
from manyheads.rl.policies.policy import Policy
from manyheads.rl.training.settings import AgentModel

KIND, FILE = "agent", "agent.safetensors"
_FIX = "train an agent (manyheads rl train tmaze10-gtrxl) or choose another file"


def space_to_json(space: spaces.Space[Any]) -> dict[str, Any]:
    """Return a space as JSON. Raises :class:`ArgumentError` for a kind that no agent has."""
    if isinstance(space, spaces.Box):
        low, high = (np.asarray(one, np.float64) for one in (space.low, space.high))
        bounds = {"low": _bound(low), "high": _bound(high)}
        return {"kind": "Box", "shape": list(space.shape), "dtype": str(space.dtype), **bounds}
    if isinstance(space, spaces.Discrete):
        return {"kind": "Discrete", "n": int(space.n), "start": int(space.start)}
    if isinstance(space, spaces.MultiDiscrete):
        return {"kind": "MultiDiscrete", "nvec": space.nvec.tolist(), "start": np.asarray(space.start).tolist()}
    if isinstance(space, spaces.MultiBinary):
        return {"kind": "MultiBinary", "n": plain(space.n)}
    if isinstance(space, spaces.Dict):
        return {"kind": "Dict", "parts": [[key, space_to_json(part)] for key, part in space.spaces.items()]}
    if isinstance(space, spaces.Tuple):
        return {"kind": "Tuple", "parts": [space_to_json(part) for part in space.spaces]}
    raise ArgumentError(f"space: found {type(space).__name__}, expected a Box, a discrete space, Dict or Tuple")


def space_from_json(stored: Mapping[str, Any]) -> spaces.Space[Any]:
    """Inverse of :func:`space_to_json`."""
    kind = stored["kind"]
    if kind == "Box":
        shape, dtype = tuple(stored["shape"]), np.dtype(stored["dtype"])
        low, high = (_bounds(stored[name], shape).astype(dtype) for name in ("low", "high"))
        return spaces.Box(low, high, shape, dtype.type)
    if kind == "Discrete":
        return spaces.Discrete(stored["n"], start=stored["start"])
    if kind == "MultiDiscrete":
        return spaces.MultiDiscrete(np.array(stored["nvec"]), start=np.array(stored["start"]))
    if kind == "MultiBinary":
        return spaces.MultiBinary(stored["n"])
    if kind == "Dict":
        return spaces.Dict({key: space_from_json(part) for key, part in stored["parts"]})
    return spaces.Tuple([space_from_json(part) for part in stored["parts"]])


def save_policy(
    path: Path,
    policy: Policy,
    model: AgentModel,
    observation_space: spaces.Space[Any],
    action_space: spaces.Space[Any],
    about: Mapping[str, Any],
) -> None:
    """Write a policy with its settings and spaces, atomically; ``about`` is kept in the header."""
    header = {
        "model": plain({name: getattr(model, name) for name in model.__dataclass_fields__}),
        "observation_space": space_to_json(observation_space),
        "action_space": space_to_json(action_space),
        "pretrained": plain(policy.encoder.stored),
        "about": plain(about),
    }
    save_tensors(path, policy.state_dict(), header, kind=KIND)


def load_policy(
    path: str | Path,
) -> tuple[Policy, AgentModel, spaces.Space[Any], spaces.Space[Any], dict[str, Any]]:
    """Read a policy, its settings, its spaces (observation, action) and what was kept about it.

    Raises :class:`CheckpointError` for a file that is absent, damaged or of another kind.
    """
    tensors, header = load_tensors(path, kind=KIND, fix=_FIX)
    try:
        stored = {**header["model"], "encoder_weights": None}
        model = from_json(AgentModel, stored, place="model")
        seen, acted = (space_from_json(header[name]) for name in ("observation_space", "action_space"))
        policy = model.seeded(seen, acted, 0, header["pretrained"])
        policy.load_state_dict(dict(checked_tensors(tensors, policy.state_dict())))
        return policy.eval(), model, seen, acted, header["about"]
    except (KeyError, TypeError, ValueError, ManyheadsError) as error:
        raise CheckpointError(f"{path}: {error}: {_FIX}") from error


def load_tensors_into(policy: Policy, path: str | Path) -> None:
    """Load the tensors of an agent's file into a policy.

    Raises :class:`CheckpointError` that names the first tensor that is missing, unexpected or of another shape.
    """
    tensors, header = load_tensors(path, kind=KIND, fix=_FIX)
    try:
        policy.load_state_dict(dict(checked_tensors(tensors, policy.state_dict())))
    except ValueError as error:
        core = header.get("model", {}).get("core")
        raise CheckpointError(
            f"{path}: {error}: it holds an agent with core {core!r}; build the agent with the settings and spaces of "
            "the file"
        ) from error


def _bound(values: np.ndarray) -> float | str | list[Any]:
    """One number for equal bounds, else a list; infinities as text, as JSON has none."""
    flat = [float(one) if np.isfinite(one) else str(float(one)) for one in values.flatten()]
    return flat[0] if flat and all(one == flat[0] for one in flat) else flat


def _bounds(stored: float | str | list[Any], shape: tuple[int, ...]) -> np.ndarray:
    values = [float(one) for one in (stored if isinstance(stored, list) else [stored])]
    return np.broadcast_to(np.array(values).reshape(shape if len(values) > 1 else (1,) * len(shape)), shape)
