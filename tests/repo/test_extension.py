"""Extension: a toy layer, forecaster and domain, added to a copy of the tree, are found, checked and run."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

LAYER = '''"""Toy (0000.00000): the mean of all tokens so far, times a weight.

    Y[t] = W mean of X[1] … X[t]

Shapes: B batch, T tokens, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from manyheads.core.layer import Grid, Layer, LayerInfo, LayerOutput
from manyheads.core.mask import Mask
from manyheads.core.state import State


def _flops(config: dict[str, Any], grid: Grid) -> float:
    return 2.0 * grid[0] * config["dim"] ** 2


class RunningMean(Layer):
    """The running mean, projected; see the module."""

    info = LayerInfo(
        name="running-mean",
        title="Toy",
        arxiv="0000.00000",
        good_for="Tests.",
        cost="time N D^2, memory N D",
        flops=_flops,
        causal=("strict",),
        positional=True,
    )

    bias: bool = False
    \"\"\"A bias after the projection.\"\"\"

    def setup(self) -> None:
        self.weight = nn.Linear(self.dim, self.dim, bias=self.bias)

    def mix(self, x: Tensor, state: State, context: Tensor | None, mask: Mask) -> LayerOutput:
        count = torch.arange(1, x.shape[1] + 1, device=x.device, dtype=x.dtype).unsqueeze(-1)
        return LayerOutput(self.weight(x.cumsum(1) / count))
'''

ORACLE = '''"""The running mean, token by token."""

from __future__ import annotations

import torch


def running_mean_oracle(parameters, config, x, context, mask):
    rows = []
    for row in x:
        means = [sum(row[: t + 1]) / (t + 1) for t in range(len(row))]
        bias = parameters["weight.bias"] if config["bias"] else 0
        rows.append(torch.stack([parameters["weight.weight"] @ mean + bias for mean in means]))
    return torch.stack(rows)


ORACLES = {"running-mean": running_mean_oracle}
'''

EXAMPLES = '''"""Configurations that the battery checks; the first is the plain one."""

EXAMPLES = {"running-mean": {"plain": {}, "bias": {"bias": True}}}
'''

TEST = '''"""The running mean against a closed form."""

import torch

from manyheads.core import create


def test_a_constant_input_stays_constant():
    layer, x = create("running-mean", dim=4), torch.ones(1, 5, 4)
    torch.testing.assert_close(layer(x).y, layer.weight(x))
