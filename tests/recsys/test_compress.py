"""Low-rank compression, the choice of the rank, int8 quantisation with its AUC check, and the latency benchmark."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from manyheads.core.errors import ArgumentError
from manyheads.lab.cli.command import run_commands
from manyheads.recsys.serving.compress import compress, draw, parse_budget, search_rank, sigma_after
from manyheads.recsys.training.metrics import auc
from manyheads.recsys.training.recommender import Recommender
from tests.integers import integer_products
from tests.recsys.served import shop_model, shop_visits

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from manyheads.lab.data.onnx_files import int8_products
from manyheads.recsys.serving.export import export
from manyheads.recsys.serving.quantise import has_int8, quantise
from manyheads.recsys.serving.ranker import FILE, NETWORK, Ranker
from manyheads.recsys.serving.timing import bench, take_turns


@pytest.fixture(scope="module")
def visits():
    return shop_visits()


@pytest.fixture(scope="module")
def fitted():
    return shop_model()


def full(layer):
    """Return Q, K and V as one dense matrix each, in float64."""
    return {name: matrix.detach().double() for name, matrix in layer.matrices().items()}


@pytest.mark.parametrize("rank", [1, 5, 20])
def test_the_compression_error_is_the_next_singular_value(fitted, rank):
    """``||W - W_r||_2 = sigma_{r + 1}``, by another decomposition than that of the compression."""
    cut = compress(fitted, rank)
    for layer, small, errors in zip(fitted.network_.layers, cut.model.network_.layers, cut.errors, strict=True):
        for name, matrix in full(layer).items():
            sigma = torch.linalg.svdvals(matrix)
            expected = float(sigma[rank]) if rank < len(sigma) else 0.0
            gap = float(torch.linalg.matrix_norm(matrix - full(small)[name], ord=2))
            assert gap == pytest.approx(expected, rel=1e-4, abs=1e-5)
            assert errors[name] == pytest.approx(expected, rel=1e-6)


def test_full_rank_changes_no_score_and_a_low_rank_does(visits, fitted):
    layer = fitted.network_.layers[0]
    whole = layer.fields * layer.dim
    expected = fitted.decision_function(visits)
    np.testing.assert_allclose(compress(fitted, whole).model.decision_function(visits), expected, atol=1e-4)
    assert np.abs(compress(fitted, 1).model.decision_function(visits) - expected).max() > 1e-3


def test_a_compressed_model_can_be_saved_loaded_and_compressed_again(visits, fitted, tmp_path):
    cut = compress(fitted, 12).model
    cut.save(tmp_path)
    loaded = Recommender.load(tmp_path)
    np.testing.assert_array_equal(loaded.predict_proba(visits), cut.predict_proba(visits))
    assert loaded.config_.rank == 12
    again, once = (compress(model, 4).model.decision_function(visits) for model in (loaded, fitted))
    np.testing.assert_allclose(again, once, atol=1e-3)  # the first singular values of the first ones
    with pytest.raises(ArgumentError, match="rank: found 12, expected less than the model's 12"):
        compress(loaded, 12)


def test_the_search_chooses_the_best_auc_within_the_budget(visits, fitted, monkeypatch):
    """Times come from a formula instead of a clock; AUC and errors are compared with direct compression."""
    import manyheads.recsys.serving.timing as timing

    def formula(networks, layout, candidates, repeats):
        return {
            rank: 100.0 if rank is None else 1.0 + 0.1 * network.layers[0].rank for rank, network in networks.items()
        }

    monkeypatch.setattr(timing, "network_times", formula)
    found = search_rank(fitted, visits, budget_ms=2.7, ranks=(2, 16, 24))
    assert [one.rank for one in found.tried if one.cpu_ms <= 2.7] == [2, 16]
    assert found.chosen is max(found.tried[1:3], key=lambda one: one.auc)
    assert found.model.config_.rank == found.chosen.rank
    for one in found.tried:
        cut = fitted if one.rank is None else compress(fitted, one.rank).model
        assert one.auc == pytest.approx(auc(visits["bought"].to_numpy(), cut.decision_function(visits)), abs=1e-4)
        if one.rank is not None:
            assert one.error == pytest.approx(
                max(v for e in compress(fitted, one.rank).errors for v in e.values()), rel=1e-3
            )
    np.testing.assert_allclose(
        found.model.decision_function(visits),
        compress(fitted, found.chosen.rank).model.decision_function(visits),
        atol=1e-4,
    )
    with pytest.raises(ArgumentError, match=r"budget: found 1 ms for 100 rows, expected 1.2 ms or more, which rank 2"):
        search_rank(fitted, visits, budget_ms=1.0, ranks=(2, 8))
    whole = search_rank(fitted, visits, budget_ms=500.0, ranks=(2,))
    assert whole.chosen is max(whole.tried, key=lambda one: one.auc)
    assert search_rank(fitted, visits, budget_share=0.027, ranks=(2, 16, 24)).budget_ms == pytest.approx(2.7)
    assert search_rank(fitted, visits, budget_ms=None, ranks=(2, 8)).chosen.rank == 8
    assert len(draw(found).axes) == 1


def test_a_lower_rank_is_chosen_if_its_auc_is_higher():
    from manyheads.recsys.serving.compress import Tried, _within

    tried = [Tried(None, 9, 4.0, 0.9, 0.0), Tried(2, 3, 1.0, 0.8, 2.0), Tried(4, 5, 2.0, 0.7, 1.0)]
    assert [_within(tried, budget, 100).rank for budget in (1.0, 3.0, 4.0)] == [2, 2, None]


def test_sigma_after_is_read_from_the_factors(fitted):
    layer = compress(fitted, 20).model.network_.layers[0]
    sigma = max(torch.linalg.svdvals(m)[7] for m in full(fitted.network_.layers[0]).values())
    assert sigma_after(layer, 7) == pytest.approx(float(sigma), rel=1e-4)
    assert sigma_after(layer, 20) == 0.0


@pytest.mark.parametrize(("text", "expected"), [("5", 5.0), ("2.5ms", 2.5), ("0.01s", 10.0), (" 3 ms ", 3.0)])
def test_budgets_are_times(text, expected):
    assert parse_budget(text) == pytest.approx({"budget_ms": expected})
    assert parse_budget("50%") == pytest.approx({"budget_share": 0.5})


@pytest.mark.parametrize("text", ["", "fast", "-1ms", "0", "nan", "inf"])
def test_other_budgets_are_refused(text):
    with pytest.raises(ArgumentError, match=r"budget: found .*, expected a time such as 5ms"):
        parse_budget(text)


def test_only_a_hiformer_is_compressed(visits, fitted):
    other = Recommender("vanilla", label="bought", epochs=1, settings={"dim": 8}).fit(visits)
    with pytest.raises(ArgumentError, match="compress: model: found vanilla, expected a Hiformer"):
        compress(other, 4)
    with pytest.raises(ArgumentError, match="ranks: found"):
        search_rank(fitted, visits, budget_ms=1.0, ranks=(100_000,))


def test_int8_is_accepted_if_the_auc_is_kept(visits, fitted, tmp_path):
    export(fitted, tmp_path, shared=("device", "age"))
    float32 = Ranker.load(tmp_path)
    gate = quantise(tmp_path, visits, tolerance=0.02)
    assert gate.auc["bought"] == pytest.approx(auc(visits["bought"].to_numpy(), fitted.decision_function(visits)))
    small = Ranker.load(tmp_path)
    assert small.int8
    assert has_int8(tmp_path)
    a, b = (ranker.score_rows(visits).logits for ranker in (float32, small))
    assert 0 < np.abs(a - b).max() < 0.2
    shared = small.score(
        {"device": visits["device"][0], "age": visits["age"][0]}, visits.drop(columns=["device", "age", "bought"])
    )
    assert np.isfinite(shared.probabilities).all()
    assert gate.auc_int8["bought"] == pytest.approx(auc(visits["bought"].to_numpy(), b[:, 0]))


@pytest.mark.parametrize("graph", ["network", "candidates"])
def test_int8_is_exact_integer_arithmetic(fitted, graph, tmp_path):
    """Each product equals that of the stored weights and the quantised activations in integers, bit by bit."""
    import onnxruntime

    export(fitted, tmp_path, shared=("device", "age"))
    content = int8_products((tmp_path / f"{graph}.onnx").read_bytes())
    feeds, draw = {}, np.random.default_rng(0)
    for put in onnxruntime.InferenceSession(content).get_inputs():
        shape = [7 if isinstance(size, str) else size for size in put.shape]
        whole = "int64" in put.type
        feeds[put.name] = np.ones(shape, np.int64) if whole else draw.standard_normal(shape).astype(np.float32)
    products = list(integer_products(content, feeds))
    assert len(products) > 3
    for one in products:
        assert one.weights.dtype == np.uint8, "which ONNX Runtime widens before it multiplies"
        np.testing.assert_array_equal(one.found, one.exact)


def test_int8_is_refused_if_the_auc_falls_and_the_folder_is_unchanged(visits, fitted, tmp_path):
    export(fitted, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    other = tmp_path / "other"
    export(fitted, other)
    quantise(other, visits, tolerance=1.0)
    # positives are the rows that int8 ranks lower than float32 does: its AUC must be the lower one
    ranks = [Ranker(other, int8=small).score_rows(visits).logits[:, 0].argsort().argsort() for small in (False, True)]
    rows = visits.assign(bought=(ranks[0] > ranks[1]).astype(int))
    with pytest.raises(
        ArgumentError, match=r"int8: the AUC falls by 0.\d+ on 400 rows, expected at most 0: float32 is"
    ):
        quantise(tmp_path, rows, tolerance=0.0)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before
    with pytest.raises(ArgumentError, match="label 'bought': found one class only"):
        quantise(tmp_path, rows.assign(bought=1))
    with pytest.raises(ArgumentError, match="tolerance: found -1"):
        quantise(tmp_path, rows, tolerance=-1)


def test_a_new_export_removes_the_int8_files(visits, fitted, tmp_path):
    export(fitted, tmp_path)
    quantise(tmp_path, visits, tolerance=0.05)
    export(fitted, tmp_path)
    assert not Ranker.load(tmp_path).int8
    assert not (tmp_path / "network.int8.onnx").exists()


def test_the_benchmark_measures_time_and_difference_of_every_way(visits, fitted, tmp_path):
    export(fitted, tmp_path, shared=("device", "age"))
    quantise(tmp_path, visits, tolerance=0.05)
    found = bench(tmp_path, fitted, sizes=(1, 130), repeats=3)
    ways = ["eager", "onnx", "onnx shared", "onnx int8", "onnx shared int8"]
    assert [(one.way, one.candidates) for one in found] == [(way, size) for size in (1, 130) for way in ways]
    for one in found:
        assert 0 < one.p50_ms <= one.p99_ms
        assert one.cpu_ms > 0
        assert one.error < (0.2 if "int8" in one.way else 1e-5)
    assert {one.way: one.error for one in found}["onnx int8"] > 0
    with pytest.raises(ArgumentError, match="sizes: found 3 and"):
        bench(tmp_path, sizes=(0,), repeats=3)


def test_the_measured_ways_take_turns():
    order = []
    take_turns({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 3)
    assert "".join(order) == "ab" * 4


def test_compress_export_quantise_and_bench_on_the_command_line(visits, fitted, tmp_path, capsys):
    from manyheads.recsys.commands import commands

    def command(*arguments):
        status = run_commands("manyheads recsys", "", commands, [*map(str, arguments), "--json"])
        said = capsys.readouterr()
        return status, json.loads(said.out) if said.out else said.err

    model, rows, small, served = (tmp_path / name for name in ("model", "rows.csv", "small", "served"))
    fitted.save(model)
    visits.to_csv(rows, index=False)
    status, found = command(
        "compress", model, "--data", rows, "--rank", 6, "--out", small, "--plot", tmp_path / "r.png", "--repeats", 3
    )
    assert (status, found["chosen"]["rank"]) == (0, 6)
    assert (tmp_path / "r.png").stat().st_size > 5000
    status, found = command("export", small, "--out", served, "--shared", "device", "age")
    assert status == 0
    assert found["parity"] < 1e-5
    assert {NETWORK, FILE, "request.onnx", "encoder.json"} <= found["files"].keys()
    status, found = command("quantise", served, "--data", rows, "--tolerance", 0.05)
    assert (status, found["admitted"]) == (0, True)
    status, found = command(
        "bench", served, "--model", small, "--candidates", 2, "--repeats", 3, "--csv", tmp_path / "b.csv"
    )
    assert status == 0
    assert [row["way"] for row in found["rows"]][:2] == ["eager", "onnx"]
    assert (tmp_path / "b.csv").read_text().startswith("way,candidates,p50_ms,p99_ms,cpu_ms,error")
    status, said = command("compress", model, "--data", rows, "--out", small)
    assert (status, "expected --budget such as 5ms, or --rank" in said) == (2, True)
    status, said = command("export", tmp_path / "none", "--out", served)
    assert (status, "holds no model.safetensors" in said) == (2, True)
    status, said = command("bench", small)
    assert (status, "serving.json: no such file" in said) == (2, True)


def test_the_calibration_of_a_compressed_model_is_kept(fitted):
    small = compress(fitted, 3).model
    assert small.calibration_ == fitted.calibration_
    assert small.config_ == replace(fitted.config_, rank=3)
