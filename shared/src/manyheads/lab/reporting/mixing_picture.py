"""Draw the mixing matrix of a layer, or the influence of inputs on outputs if the layer has no mixing matrix."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from manyheads.core.errors import ArgumentError, UnknownNameError
from manyheads.core.layer import Layer
from manyheads.core.methods.mixing_matrix import influence, mixing_matrix
from manyheads.core.registry import find_layer
from manyheads.lab.reporting.layer_costs import grid_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Width of the drawn layers; a multiple of many numbers of heads.
DIM = 48
# Tokens after which the input repeats.
PERIOD = 8
SHADES = " ░▒▓█"


@dataclass(frozen=True)
class View:
    """The ``matrix (H, T, S)`` of one layer on one input; ``kind`` is ``mixing matrix`` or ``influence``.

    ``grid`` is the size of the input, with T cells in all.
    """

    layer: Layer
    example: str
    kind: str
    matrix: Tensor
    grid: tuple[int, ...]


def view_layer(name: str, *, example: str | None = None, tokens: int | None = None, seed: int = 0) -> View:
    """Build a layer with random weights in one of its example configurations and run it on :func:`motif`.

    Args:
        name: the layer.
        example: the name of the example configuration; the first by default.
        tokens: the number of tokens, 2 to 512; by default 32, or 256 cells of a grid.
        seed: of weights and input.

    Raises:
        UnknownNameError: an unknown layer or example.
        ArgumentError: fewer than 2 tokens, or more than the configuration accepts.
    """
    kind = find_layer(name)
    tokens = (32 if 1 in kind.info.grid_ranks else 256) if tokens is None else tokens
    if not 2 <= tokens <= 512:
        raise ArgumentError(f"tokens: found {tokens}, expected 2 to 512")
    examples = kind.info.at_length(tokens)
    label = next(iter(examples)) if example is None else example
    if label not in examples:
        raise UnknownNameError(f"example of {name}", label, examples)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layer = kind(DIM, **examples[label]).eval()
    usual = grid_of(tokens, layer.grid_ranks[0])
    grid = usual if layer.grid is None else tuple(f or u for f, u in zip(layer.grid, usual, strict=True))
    x = motif(math.prod(grid), layer.dim, seed).view(1, *grid, layer.dim)
    width = layer.context_dim
    context = None if width is None else motif(tokens, width, seed + 1).unsqueeze(0)
    if layer.linear_in_value:
        return View(layer, label, "mixing matrix", mixing_matrix(layer, x, context=context)[0], grid)
    return View(layer, label, "influence", influence(layer, x, context=context), grid)


def motif(tokens: int, dim: int, seed: int) -> Tensor:
    """Return ``(T, D)``: eight random tokens, repeated with noise; content-based attention then shows as stripes."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(PERIOD, dim, generator=generator)
    noise = torch.randn(tokens, dim, generator=generator)
    return 2.0 * base[torch.arange(tokens) % PERIOD] + 0.5 * noise


def described(layer: Layer, example: str, *, widest: int = 60) -> str:
    """Return the name of the layer and its settings, cut to ``widest`` characters."""
    config = {key: value for key, value in layer.config.items() if key != "dim" and value is not None}
    text = ", ".join(f"{key}={value}" for key, value in config.items())
    return f"{layer.info.name} {example} ({text if len(text) <= widest else text[:widest] + ' …'})"


def draw(view: View, *, heads: int = 4) -> Figure:
    """Draw one heat map per head for the first ``heads`` heads.

    Of a sequence, rows are output tokens, columns input tokens. Of a grid, the map shows what its middle cell reads.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    shown = view.matrix[:heads]
    cell = _middle(view)
    figure = Figure(figsize=(0.6 + 2.9 * len(shown), 3.4), layout="constrained")
    panels = figure.subplots(1, len(shown), squeeze=False)[0]
    for index, (axes, matrix) in enumerate(zip(panels, shown, strict=True)):
        values = matrix if cell is None else matrix[_row(view, cell)].view(view.grid)
        largest = values.abs().max().item() or 1.0
        signed = bool((values < 0).any())
        aspect = "equal" if 4 * values.shape[0] > values.shape[1] else "auto"
        image = axes.imshow(
            values.numpy(),
            cmap="RdBu_r" if signed else "Blues",
            vmin=-largest if signed else 0.0,
            vmax=largest,
            aspect=aspect,
        )
        if cell is None:
            axes.set(xlabel="input token", ylabel="output token" if index == 0 else "")
        else:
            axes.add_patch(Rectangle((cell[1] - 0.5, cell[0] - 0.5), 1, 1, fill=False, edgecolor="orange", linewidth=2))
            axes.set(xlabel="column", ylabel="row" if index == 0 else "")
        if len(view.matrix) > 1:
            axes.set_title(f"head {index + 1}", fontsize="small")
        figure.colorbar(image, ax=axes, shrink=0.7)
    what = view.kind if cell is None else f"{view.kind}, what the marked cell reads"
    figure.suptitle(f"{view.layer.info.name} ({view.example}): {what}", fontsize="medium")
    return figure


def _middle(view: View) -> tuple[int, int] | None:
    """The middle cell of a grid of two axes whose every cell is an input; None for anything else."""
    if len(view.grid) != 2 or view.matrix.shape[2] != math.prod(view.grid):
        return None
    return view.grid[0] // 2, view.grid[1] // 2


def _row(view: View, cell: tuple[int, int]) -> int:
    # a layer with equal weights for all outputs has a matrix of one row
    return min(cell[0] * view.grid[1] + cell[1], view.matrix.shape[1] - 1)


def shade(view: View, *, widest: int = 64) -> str:
    """Draw the mean over all heads as text: a matrix cut to ``widest`` rows and columns, or the map of a grid."""
    matrix, cell = view.matrix.abs().mean(0), _middle(view)
    matrix = matrix[:widest, :widest] if cell is None else matrix[_row(view, cell)].view(view.grid)
    scaled = (matrix / matrix.max().clamp_min(1e-12)).sqrt() * (len(SHADES) - 1)
    marks = [[SHADES[round(v)] * 2 for v in row] for row in scaled.tolist()]
    how = "row an output, column an input"
    if cell is not None:
        marks[cell[0]][cell[1]] = "++"
        how = "what the cell ++ reads"
    lines = ["".join(row) for row in marks]
    return "\n".join([f"{described(view.layer, view.example)}: {view.kind}, {how}", *lines])
