"""Draw the attention of one cell of a photo in a layer with random weights.

The photo is divided into cells of 8 x 8 pixels, one token each. A token is a random linear map of the colour, the
texture and the position of its cell. Similar cells and neighbouring cells have similar tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from manyheads.core.backbones.stack import layer_for_grid
from manyheads.core.errors import ArgumentError, UnknownNameError
from manyheads.core.fields import REQUIRED
from manyheads.core.layer import Layer
from manyheads.core.methods.mixing_matrix import mixing_matrix
from manyheads.core.registry import find_layer
from manyheads.lab.data.pictures import read_picture, resized
from manyheads.lab.reporting.mixing_picture import DIM, SHADES, described

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure

# Side of a cell in pixels.
PIXELS = 8
# Words of the caption for each kind of map.
SAYS = {"mixing matrix": "attention of", "influence": "influence on"}


@dataclass(frozen=True)
class Look:
    """The attention ``shares (H, rows, columns)`` of the cell ``query`` (row, column) to each cell, for each head."""

    layer: Layer
    example: str
    kind: str
    query: tuple[int, int]
    shares: Tensor
    photo: np.ndarray  # (rows * PIXELS, columns * PIXELS, 3)
    notes: tuple[str, ...]


def look_from(
    name: str, image: Path, query: tuple[float, float], *, example: str | None = None, cells: int = 24, seed: int = 0
) -> Look:
    """Build a layer for the cells of a photo and return the attention of the cell at ``query``.

    Args:
        name: the layer.
        image: the file of the photo.
        query: distance from the top and from the left, as fractions of height and width from 0 to 1.
        example: the name of the example configuration; the first by default.
        cells: number of cells along the longer side, 2 to 64.
        seed: of weights and tokens.

    Raises:
        UnknownNameError: an unknown layer or example.
        ArgumentError: a query outside the photo, cells out of range, or a layer for neither grids nor single sequences.
        DataError: a file that cannot be read as a picture.
    """
    if not 2 <= cells <= 64:
        raise ArgumentError(f"tokens: found {cells}, expected 2 to 64 cells along the longer side of the picture")
    if not all(0 <= one <= 1 for one in query):
        raise ArgumentError(f"query: found {query}, expected two numbers from 0 to 1: from the top and from the left")
    picture = read_picture(image, 3)
    height, width = picture.pixels.shape[:2]
    # most windows and blocks need even numbers of cells
    rows, columns = (max(2, 2 * round(cells * side / max(height, width) / 2)) for side in (height, width))
    photo = resized(picture.pixels, (rows * PIXELS, columns * PIXELS))
    kind = find_layer(name)
    examples = kind.info.at_length(rows * columns)
    label = next(iter(examples)) if example is None else example
    if label not in examples:
        raise UnknownNameError(f"example of {name}", label, examples)
    options = dict(examples[label])
    for argument in kind.arguments:
        # drop the sizes of the example; layer_for_grid sets those of the photo
        if argument.name in kind.info.sizes and (argument.default is REQUIRED or argument.name in options):
            options.pop(argument.name, None)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        heads = int(options.pop("heads", 4))
        layer = layer_for_grid(name, DIM, (rows, columns), heads=heads, options=options).eval()
    x = _tokens(torch.from_numpy(photo), rows, columns, seed)
    if 2 not in layer.info.grid_ranks:
        x = x.flatten(1, 2)
    place = (min(int(query[0] * rows), rows - 1), min(int(query[1] * columns), columns - 1))
    number = place[0] * columns + place[1]
    if layer.linear_in_value:
        matrix = mixing_matrix(layer, x)[0]
        # a layer with equal weights for all outputs has a matrix of one row
        shares, what = matrix[:, min(number, matrix.shape[1] - 1)], "mixing matrix"
    else:
        shares, what = _influence(layer, x, number)[None], "influence"
    return Look(layer, label, what, place, shares.detach().reshape(-1, rows, columns), photo, picture.notes)


def _tokens(photo: Tensor, rows: int, columns: int, seed: int) -> Tensor:
    """Return the tokens of a photo, ``(1, rows, columns, DIM)``."""
    parts = photo.view(rows, PIXELS, columns, PIXELS, 3).permute(0, 2, 1, 3, 4).flatten(2, 3)
    down, right = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    angles = 2 * math.pi * torch.stack([down / rows, right / columns], -1)
    features = torch.cat([2 * parts.mean(2), 2 * parts.std(2), angles.sin(), angles.cos()], -1)
    features = (features - features.mean((0, 1))) / features.std((0, 1)).clamp_min(1e-3)
    mapped = torch.randn(features.shape[-1], DIM, generator=torch.Generator().manual_seed(seed))
    return (features @ mapped / features.shape[-1] ** 0.5 * 1.5)[None]


def _influence(layer: Layer, x: Tensor, number: int) -> Tensor:
    """Return the influence of each token on output ``number``: the norm of 8 random projections of the Jacobian."""
    source = x.clone().requires_grad_()
    y = layer(source).y.flatten(1, -2)[0, number]
    total = torch.zeros(x[..., 0].numel())
    for direction in torch.randn(8, y.shape[0], generator=torch.Generator().manual_seed(0)):
        (gradient,) = torch.autograd.grad(y @ direction, source, retain_graph=True)
        total += gradient.flatten(1, -2)[0].square().sum(-1)
    return total.sqrt()


def draw(look: Look, *, heads: int = 4) -> Figure:
    """Draw the photo with the marked cell, and one attention map per head for the first ``heads`` heads."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    shown = look.shares[:heads]
    figure = Figure(figsize=(2.9 * (len(shown) + 1), 3.2), layout="constrained")
    panels = figure.subplots(1, len(shown) + 1, squeeze=False)[0]
    size = look.photo.shape[:2]
    for index, axes in enumerate(panels):
        grey = look.photo.mean(2)
        axes.imshow(look.photo if index == 0 else grey, cmap=None if index == 0 else "gray")
        if index:
            share = shown[index - 1].abs()
            image = axes.imshow(
                share.numpy(), cmap="inferno", alpha=0.7, extent=(-0.5, size[1] - 0.5, size[0] - 0.5, -0.5)
            )
            figure.colorbar(image, ax=axes, shrink=0.7)
            if len(look.shares) > 1:
                axes.set_title(f"head {index}", fontsize="small")
        corner = (look.query[1] * PIXELS - 0.5, look.query[0] * PIXELS - 0.5)
        axes.add_patch(Rectangle(corner, PIXELS, PIXELS, fill=False, edgecolor="cyan", linewidth=1.5))
        axes.set_axis_off()
    figure.suptitle(f"{described(look.layer, look.example)}: {SAYS[look.kind]} the marked cell", fontsize="medium")
    return figure


def shade(look: Look) -> str:
    """Draw the mean over all heads as text; ``++`` marks the cell."""
    matrix = look.shares.abs().mean(0)
    scaled = (matrix / matrix.max().clamp_min(1e-12)).sqrt() * (len(SHADES) - 1)
    lines = []
    for row, values in enumerate(scaled.tolist()):
        marks = [SHADES[round(v)] * 2 for v in values]
        if row == look.query[0]:
            marks[look.query[1]] = "++"
        lines.append("".join(marks))
    head = f"{described(look.layer, look.example)}: {SAYS[look.kind]} the cell ++, random weights"
    return "\n".join([head, *lines])