'''

FORECASTER = '''"""Toy: the mean of the look-back, times a learned weight for each step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from manyheads.forecasting.models.networks import NetworkConfig


@dataclass(frozen=True)
class ScaledMeanConfig(NetworkConfig):
    """No settings of its own."""

    def make(self, look_back: int, horizon: int, channels: int) -> ScaledMean:
        return ScaledMean(horizon)


class ScaledMean(nn.Module):
    """``(N, L, C)`` -> ``(N, H, C)``."""

    def __init__(self, horizon: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(horizon, 1))

    def forward(self, x_NLC: Tensor) -> Tensor:
        return x_NLC.mean(1, keepdim=True) * self.weight
'''

DOMAIN = '''"""Toy: a domain with one command."""

from manyheads.lab.cli.command import Outcome
from manyheads.lab.domain import Domain


def hello(*, name: str = "world") -> Outcome:
    """Greets.

    Args:
        name: whom.
    """
    return Outcome({"hello": name}, f"hello {name}")


commands = {"hello": hello}
domain = Domain(name="toy", summary="a toy", package="manyheads-toy", commands="manyheads.toy:commands")
'''


@pytest.fixture
def tree(tmp_path):
    """Copy the needed part of the tree; return a function that runs a Python module on the copy."""
    left_out = shutil.ignore_patterns(".*", "__pycache__", "site", "reports", "runs", "results")
    copy = tmp_path / "tree"
    for name in ("shared", "packages", "tests", "docs", "benchmarks"):
        shutil.copytree(ROOT / name, copy / name, ignore=left_out)
    for name in ("pyproject.toml", "README.md", "mkdocs.yml", "noxfile.py"):
        shutil.copy(ROOT / name, copy / name)

    def run(*arguments, status=0):
        places = [copy / "shared/src", *copy.glob("packages/*/src"), *copy.glob("packages/*/metadata")]
        path = os.pathsep.join(map(str, places))
        done = subprocess.run(
            [sys.executable, "-m", *map(str, arguments)],
            cwd=copy,
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
        )
        assert done.returncode == status, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout

    run.root = copy
    return run


def lint(tree):
    """Run ruff on the copy, if it is installed."""
    if shutil.which("ruff"):
        tree("ruff", "format", "--check", "shared", "packages", "tests")
        tree("ruff", "check", "shared", "packages", "tests")


def write_layer(tree, text):
    """The four files of a new layer."""
    folder = tree.root / "tests/core/layers/running_mean"
    folder.mkdir()
    (tree.root / "shared/src/manyheads/core/layers/running_mean.py").write_text(text)
    files = {"__init__": "", "oracle": ORACLE, "examples": EXAMPLES, "test_running_mean": TEST}
    for name, content in files.items():
        (folder / f"{name}.py").write_text(content)


def test_a_new_layer_is_four_files(tree):
    write_layer(tree, LAYER)
    battery = ("tests/core/layers/running_mean", "tests/core/test_layers.py", "-k", "running-mean or running_mean")
    output = tree("pytest", "-v", "-p", "no:cacheprovider", *battery)
    assert int(re.search(r"(\d+) passed", output)[1]) >= 10
    assert "oracle_and_layer_agree" in output
    assert "test_a_constant_input_stays_constant PASSED" in output
    names = [info["name"] for info in json.loads(tree("manyheads.lab", "list", "--causal", "strict", "--json"))]
    assert "running-mean" in names
    assert json.loads(tree("manyheads.lab", "show", "running-mean", "--json"))["kind"] == "influence"
    rows = json.loads(tree("manyheads.lab", "bench", "layers", "--names", "running-mean", "--lengths", "64", "--json"))
    assert {row["layer"] for row in rows} >= {"running-mean"}
    subprocess.run([sys.executable, "docs/catalogue.py"], cwd=tree.root, check=True, env=_path(tree))
    assert "mean of all tokens so far" not in (tree.root / "README.md").read_text()
    assert "docs/layers/running-mean.md" in (tree.root / "README.md").read_text()
    lint(tree)


def test_a_broken_new_layer_fails_the_battery(tree):
    broken = LAYER.replace("x.cumsum(1) / count", "x.cumsum(1).flip(1) / count")
    write_layer(tree, broken)
    output = tree("pytest", "-q", "-p", "no:cacheprovider", "tests/core/test_layers.py", "-k", "running-mean", status=1)
    assert "oracle_and_layer_agree" in output
    assert "future_does_not_change_the_past" in output


def test_a_new_forecaster_needs_one_file_and_one_entry_only(tree, tmp_path):
    models = tree.root / "packages/forecasting/src/manyheads/forecasting/models"
    (models / "scaled_mean.py").write_text(FORECASTER)
    registry = models / "networks.py"
    entry = '    "scaled-mean": NetworkSpec("Toy", "0000.00000", f"{_HERE}.scaled_mean:ScaledMeanConfig"),\n'
    place = '    "transformer": NetworkSpec('
    assert place in registry.read_text()
    registry.write_text(registry.read_text().replace(place, entry + place))
    table = tmp_path / "my.csv"
    table.write_text(
        "ds,a,b\n" + "".join(f"2024-01-{1 + n // 24:02d} {n % 24:02d}:00:00,{n % 7},{n % 5}\n" for n in range(240))
    )
    saved = tmp_path / "f.safetensors"
    fit = ("manyheads.forecasting", "fit", table, "--horizon", 4, "--model", "scaled-mean", "--out", saved, "--json")
    assert json.loads(tree(*fit))["panels"][0]["channels"] == ["a", "b"]
    forecast = json.loads(tree("manyheads.forecasting", "predict", saved, "--json"))["forecast"]
    assert len(forecast) == 8
    listed = json.loads(tree("manyheads.forecasting", "models", "--json"))
    assert "scaled-mean" in [model["name"] for model in listed]
    experiments = json.loads(tree("manyheads.forecasting", "list", "--json"))
    assert "etth1-96-scaled-mean" in [experiment["name"] for experiment in experiments]
    lint(tree)


def test_a_new_domain_needs_its_own_package_only(tree):
    package = tree.root / "packages/toy"
    (package / "src/manyheads/toy").mkdir(parents=True)
    (package / "src/manyheads/toy/__init__.py").write_text(DOMAIN)
    (package / "src/manyheads/toy/py.typed").touch()
    # the metadata that an installer writes
    metadata = package / "metadata/manyheads_toy-0.1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: manyheads-toy\nVersion: 0.1.0\n")
    (metadata / "entry_points.txt").write_text("[manyheads.domains]\ntoy = manyheads.toy:domain\n")
    assert json.loads(tree("manyheads.lab", "toy", "hello", "--name", "you", "--json")) == {"hello": "you"}
    lint(tree)


def _path(tree):
    places = [tree.root / "shared/src", *tree.root.glob("packages/*/src")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, places))}
