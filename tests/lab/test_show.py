"""The commands show and bench: pictures and costs of layers."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from PIL import Image

from manyheads.core.errors import ArgumentError
from manyheads.core.registry import LAYERS
from manyheads.lab.cli.main import main
from manyheads.lab.reporting.image_picture import look_from
from manyheads.lab.reporting.layer_costs import bench_layers, grid_of, peak_bytes
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

    assert peak_bytes(run, torch.device("cpu")) == 6000


@pytest.fixture
def photo(tmp_path):
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:, 30:] = 255
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_for_a_grid_or_one_sequence_runs_on_a_photo(photo, name):
    if name == "fourier-cross":
        with pytest.raises(ArgumentError, match="a grid of 2 axes or a sequence alone"):
            look_from(name, photo, (0.5, 0.5), cells=6)
        return
    look = look_from(name, photo, (0.5, 0.5), cells=6)
    assert look.shares.shape[1:] == (4, 6)
    assert look.query == (2, 3)
    assert look.shares.isfinite().all()


def test_an_axial_layer_reads_the_cells_of_one_axis(photo):
    look = look_from("axial", photo, (0.9, 0.1), cells=6)
    read = (look.shares.abs().sum(0) > 0).nonzero()
    assert read[:, 0].unique().tolist() == [3]
    assert read[:, 1].unique().tolist() == list(range(6))
    assert look.shares.sum((1, 2)).tolist() == pytest.approx([1.0] * len(look.shares))


def test_show_draws_a_photo(photo, tmp_path, capsys):
    plot = tmp_path / "look.png"
    assert main(["show", "softmax", "--image", str(photo), "--plot", str(plot), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["shape"][1:] == [16, 24]
    assert plot.stat().st_size > 5000
    assert main(["show", "softmax", "--image", str(photo), "--query", "0", "1"]) == 0
    assert "++" in capsys.readouterr().out.splitlines()[1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--query", "0", "2"], "query: found (0.0, 2.0), expected two numbers from 0 to 1"),
        (["--tokens", "100"], "tokens: found 100, expected 2 to 64 cells"),
    ],
)
def test_a_query_outside_the_photo_gives_an_error_message(photo, capsys, arguments, words):
    assert main(["show", "softmax", "--image", str(photo), *arguments]) == 2
    assert words in capsys.readouterr().err


def test_a_picture_has_the_requested_number_of_cells(photo, capsys):
    assert main(["show", "softmax", "--image", str(photo), "--tokens", "32", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["shape"][2] == 32


def test_backbones_are_not_listed_by_properties_of_layers(capsys):
    assert main(["list", "--backbones", "--streaming"]) == 2
    assert "--backbones beside a choice of layers" in capsys.readouterr().err


def test_list_backbones_gives_parameters_and_levels(capsys):
    assert main(["list", "--backbones", "--json"]) == 0
    found = {one["name"]: one for one in json.loads(capsys.readouterr().out)}
    assert found["vit-small"]["parameters"] == found["vit-small"]["published"] == 22_050_664
    assert found["vit-small"]["strides"] == [16]
