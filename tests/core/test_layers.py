"""Every registered layer passes the test battery in every example configuration."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from manyheads.core.registry import LAYERS, create
from manyheads.core.testing import POINTS, Case, points_of

from .layers import CASES, EXAMPLES, ORACLES


def cases():
    for name, layer in LAYERS.items():
        for label, config in EXAMPLES[name].items():
            for case in on_every_grid(layer, config, ORACLES[name], CASES[name]):
                axes = "" if len(case.grid) == min(case.layer().grid_ranks) else f"-{len(case.grid)} axes"
                for point in points_of(case):
                    yield pytest.param(case, point, id=f"{name}-{label}{axes}-{point}")


def on_every_grid(layer, config, oracle, more):
    """Yield one case for each grid rank that the layer accepts in this configuration."""
    first = Case(layer, config, oracle=oracle, **more)
    yield first
    for rank in first.layer().grid_ranks:
        if rank != len(first.grid) and all(first.free):
            yield replace(first, grid={1: (7,), 2: (3, 4), 3: (2, 3, 2)}[rank])


@pytest.mark.parametrize(("case", "point"), list(cases()))
def test_layer_passes_the_battery(case, point):
    POINTS[point].check(case)


def test_every_layer_has_an_oracle_and_examples():
    assert set(ORACLES) == set(EXAMPLES) == set(LAYERS)


def configurations(*, compiles):
    for name, layer in LAYERS.items():
        for label, config in EXAMPLES[name].items():
            if layer.info.compiles is compiles and config.get("context_dim") is None:
                yield pytest.param(name, config, id=f"{name}-{label}")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "config"), list(configurations(compiles=True)))
def test_layer_declared_as_compilable_compiles_to_one_graph(name, config):
    """One graph, forward and backward; the generated code itself is torch's concern."""
    case = Case(LAYERS[name], config, **CASES[name])
    layer, x = create(name, case.dim, **config).eval(), case.x().float().requires_grad_()
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    expected, found = layer(x).y, compiled(x).y
    gradients = [torch.autograd.grad(y.sum(), x)[0] for y in (found, expected)]
    for one, other in ((found, expected), gradients):  # beside the largest, as sums may be rounded in another order
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5 * max(1.0, other.abs().max().item()))


@pytest.mark.parametrize(("name", "config"), list(configurations(compiles=False)))
def test_layer_declared_as_not_compilable_does_not_compile_to_one_graph(name, config):
    case = Case(LAYERS[name], config, **CASES[name])
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported):
        torch.compile(case.layer(torch.float32), fullgraph=True, backend="aot_eager")(case.x().float())
