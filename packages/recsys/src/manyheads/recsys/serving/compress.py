"""Low-rank compression of a trained Hiformer by SVD, and the choice of the rank within a latency budget.

    W = U S V'  ->  W_r = (U_r sqrt S_r) (sqrt S_r V_r'),     ||W - W_r||_2 = sigma_{r + 1}

W_r is the best approximation of that rank (Eckart-Young); there is no further training. :func:`search_rank` measures
what each rank costs, in AUC on rows that were not trained on and in time.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from manyheads.core.errors import ArgumentError
from manyheads.core.layers.hiformer import Hiformer
from manyheads.core.layers.hiformer import compress as compress_layer
from manyheads.recsys.models.transformer import FieldTransformer, TransformerConfig
from manyheads.recsys.training.recommender import Recommender

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

RANKS = (4, 8, 16, 32, 48, 64, 96, 128, 192, 256, 384, 512)


@dataclass(frozen=True)
class Cut:
    """A compressed model, and ``sigma_{r + 1}`` of each layer's projections."""

    model: Recommender
    errors: tuple[dict[str, float], ...]


@dataclass(frozen=True)
class Tried:
    """Result of one rank: median CPU time of a batch in ms, AUC of the first label, largest ``sigma_{r + 1}``."""

    rank: int | None  # None: as it was trained
    parameters: int
    cpu_ms: float
    auc: float
    error: float

    @property
    def name(self) -> str:
        return "as trained" if self.rank is None else f"rank {self.rank}"


@dataclass(frozen=True)
class Search:
    """All ranks that were measured, the chosen one, and its model."""

    tried: tuple[Tried, ...]
    chosen: Tried
    model: Recommender
    candidates: int
    budget_ms: float | None


def compress(model: Recommender, rank: int) -> Cut:
    """Return a copy of a fitted Hiformer with composite projections of ``rank``.

    Raises :class:`ArgumentError` for another model, or a rank that is not below the present one.
    """
    network = _hiformer(model)
    present = network.layers[0].rank
    if present is not None and rank >= present:
        raise ArgumentError(f"compress: rank: found {rank}, expected less than the model's {present}")
    small = copy.deepcopy(network)
    done = [compress_layer(layer, rank) for layer in network.layers]
    small.layers = nn.ModuleList(part.layer for part in done)
    return Cut(_with_network(model, small, rank), tuple(part.error for part in done))


def search_rank(
    model: Recommender,
    rows: pd.DataFrame,
    *,
    budget_ms: float | None = None,
    budget_share: float | None = None,
    candidates: int = 100,
    ranks: Sequence[int] = RANKS,
    repeats: int = 30,
) -> Search:
    """Choose the rank with the best AUC within a latency budget.

    The model as trained is one of the candidates. Without a budget, the largest of ``ranks`` is chosen.

    Args:
        model: a fitted Hiformer.
        rows: labelled validation rows, not those of the final report. A lower rank may have a better AUC than a higher
            one, because the dropped part may be overfitting.
        budget_ms: maximum of the median CPU time in ms of ``candidates`` rows with ONNX Runtime.
        budget_share: the budget as a share of the time of the model as trained, measured here.
        candidates: rows of a batch.
        ranks: ranks to try.
        repeats: measurements of each rank.

    Raises:
        ArgumentError: another model, or a budget that no rank meets.
    """
    from manyheads.recsys.serving.timing import network_times
    from manyheads.recsys.training.metrics import auc

    network = _hiformer(model)
    labels = model.labels_.encode(rows)[:, 0]
    limit = min(network.layers[0].rank or max(ranks) + 1, network.layers[0].fields * network.layers[0].dim)
    usable = sorted({rank for rank in ranks if 1 <= rank < limit})
    if not usable:
        raise ArgumentError(f"ranks: found {list(ranks)}, expected some from 1 to {limit - 1}")
    cut = compress(model, usable[-1])
    models: dict[int | None, Recommender] = {None: model}
    models |= {rank: cut.model if rank == usable[-1] else _truncated(cut.model, rank) for rank in usable}
    networks = {rank: one.network_ for rank, one in models.items()}
    times = network_times(networks, model.encoder_.layout(model.labels_.tasks), candidates, repeats)
    if budget_share is not None:
        budget_ms = budget_share * times[None]
    # with several tasks, a row may lack the label of this one
    known = ~np.isnan(labels)
    tried = []
    for rank, one in models.items():
        score = one.decision_function(rows).reshape(len(rows), -1)[:, 0]
        error = 0.0 if rank is None else max(sigma_after(layer, rank) for layer in _hiformer(cut.model).layers)
        if rank == usable[-1]:
            error = max(value for errors in cut.errors for value in errors.values())
        parameters = sum(p.numel() for p in one.network_.parameters())
        tried.append(Tried(rank, parameters, times[rank], auc(labels[known], score[known]), error))
    chosen = tried[-1] if budget_ms is None else _within(tried, budget_ms, candidates)
    return Search(tuple(tried), chosen, models[chosen.rank], candidates, budget_ms)


