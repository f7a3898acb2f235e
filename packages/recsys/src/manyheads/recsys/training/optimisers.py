"""Separate optimisers for the embedding tables and the dense parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from manyheads.lab.training.optimisers import Optimiser
from manyheads.recsys.models.tokens import all_tables

_KINDS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgd": torch.optim.SGD,
    "adagrad": torch.optim.Adagrad,
}


@dataclass(frozen=True)
class SplitOptimiser(Optimiser):
    """An optimiser for the embedding tables and another for the dense parameters.

    ``name``, ``learning_rate`` and weight decay are those of the dense parameters.
    """

    tables: Literal["adam", "adamw", "sgd", "adagrad"] = "adagrad"
    """The optimiser of the embedding tables."""
    table_rate: float = 0.05
    """Learning rate of the embedding tables; the schedule applies to both."""

    def make(self, model: nn.Module) -> torch.optim.Optimizer:
        tables = [weight for table in all_tables(model) for weight in table.weights()]
        own = {id(weight) for weight in tables}
        rest = [p for p in model.parameters() if id(p) not in own]
        groups = (
            (_KINDS[self.tables], tables, self.table_rate, {}),
            (_KINDS[self.name], rest, self.learning_rate, {"weight_decay": self.weight_decay}),
        )
        parts = [
            kind([{"params": chosen, "base_rate": rate}], lr=rate, **more)
            for kind, chosen, rate, more in groups
            if chosen
        ]
        return Joint(parts)


class Joint(torch.optim.Optimizer):
    """Several optimisers of disjoint parameters, used and saved as one."""

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        self.parts = list(parts)
        super().__init__([group for part in self.parts for group in part.param_groups], {})

    def step(self, closure: Any = None) -> Any:
        loss = None if closure is None else closure()
        for part in self.parts:
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        state: dict[int, Any] = {}
        groups, first = [], 0
        for part in self.parts:
            own = part.state_dict()
            state |= {first + index: value for index, value in own["state"].items()}
            groups += [{**g, "params": [first + i for i in g["params"]]} for g in own["param_groups"]]
            first += sum(len(g["params"]) for g in own["param_groups"])
        return {"state": state, "param_groups": groups}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        groups, first = list(state_dict["param_groups"]), 0
        for part in self.parts:
            own = [groups.pop(0) for _ in part.param_groups]
            count = sum(len(g["params"]) for g in own)
            state = {i - first: v for i, v in state_dict["state"].items() if first <= i < first + count}
            shifted = [{**g, "params": [i - first for i in g["params"]]} for g in own]
            part.load_state_dict({"state": state, "param_groups": shifted})
            first += count
        self.param_groups = [group for part in self.parts for group in part.param_groups]
