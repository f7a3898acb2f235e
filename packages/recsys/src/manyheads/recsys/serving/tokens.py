"""Embed a subset of the fields of a model, token-major, for serving.

Shapes: B rows, c id columns and f numbers of these fields, n their tokens, D width. With token-major ``(n, B, D)``,
weights per field are one batched product without a copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from manyheads.recsys.features.layout import Layout
from manyheads.recsys.models.tokens import FieldTokens, NumberMixture, NumberTokens, Tables


@dataclass(frozen=True)
class Chosen:
    """A subset of the fields of a layout: indices in ``layout.names`` and in ``layout.numeric``."""

    names: tuple[int, ...]
    numeric: tuple[int, ...]

    def tokens(self, layout: Layout, *, mixed: int | None) -> list[int]:
        """Return the indices of their tokens among all tokens of the network.

        ``mixed``: the number of tokens that all numeric fields together are mixed into; None if each has its own token.
        """
        first = len(layout.names)
        if mixed is None:
            return [*self.names, *(first + n for n in self.numeric)]
        return [*self.names, *range(first, first + (mixed if self.numeric else 0))]


def choose(layout: Layout, columns: Sequence[str], *, split_numbers: bool) -> tuple[Chosen, Chosen]:
    """Split the fields of a layout into those of ``columns`` and the others.

    A time column stands for all its parts. If numeric fields cannot be split (``split_numbers`` is false), all of them
    go to the others unless ``columns`` names all of them.
    """
    wanted = set(columns)
    numeric = [n for n, name in enumerate(layout.numeric) if name in wanted]
    if not split_numbers and len(numeric) < len(layout.numeric):
        numeric = []
    names = [n for n, name in enumerate(layout.names) if name in wanted or name.rpartition(".")[0] in wanted]
    rest = tuple(n for n in range(len(layout.names)) if n not in names)
    rest_numeric = tuple(n for n in range(len(layout.numeric)) if n not in numeric)
    return Chosen(tuple(names), tuple(numeric)), Chosen(rest, rest_numeric)


class SomeTokens(nn.Module):
    """Embed the chosen fields: ids ``(B, c)`` and numbers ``(B, f)`` -> tokens ``(n, B, D)``."""

    def __init__(self, layout: Layout, tokens: FieldTokens, chosen: Chosen) -> None:
        super().__init__()
        self.tables = self.numbers = None
        if chosen.names and tokens.tables is not None:
            starts = [sum(layout.rows[:n]) for n in chosen.names]
            names = tuple(layout.names[n] for n in chosen.names)
            rows, widths = (tuple(values[n] for n in chosen.names) for values in (layout.rows, layout.widths))
            weight = tokens.tables.weight.detach()
            self.tables = Tables(Layout(names, rows, widths), weight.shape[1])
            own = torch.cat([weight[s : s + r] for s, r in zip(starts, rows, strict=True)])
            self.tables.weight = nn.Parameter(own)
            self.single = max(widths) == 1
        if chosen.numeric and isinstance(tokens.numbers, NumberTokens):
            picked = list(chosen.numeric)
            parts = (tokens.numbers.weight, tokens.numbers.bias, tokens.numbers.missing)
            self.weight, self.bias, self.missing = (nn.Parameter(p.detach()[picked].unsqueeze(1)) for p in parts)
            self.numbers = "each"
        elif chosen.numeric and isinstance(tokens.numbers, NumberMixture):
            self.mixture, self.numbers = tokens.numbers, "mixed"

    def forward(self, ids: Tensor, numbers: Tensor) -> Tensor:
        parts = []
        # one id per field: one lookup in the fused table; otherwise the mean over the values of each field
        if self.tables is not None and self.single:
            parts.append(functional.embedding((ids + self.tables.offsets).transpose(0, 1), self.tables.weight))
        elif self.tables is not None:
            parts.append(self.tables(ids).transpose(0, 1))
        # NumberTokens: x w_f + b_f, or the vector of a missing number
        if self.numbers == "each":
            x = numbers.transpose(0, 1).unsqueeze(-1)
            gone = torch.isnan(x)
            parts.append(torch.where(gone, self.missing, torch.where(gone, 0.0, x) * self.weight + self.bias))
        elif self.numbers == "mixed":
            parts.append(self.mixture(numbers).transpose(0, 1))
        return parts[0] if len(parts) == 1 else torch.cat(parts)