def _within(tried: Sequence[Tried], budget_ms: float, candidates: int) -> Tried:
    fitting = [one for one in tried if one.cpu_ms <= budget_ms]
    if not fitting:
        least = min(tried, key=lambda one: one.cpu_ms)
        raise ArgumentError(
            f"budget: found {budget_ms:g} ms for {candidates} rows, expected {least.cpu_ms:.3g} ms or more, which rank "
            f"{least.rank} takes"
        )
    return max(fitting, key=lambda one: one.auc)


def sigma_after(layer: Hiformer, rank: int) -> float:
    """Return ``sigma_{rank + 1}`` of a compressed layer, the largest of its projections.

    It is 0 from the layer's own rank on, because the singular values after it are not stored.
    """
    if layer.rank is None or rank >= layer.rank:
        return 0.0
    # column i of each is U_i sqrt(sigma_i), of squared norm sigma_i, as U_i has norm 1
    ups = (layer.query.weight, layer.key.weight, layer.values.weight)
    return max(float(up[:, rank].detach().double().square().sum()) for up in ups)


def draw(search: Search) -> Figure:
    """Draw AUC over latency, one point per rank, with the budget."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    cut = [one for one in search.tried if one.rank is not None]
    [whole] = [one for one in search.tried if one.rank is None]
    axes.plot([one.cpu_ms for one in cut], [one.auc for one in cut], "o-", color="tab:blue", label="cut to a rank")
    for one in cut:
        axes.annotate(str(one.rank), (one.cpu_ms, one.auc), textcoords="offset points", xytext=(4, -11), fontsize=8)
    axes.plot(whole.cpu_ms, whole.auc, "s", color="tab:gray", label="as trained")
    chosen = search.chosen
    axes.plot(chosen.cpu_ms, chosen.auc, "o", ms=12, mfc="none", color="tab:red", label=f"chosen: {chosen.name}")
    if search.budget_ms is not None:
        axes.axvline(search.budget_ms, color="tab:red", ls=":", lw=1, label=f"budget {search.budget_ms:.3g} ms")
    axes.set(xlabel=f"CPU ms, {search.candidates} rows, ONNX Runtime", ylabel="AUC on the given rows")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    return figure


def parse_budget(text: str) -> dict[str, float]:
    """Parse the budget of :func:`search_rank`: ``5``, ``5ms``, ``0.005s``, or ``50%`` of the time as trained.

    Raises :class:`ArgumentError` for anything else.
    """
    number = text.strip().lower()
    factor, name = 1.0, "budget_ms"
    for ending, unit in (("ms", 1.0), ("s", 1000.0), ("%", 0.01)):
        if number.endswith(ending):
            number, factor = number[: -len(ending)], unit
            name = "budget_share" if ending == "%" else name
            break
    try:
        found = float(number) * factor
    except ValueError:
        found = 0.0
    if not 0.0 < found < float("inf"):
        raise ArgumentError(f"budget: found {text!r}, expected a time such as 5ms, or a share such as 50%")
    return {name: found}


def _truncated(model: Recommender, rank: int) -> Recommender:
    """Keep the first ``rank`` singular values of a compressed model: the same as :func:`compress`, without an SVD."""
    # the factors of a truncated SVD are nested: those of a lower rank are the first columns of those of a higher one
    small = copy.deepcopy(_hiformer(model))
    layers = []
    for layer in small.layers:
        cut = type(layer)(**{**layer.config, "rank": rank})
        weights = dict(layer.state_dict())
        weights["down.weight"] = torch.cat([part[:rank] for part in layer.down.weight.detach().chunk(3)])
        for name in ("query", "key", "values"):
            weights[f"{name}.weight"] = weights[f"{name}.weight"][:, :rank]
        cut.load_state_dict({name: value.clone() for name, value in weights.items()})
        layers.append(cut.eval())
    small.layers = nn.ModuleList(layers)
    return _with_network(model, small, rank)


def _with_network(model: Recommender, network: nn.Module, rank: int) -> Recommender:
    settings: dict[str, Any] = {**model.get_params(), "settings": {**(model.settings or {}), "rank": rank}}
    made = Recommender(**settings)
    assert isinstance(model.config_, TransformerConfig)
    config = replace(model.config_, rank=rank)
    made.set_fitted(
        model.spec_, model.encoder_, model.labels_, network.eval(), config, model.calibration_, model.fitted_rows_
    )
    return made


def _hiformer(model: Recommender) -> Any:
    network = model.network_
    if not isinstance(network, FieldTransformer) or not isinstance(network.layers[0], Hiformer):
        kind = getattr(model.config_, "layer", type(network).__name__)
        raise ArgumentError(f"compress: model: found {kind}, expected a Hiformer: only it has composite projections")
    return network


def save_search(search: Search, folder: Path, figure: Path | None) -> None:
    """Save the compressed model, and the picture if ``figure`` is given."""
    from manyheads.lab.data.files import write_figure

    search.model.save(folder)
    if figure is not None:
        write_figure(figure, draw(search))
