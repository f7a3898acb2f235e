"""Embed encoded rows, one token per field: one fused embedding table for ids, and tokens of numbers.

Every model of this package starts with these tokens. Shapes: B rows, C id columns, T fields, D width, F numeric fields.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from manyheads.core.errors import ArgumentError, UnknownNameError
from manyheads.recsys.features.layout import Layout


class AnyTables(nn.Module):
    """Base class of embedding tables, local or sharded: ``(B, C)`` ids -> ``(B, fields, D)``."""

    def weights(self) -> list[nn.Parameter]:
        """Return the parameters of this process."""
        raise NotImplementedError(f"{type(self).__name__} does not implement weights")

    def penalty(self, ids: Tensor | None) -> Tensor:
        """Return half the sum of squares of the whole tables, or of the rows in ``ids``, each counted once."""
        raise NotImplementedError(f"{type(self).__name__} does not implement penalty")


class Tables(AnyTables):
    """The embedding tables of several fields, fused into one: ``(B, C)`` ids -> ``(B, fields, D)``.

    The token of a multi-valued field is the mean of its values. The initial weights are drawn from N(0, ``init_sd``^2).
    With ``shared``, all fields use the same rows, and an id has the same meaning in every field.

    Raises:
        UnknownNameError: a name in ``fields`` that is not in the layout.
        ArgumentError: ``shared`` with fields of different sizes.
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
        # the sizes of the parts of the fused table, and the fields of each part
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
        """Return the rows of the fused table, ``(B, columns of these fields)``; negative for a missing value."""
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
    """One token per number, ``x w_f + b_f``, or a learned token if it is missing: ``(B, F)`` -> ``(B, F, D)``."""

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
    """A network with one hidden layer from all numbers to ``tokens`` tokens, ``(B, F)`` -> ``(B, tokens, D)``.

    The cost of attention then does not grow with F. A missing number is 0 with its missing flag set.
    """

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
    """The tokens of a row, ``(B, C)`` ids and ``(B, F)`` numbers -> ``(B, T, D)``: embedded fields, then numeric ones.

    Args:
        layout: the fields.
        dim: width D.
        init_sd: standard deviation of the initial embeddings.
        numeric_tokens: mix all numbers into this number of tokens; None for one token per number.
        shared: use one table for all embedded fields.
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
    """Return every embedding table of a model."""
    return [module for module in model.modules() if isinstance(module, AnyTables)]
