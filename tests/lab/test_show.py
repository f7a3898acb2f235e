"""The commands that draw a layer and measure layers."""

from __future__ import annotations

import json
import math

import pytest

from manyheads.core.errors import ArgumentError
from manyheads.core.registry import LAYERS
from manyheads.lab.cli.main import main
from manyheads.lab.reporting.layer_costs import _peak_bytes, bench_layers, grid_of
from manyheads.lab.reporting.mixing_picture import draw, shade, view_layer


@pytest.mark.parametrize("name", list(LAYERS))
def test_every_layer_can_be_drawn(name):
    view = view_layer(name, tokens=16)
    assert view.matrix.dim() == 3
    assert view.matrix.isfinite().all()
    assert view.matrix.abs().sum() > 0
    assert len(draw(view).axes) >= 2
    assert name in shade(view)


def test_the_mixing_matrix_of_a_causal_layer_is_zero_above_the_diagonal():
    matrix = view_layer("softmax", example="causal").matrix
    assert (matrix.triu(1) == 0).all()
    assert matrix.sum(-1).allclose(matrix.new_ones(()))


def test_show_writes_the_picture_and_describes_it_as_json(tmp_path, capsys):
    plot = tmp_path / "softmax.png"
    assert main(["show", "softmax", "--example", "window", "--tokens", "12", "--plot", str(plot), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert document["kind"] == "mixing matrix"
    assert document["shape"] == [2, 12, 12]
    assert math.isclose(document["row_sum_least"], 1, abs_tol=1e-6)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["show", "sofmax"], "did you mean 'softmax'"),
        (["show", "softmax", "--example", "windw"], "unknown example of softmax 'windw': did you mean 'window'"),
        (["show", "softmax", "--tokens", "1"], "tokens: found 1, expected 2 to 512"),
        (["show", "softmax", "--plot", "a.txt"], "--plot: found a.txt, expected a name that ends in .png"),
        (["bench", "layers", "--lengths", "0"], "lengths: found [0]"),
        (["bench", "layers", "--device", "abacus"], "device: found 'abacus', expected cpu or cuda"),
    ],
)
def test_bad_arguments_of_show_and_bench_are_one_line(words, message, capsys):
    assert main(words) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert printed.out == ""


@pytest.mark.parametrize(
    ("length", "rank", "grid"), [(256, 2, (16, 16)), (512, 2, (16, 32)), (12, 2, (2, 6)), (9, 1, (9,))]
)
def test_a_length_becomes_the_most_even_grid(length, rank, grid):
    assert grid_of(length, rank) == grid


def test_every_layer_has_a_benchmark_configuration():
    for layer in LAYERS.values():
        configs = {label: c for n in (16, 256, 1024) for label, c in layer.info.at_length(n).items()}
        assert configs
        for config in configs.values():
            layer(128, **config)


def test_speedup_is_relative_to_softmax_of_the_same_causality():
    rows = {row["layer"]: row for row in bench_layers(["softmax"], [64])}
    assert rows["softmax"]["speedup"] == rows["softmax (causal)"]["speedup"] == 1
    window, causal = rows["softmax (window)"], rows["softmax (causal)"]
    total = {name: row["forward_cpu_s"] + row["backward_cpu_s"] for name, row in rows.items()}
    assert window["speedup"] == total[causal["layer"]] / total[window["layer"]]


def test_a_benchmark_without_lengths_is_refused():
    with pytest.raises(ArgumentError, match="lengths"):
        bench_layers(["softmax"], [])


def test_peak_bytes_counts_the_tensors_alive_at_once():
    import torch

    def run():
        first = torch.empty(1000)
        second = torch.empty(500)
        del first
        return torch.empty(250), second

    assert _peak_bytes(run, torch.device("cpu")) == 6000
