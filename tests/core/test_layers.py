"""Every registered layer, in every example configuration, passes every point of the battery that it owes."""

from __future__ import annotations

import pytest

from manyheads.core.registry import LAYERS
from manyheads.core.testing import POINTS, Case, points_of

from .oracles import ORACLES


def cases():
    for name, entry in LAYERS.items():
        for label, config in entry.examples.items():
            case = Case(entry.layer, config, oracle=ORACLES[name])
            for point in points_of(case):
                yield pytest.param(case, point, id=f"{name}-{label}-{point}")


@pytest.mark.parametrize(("case", "point"), list(cases()))
def test_layer_keeps_its_promises(case, point):
    POINTS[point].check(case)


def test_every_layer_has_an_oracle():
    assert set(ORACLES) == set(LAYERS)
