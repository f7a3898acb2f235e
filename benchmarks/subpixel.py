"""Measure deformable attention against its usual rendering with ``grid_sample``: ``python benchmarks/subpixel.py``.

The operator of SpecDETR with values, offsets and weights given: width 256, 8 heads, 4 points, a map of 128 x 128 and
one of a single pixel, one image in float32. The encoder has a query for each token and points around its centre; the
decoder has 900 queries with boxes. Offsets are the initial ones with normal noise of 0.3 pixels, as a trained layer has
none on whole pixels.

CPU seconds of one thread; both forms take turns, and the shortest time of each counts. Peak memory is that of torch's
allocator in one forward and backward pass. ``difference`` compares output and gradients of values and weights with the
rendering in float64, relative to the largest entry. ``offsets_differ`` is the share of gradients of offsets that differ
by more than 1e-4 of the largest: rounding moves a few samples over the edge of a pixel, where this gradient jumps.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from manyheads.core.functional.deformable import deformable_attention, pixel_centres
from manyheads.core.layers.subpixel import initial_offsets
from manyheads.lab.data.files import write_csv
from manyheads.lab.reporting.layer_costs import peak_bytes

WIDTH, HEADS, POINTS, SIDE, QUERIES = 256, 8, 4, 128, 900
Inputs = list[Tensor]
Form = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def rendering(pixels: Tensor, token: Tensor, references: Tensor, offsets: Tensor, weights: Tensor) -> Tensor:
    """The samples of each level by ``grid_sample``, stacked, then their weighted sum."""
    heads, points = offsets.shape[2], offsets.shape[4]
    found = []
    for index, level in enumerate((pixels, token)):
        size = offsets.new_tensor([level.shape[2], level.shape[1]])
        share = offsets[:, :, :, index] / size
        if references.shape[-1] == 4:
            share = offsets[:, :, :, index] / points * references[:, :, :, None, 2:] / 2
        grid = 2 * (references[:, :, :, None, :2] + share) - 1
        maps = level.unflatten(-1, (heads, -1)).permute(0, 3, 4, 1, 2).flatten(0, 1)
        found.append(functional.grid_sample(maps, grid.transpose(1, 2).flatten(0, 1), align_corners=False))
    shares = weights.transpose(1, 2).flatten(0, 1).flatten(2).unsqueeze(1)
    summed = (torch.stack(found, -2).flatten(-2) * shares).sum(-1)
    return summed.unflatten(0, (-1, heads)).permute(0, 3, 1, 2).flatten(2)


def bags(pixels: Tensor, token: Tensor, references: Tensor, offsets: Tensor, weights: Tensor) -> Tensor:
    """The function of the core."""
    return deformable_attention([pixels, token], references, offsets, weights)


FORMS: dict[str, Form] = {"grid_sample on both levels": rendering, "deformable_attention": bags}


def inputs(boxes: bool) -> tuple[Inputs, Tensor]:
    """Values, references, offsets and weights, and the gradient of the output."""
    torch.manual_seed(0)
    references = torch.cat([pixel_centres(SIDE, SIDE), torch.full((1, 1, 1, 2), 0.5)], 1)
    if boxes:
        references = torch.cat([torch.rand(1, QUERIES, 1, 2), 0.1 * torch.rand(1, QUERIES, 1, 2)], -1)
    queries = references.shape[1]
    pattern = initial_offsets(HEADS, POINTS).float().unsqueeze(1)
    offsets = pattern + 0.3 * torch.randn(1, queries, HEADS, 2, POINTS, 2)
    weights = torch.randn(1, queries, HEADS, 2 * POINTS).softmax(-1).view(offsets.shape[:-1])
    values = [torch.randn(1, SIDE, SIDE, WIDTH), torch.randn(1, 1, 1, WIDTH)]
    return [*values, references, offsets, weights], torch.randn(1, queries, WIDTH)


def both(form: Form, given: Inputs, gradient: Tensor) -> tuple[float, float, Inputs]:
    """CPU seconds of the forward and the backward pass, and output and gradients."""
    wanted = [part.detach().requires_grad_() for part in given]
    # A detector does not differentiate its references.
    wanted[2].requires_grad_(False)
    start = time.process_time()
    out = form(*wanted)
    between = time.process_time()
    found = torch.autograd.grad(out, [wanted[i] for i in (0, 1, 3, 4)], gradient)
    return between - start, time.process_time() - between, [out.detach(), *found]


def measure(case: str, boxes: bool, turns: int) -> list[dict[str, object]]:
    """One row a form."""
    given, gradient = inputs(boxes)
    exact = both(rendering, [part.double() for part in given], gradient.double())[2]
    least = dict.fromkeys(FORMS, (float("inf"), float("inf")))
    last: dict[str, Inputs] = {}
    for _ in range(turns):
        for name, form in FORMS.items():
            forward, backward, last[name] = both(form, given, gradient)
            least[name] = min(least[name], (forward, backward), key=sum)
    slowest = sum(least[next(iter(FORMS))])
    rows: list[dict[str, object]] = []
    for name, form in FORMS.items():
        forward, backward = least[name]
        out, by_values, by_token, by_offsets, by_weights = (
            (found - wanted).abs() / wanted.abs().max() for found, wanted in zip(last[name], exact, strict=True)
        )
        peak = peak_bytes(lambda form=form: both(form, given, gradient), torch.device("cpu"))
        rows.append(
            {
                "case": case,
                "form": name,
                "forward_cpu_s": f"{forward:.3f}",
                "backward_cpu_s": f"{backward:.3f}",
                "total_cpu_s": f"{forward + backward:.3f}",
                "times_faster": f"{slowest / (forward + backward):.2f}",
                "peak_mb": f"{peak / 1e6:.0f}",
                "difference": f"{max(float(part.max()) for part in (out, by_values, by_token, by_weights)):.1e}",
                "offsets_differ": f"{float((by_offsets > 1e-4).double().mean()):.1e}",
            }
        )
    return rows


def processor() -> str:
    """Return the name of the processor."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")) + ", 1 thread"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--turns", type=int, default=8, help="repetitions")
    parser.add_argument("--csv", type=Path, default=Path("benchmarks/results/subpixel.csv"))
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    queries = SIDE * SIDE + 1
    rows = measure(f"encoder, {queries} queries", False, asked.turns)
    rows += measure(f"decoder, {QUERIES} queries with boxes", True, asked.turns)
    for row in rows:
        print(row)
        row |= {
            "machine": processor(),
            "versions": f"torch={version('torch')}",
            "command": f"python benchmarks/subpixel.py --turns {asked.turns}",
        }
    write_csv(asked.csv, rows)


if __name__ == "__main__":
    main()
