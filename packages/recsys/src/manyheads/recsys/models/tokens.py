"""From encoded rows to one token a field: embedding tables, fused into one, and numbers.

Shapes: B rows, C id columns, T fields, D width, F numeric fields. What every model of this package starts with.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from manyheads.core.errors import ArgumentError, UnknownNameError
from manyheads.recsys.features.layout import Layout


class AnyTables(nn.Module):
    """The embedding tables of some fields, wherever they lie: ``(B, C)`` ids -> ``(B, fields, D)``."""

    def weights(self) -> list[nn.Parameter]:
        """The parameters of this process."""
        raise NotImplementedError(f"{type(self).__name__} does not implement weights")

    def penalty(self, ids: Tensor | None) -> Tensor:
        """Half the sum of squares of the whole tables, or of the rows that ``ids`` touch, each once."""
        raise NotImplementedError(f"{type(self).__name__} does not implement penalty")


class Tables(AnyTables):
    """The embedding tables of some fields as one: ``(B, C)`` ids -> ``(B, fields, D)``.

    A multi-valued field gives the mean of its values. Started from N(0, ``init_sd`` squared). With ``shared`` all
    fields have one table, in which an id means the same whatever its field.

    Raises:
        UnknownNameError: a name in ``fields`` that the layout does not have.
        ArgumentError: ``shared`` and fields of different sizes.
    """

    columns: Tensor
    offsets: Tensor

    def __init__(
        self,
        layout: Layout,
        dim: int,
        *,
        init_sd: float = 1e-4,
        fields: Sequence[str] | None = None,
        shared: bool = False,
    ) -> None:
        super().__init__()
        names = layout.names if fields is None else tuple(fields)
        for name in names:
            if name not in layout.names:
                raise UnknownNameError("embedded field", name, layout.names)
        chosen = [layout.names.index(name) for name in names]
        sizes = {layout.rows[i] for i in chosen}
        if shared and len(sizes) > 1:
            raise ArgumentError(f"shared_tables: found fields of {sorted(sizes)} rows, expected all of one size")
        self.widths = [layout.widths[i] for i in chosen]
        # the parts of the fused table, and whose fields' rows each holds
        self.sizes = [layout.rows[i] for i in (chosen[:1] if shared else chosen)]
        self.holds = [list(range(len(chosen)))] if shared else [[i] for i in range(len(chosen))]
        columns, offsets, start = [], [], 0
        for i in chosen:
            span = layout.columns_of(layout.names[i])
            columns += range(span.start, span.stop)
            offsets += [start] * layout.widths[i]
            start += 0 if shared else layout.rows[i]
        self.all_columns = columns == list(range(sum(layout.widths)))
        self.register_buffer("columns", torch.tensor(columns, dtype=torch.int64), persistent=False)
        self.register_buffer("offsets", torch.tensor(offsets, dtype=torch.int64), persistent=False)
        self.weight = nn.Parameter(torch.randn(max(start, *sizes), dim) * init_sd)

    def rows(self, ids: Tensor) -> Tensor:
        """``(B, own columns)``: rows of the fused table, negative where there is no value."""
        own = ids if self.all_columns else ids[:, self.columns]
        return torch.where(own < 0, own, own + self.offsets)

    def forward(self, ids: Tensor) -> Tensor:
        if max(self.widths, default=1) == 1:
            own = ids if self.all_columns else ids[:, self.columns]
            return functional.embedding(own + self.offsets, self.weight)
        rows = self.rows(ids)
        held = (rows >= 0).unsqueeze(-1).to(self.weight.dtype)
        found = functional.embedding(rows.clamp(min=0), self.weight) * held
        sums = [part.sum(1) for part in found.split(self.widths, 1)]
        counts = [part.sum(1).clamp(min=1.0) for part in held.split(self.widths, 1)]
        return torch.stack([s / n for s, n in zip(sums, counts, strict=True)], 1)

    def weights(self) -> list[nn.Parameter]:
        return [self.weight]

    def penalty(self, ids: Tensor | None) -> Tensor:
        if ids is None:
            return 0.5 * self.weight.square().sum()
        rows = self.rows(ids)
        return 0.5 * self.weight[torch.unique(rows[rows >= 0])].square().sum()


class NumberTokens(nn.Module):
    """One token a number, ``x w_f + b_f``, and one of its own where it is missing: ``(B, F)`` -> ``(B, F, D)``."""

    def __init__(self, fields: int, dim: int, *, init_sd: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(fields, dim) * init_sd)
        self.bias = nn.Parameter(torch.zeros(fields, dim))
        self.missing = nn.Parameter(torch.randn(fields, dim) * init_sd)

    def forward(self, numbers: Tensor) -> Tensor:
        gone = torch.isnan(numbers).unsqueeze(-1)
        x = torch.nan_to_num(numbers, nan=0.0).unsqueeze(-1)
        return torch.where(gone, self.missing, x * self.weight + self.bias)


class NumberMixture(nn.Module):
    """All numbers through one hidden layer, cut into ``tokens`` tokens, so that many numbers do not lengthen the
    attention: ``(B, F)`` -> ``(B, tokens, D)``. A missing number is 0 and raises a flag."""

    def __init__(self, fields: int, tokens: int, dim: int) -> None:
        super().__init__()
        self.tokens = tokens
        self.inner = nn.Linear(2 * fields, tokens * dim)
        self.outer = nn.Linear(tokens * dim, tokens * dim)

    def forward(self, numbers: Tensor) -> Tensor:
        flags = torch.isnan(numbers).to(numbers.dtype)
        x = torch.cat([torch.nan_to_num(numbers, nan=0.0), flags], 1)
        return self.outer(functional.relu(self.inner(x))).unflatten(1, (self.tokens, -1))


class FieldTokens(nn.Module):
    """``(B, C)`` ids and ``(B, F)`` numbers -> ``(B, T, D)``: embedded fields, then numeric ones.

    Args:
        layout: the fields.
        dim: width D.
        init_sd: deviation that the tables start from.
        numeric_tokens: mix all numbers into so many tokens; one for each without.
        shared: one table for all embedded fields.
    """

    def __init__(
        self,
        layout: Layout,
        dim: int,
        *,
        init_sd: float = 1e-4,
        numeric_tokens: int | None = None,
        shared: bool = False,
    ) -> None:
        super().__init__()
        self.tables = Tables(layout, dim, init_sd=init_sd, shared=shared) if layout.names else None
        self.numbers: nn.Module | None = None
        fields = len(layout.numeric)
        if fields and numeric_tokens is None:
            self.numbers = NumberTokens(fields, dim, init_sd=max(init_sd, 0.01))
        elif fields and numeric_tokens is not None:
            self.numbers = NumberMixture(fields, numeric_tokens, dim)
        self.tokens = len(layout.names) + (fields if numeric_tokens is None else min(fields, 1) * numeric_tokens)

    def forward(self, ids: Tensor, numbers: Tensor) -> Tensor:
        parts = [] if self.tables is None else [self.tables(ids)]
        if self.numbers is not None:
            parts.append(self.numbers(numbers))
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def all_tables(model: nn.Module) -> list[AnyTables]:
    """Every embedding table in a model."""
    return [module for module in model.modules() if isinstance(module, AnyTables)]
