"""Settings for all tests: fixed seeds, and fresh memory that is NaN, so that reading it shows.

Torch computes with ``$OMP_NUM_THREADS`` threads, one by default.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import pytest
from hypothesis import settings

settings.register_profile("manyheads", deadline=None, derandomize=True)
settings.load_profile("manyheads")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--shapes", action="store_true", help="check the shape annotations of manyheads.core")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--shapes"):
        from tests.shapes import install

        install()


@pytest.fixture(autouse=True)
def _torch_settings(request: pytest.FixtureRequest):
    """Only for tests that use torch: importing it costs seconds."""
    import sys

    torch = sys.modules.get("torch")
    if torch is None:
        yield
        return
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
