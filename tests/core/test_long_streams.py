"""A hundred thousand steps: the state stays as large as it was, and float32 stays close to float64."""

from __future__ import annotations

import pytest
import torch

from manyheads.core import state as trees
from manyheads.core.registry import LAYERS
from manyheads.core.testing import Case

from .layers import CASES, EXAMPLES

STEPS = 100_000
CHUNK = 500


def streams():
    for name, layer in LAYERS.items():
        for label, config in EXAMPLES[name].items():
            case = Case(layer, config, **CASES[name])
            unbounded = config.get("max_len") is None  # an episode of some layers ends at max_len
            if unbounded and case.layer().state_kind in ("recurrent", "window"):
                yield pytest.param(case, id=f"{name}-{label}")


@pytest.mark.slow
@pytest.mark.parametrize("case", list(streams()))
def test_state_and_error_stay_bounded_over_a_long_stream(case):
    generator = torch.Generator().manual_seed(5)
    narrow, wide = case.layer(torch.float32), case.layer(torch.float64)
    narrow_state, wide_state = narrow.init_state(1, dtype=torch.float32), wide.init_state(1, dtype=torch.float64)
    first = trees.nbytes(narrow_state)
    worst, differing, scale = 0.0, 0, 1.0
    with torch.no_grad():
        for start in range(0, STEPS, CHUNK):
            x = torch.randn(1, CHUNK, case.dim, generator=generator)
            found, narrow_state, _ = narrow(x, narrow_state)
            expected, wide_state, _ = wide(x.double(), wide_state)
            assert trees.nbytes(narrow_state) == first, f"{trees.nbytes(narrow_state)} bytes after {start} steps"
            error = (found.double() - expected).abs()
            scale = max(scale, expected.abs().max().item())
            differing += int((error > 1e-4 * scale).sum())
            if start >= STEPS // 2:
                worst = max(worst, error.max().item())
    if wide.info.discontinuous:
        assert differing <= 1e-3 * STEPS * case.dim, f"{differing} outputs differ: a rounding error changed a choice"
    else:
        assert worst <= 1e-4 * scale, f"drift of {worst:.3g} at outputs of {scale:.3g}"
