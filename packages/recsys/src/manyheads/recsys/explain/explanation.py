"""Explain a fitted model: attention maps beside permutation importance, and whether both agree.

found = explain(Recommender.load("recommender"), frame)
found.importance.single, found.maps.mean, found.correlations()
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch

from manyheads.core.errors import ArgumentError, DataError, UnknownNameError
from manyheads.recsys.explain.maps import WITH_MAPS, AttentionMaps, attention_maps, has_maps
from manyheads.recsys.explain.permutation import Importance, permutation_importance
from manyheads.recsys.features.fitted_rows import fitted_among, row_hashes
from manyheads.recsys.features.frames import check_frame
from manyheads.recsys.features.labels import Labels
from manyheads.recsys.features.layout import Rows
from manyheads.recsys.training.recommender import Recommender


@dataclass(frozen=True)
class Explanation:
    """Permutation importance and attention maps for one task; ``maps`` is None for a model without attention."""

    network: str  # the class of the network
    task: str
    importance: Importance
    maps: AttentionMaps | None
    # how many of the used rows the model was fitted on; None if unknown
    fitted: int | None

    @property
    def rows_used(self) -> str:
        """Text: how many rows were used, and how many of them the model was fitted on."""
        rows = f"{self.importance.rows:,} rows"
        if self.fitted is None:
            return f"{rows} (whether the model was fitted on them is not known)"
        if self.fitted == 0:
            return f"{rows} that were not fitted"
        if self.fitted == self.importance.rows:
            return f"{rows} that were all fitted (figures on new rows are lower)"
        return f"{rows}, of which {self.fitted:,} were fitted"

    @property
    def without(self) -> str:
        """Text: why there is no map; empty if there is one."""
        if self.maps is not None:
            return ""
        return f"{self.network} has no attention to draw; these have maps: {', '.join(WITH_MAPS)}"

    def correlations(self) -> dict[str, float | None]:
        """Return Spearman's rank correlations of attention with permutation importance.

        Over fields and over pairs of fields; pairs also for each layer that computes all rows. None if there are no
        pairs or one side is constant.
        """
        if self.maps is None:
            return {}
        if self.maps.tokens[: self.maps.fields] != self.importance.fields:
            # numeric fields that are mixed into tokens have no token each
            return {}
        found = {"fields, with AUC lost": rank_correlation(self.maps.importance(), self.importance.single)}
        views = {"": self.maps.pairs()} | {
            f", layer {i + 1}": (layer + layer.T)[: self.maps.fields, : self.maps.fields] / 2
            for i, layer in enumerate(self.maps.layers)
            if len(layer) == len(self.maps.tokens) and len(self.maps.full) > 1
        }
        measures = {"AUC interaction": self.importance.interaction, "mixed logit": self.importance.mixed}
        for (where, view), (name, measure) in itertools.product(views.items(), measures.items()):
            if measure is not None:
                found[f"pairs{where}, with {name}"] = (
                    None if view is None else rank_correlation(upper(view), upper(np.abs(measure)))
                )
        return found

    def pairs(self) -> list[tuple[str, str, float, float, float | None]]:
        """Return each pair: two fields, AUC interaction, mixed logit, attention; the largest mixed logit first."""
        measured = self.importance
        if measured.interaction is None or measured.mixed is None:
            return []
        attended = self.maps.pairs() if self.maps and self.maps.tokens[: self.maps.fields] == measured.fields else None
        rows = [
            (
                measured.fields[i],
                measured.fields[j],
                float(measured.interaction[i, j]),
                float(measured.mixed[i, j]),
                None if attended is None else float(attended[i, j]),
            )
            for i, j in itertools.combinations(range(len(measured.fields)), 2)
        ]
        return sorted(rows, key=lambda row: -row[3])

    def document(self) -> dict[str, Any]:
        """Return all results as a JSON document."""
        measured, maps = self.importance, self.maps
        return {
            "task": self.task,
            "rows": measured.rows,
            "fitted_rows": self.fitted,
            "repeats": measured.repeats,
            "auc": measured.auc,
            "fields": list(measured.fields),
            "auc_lost": measured.single.tolist(),
            "auc_lost_sd": measured.single_sd.tolist(),
            "auc_interaction": None if measured.interaction is None else measured.interaction.tolist(),
            "mixed_logit": None if measured.mixed is None else measured.mixed.tolist(),
            "attention": None
            if maps is None
            else {
                "tokens": list(maps.tokens),
                "mean": maps.mean.tolist(),
                "layers": [layer.tolist() for layer in maps.layers],
                "importance": maps.importance().tolist(),
            },
            "rank_correlation": self.correlations(),
            "no_map": self.without or None,
        }


def explain(
    recommender: Recommender,
    frame: pd.DataFrame,
    *,
    task: str | None = None,
    which: Literal["held-out", "all"] = "held-out",
    rows: int = 2000,
    pairs: bool = True,
    repeats: int = 3,
    seed: int = 0,
    advance: Callable[[str], None] = lambda item: None,
) -> Explanation:
    """Explain a fitted model on at most ``rows`` labelled rows, sampled from ``frame``.

    Args:
        recommender: a fitted model.
        frame: a table with the label.
        task: the label to explain; the first by default.
        which: ``held-out`` leaves out rows that the model was fitted on, unless no row is left; of equal rows, as many
            are left out as were fitted. ``all`` uses all. :attr:`Explanation.rows_used` says which were used.
        rows: maximum number of rows.
        pairs: permute pairs of fields too.
        repeats: permutations of each field.
        seed: seed of the sampled rows and of the permutations.
        advance: called with a text for each repeat, for progress.

    Raises:
        ArgumentError: fewer than 2 rows, or another ``which``.
        UnknownNameError: an unknown task.
        DataError: rows that cannot be scored, have no label, or have one class only.
    """
    if rows < 2:
        raise ArgumentError(f"rows: found {rows}, expected 2 or more")
    if which not in ("held-out", "all"):
        raise ArgumentError(f"which: found {which!r}, expected held-out or all")
    labels = recommender.labels_
    task = labels.tasks[0] if task is None else task
    if task not in labels.tasks:
        raise UnknownNameError("label", task, labels.tasks)
    check_frame(frame, [task], "table")
    known = frame[frame[task].notna()]
    if len(known) == 0:
        raise DataError(f"label {task!r}: found no value in {len(frame)} rows, expected some: give labelled rows")
    index = labels.tasks.index(task)
    encoded = recommender.encoder_.transform(known)
    fitted = None
    if recommender.fitted_rows_ is not None:
        fitted = fitted_among(row_hashes(encoded.ids.numpy(), encoded.numbers.numpy()), recommender.fitted_rows_)
    chosen = np.arange(len(known))
    if which == "held-out" and fitted is not None and not fitted.all():
        chosen = chosen[~fitted]
    if len(chosen) > rows:
        chosen = np.sort(np.random.default_rng(seed).choice(chosen, rows, replace=False))
    known = known.iloc[chosen]
    target = Labels((task,), (labels.classes[index],)).encode(known)
    every = torch.full((len(known), len(labels.tasks)), float("nan"))
    every[:, index] = torch.from_numpy(target[:, 0])
    held = Rows(encoded.ids[chosen], encoded.numbers[chosen], every)
    layout, network = recommender.encoder_.layout(labels.tasks), recommender.network_
    measured = permutation_importance(
        network, layout, held, task=index, pairs=pairs, repeats=repeats, seed=seed, advance=advance
    )
    maps = attention_maps(network, layout, held) if has_maps(network) else None
    known_rows = None if fitted is None else int(fitted[chosen].sum())
    return Explanation(type(network).__name__, task, measured, maps, known_rows)


def upper(matrix: np.ndarray) -> np.ndarray:
    """Return the entries above the diagonal, row by row."""
    return matrix[np.triu_indices(len(matrix), 1)]


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float | None:
    """Return Spearman's rank correlation; None for fewer than three values or if one side is constant."""
    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    return float(np.corrcoef(pd.Series(a).rank(), pd.Series(b).rank())[0, 1])
