"""A trained torch module as a fitted model, and how it is stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from manyheads.forecasting.models.networks import NetworkConfig, find_network
from manyheads.lab.data.fields import from_json
from manyheads.lab.data.storage import checked_tensors
from manyheads.lab.domain import load

_CHUNK = 1024  # windows in one forward pass
_SMALL = 1 << 22  # parameters that fit into the memory of any machine


@dataclass(frozen=True)
class ModuleForecast:
    """A trained module as a :class:`FittedModel`; it runs in its own dtype and on its own device."""

    module: nn.Module
    look_back: int
    horizon: int

    @torch.no_grad()
    def forecast(self, windows_NLC: np.ndarray) -> np.ndarray:
        like = next(self.module.parameters(), torch.zeros(0))
        self.module.eval()
        past = torch.from_numpy(np.ascontiguousarray(windows_NLC[:, -self.look_back :])).to(like.device, like.dtype)
        return torch.cat([self.module(part) for part in past.split(_CHUNK)]).cpu().numpy().astype(windows_NLC.dtype)


@dataclass(frozen=True)
class NetworkForecast(ModuleForecast):
    """A trained network of :data:`~manyheads.forecasting.models.networks.NETWORKS`, which can be stored."""

    network: str
    config: NetworkConfig
    channels: int

    KIND: ClassVar[str] = "network"

    def stored(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Tensors by name, and a JSON document with the name, the config and the look-back."""
        tensors = {name: tensor.cpu().numpy() for name, tensor in self.module.state_dict().items()}
        described = {"network": self.network, "settings": asdict(self.config), "look_back": self.look_back}
        return tensors, described

    @classmethod
    def restored(
        cls, arrays: Mapping[str, np.ndarray], described: Mapping[str, Any], horizon: int, channels: int, rows: int
    ) -> NetworkForecast:
        """Rebuild the network from :meth:`stored`.

        Raises :class:`ArgumentError`, :class:`ValueError` or :class:`KeyError` for anything else.
        """
        spec, look_back = find_network(described["network"]), described["look_back"]
        config: NetworkConfig = from_json(load(spec.config), described["settings"])
        tensors = {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
        # a damaged number could request any amount of memory: compare the sizes before allocating
        if _numbers(config) > max(_SMALL, 64 * sum(t.numel() for t in tensors.values())):
            raise ValueError(f"{described['network']}: settings of another size than its {len(tensors)} tensors")
        if not 1 <= look_back <= rows:
            raise ValueError(f"look_back: found {look_back}, expected 1 to the {rows} rows of the file")
        with torch.random.fork_rng():
            module = config.make(look_back, horizon, channels)
        module.load_state_dict(checked_tensors(tensors, module.state_dict()))
        return cls(module.eval(), look_back, horizon, described["network"], config, channels)


def _numbers(config: NetworkConfig) -> float:
    """Approximate number of parameters of a network with this config."""
    return config.depth * config.width**2 * max(1.0, config.expansion)
