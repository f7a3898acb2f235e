"""The exported folder against network and encoder; shared fields; bad folders and rows."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from manyheads.core.errors import ArgumentError, CheckpointError, DataError, MissingPackageError, UnknownNameError
from manyheads.recsys.features.encoder import Encoder
from manyheads.recsys.features.spec import infer_spec
from manyheads.recsys.models import MODELS, config_of
from tests.recsys.served import shop_model, shop_visits
from tests.recsys.test_models import batch, lively, small

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from manyheads.recsys.serving.export import SAMPLES, columns, export, graphs
from manyheads.recsys.serving.form import ServedTransformer
from manyheads.recsys.serving.ranker import Ranker, read_about, write_about
from manyheads.recsys.serving.rows import encode_rows

TRANSFORMERS = ["vanilla", "heterogeneous", "hiformer", "hiformer-lowrank+"]
USER = ("device", "at", "age")


def run(content: bytes, **fed: torch.Tensor) -> list[np.ndarray]:
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    taken = {put.name for put in session.get_inputs()}
    return session.run(None, {name: value.numpy() for name, value in fed.items() if name in taken})


def close(found, expected, bound=1e-5):
    scale = np.maximum(1.0, np.abs(expected))
    assert (np.abs(found - expected) / scale).max() < bound


@pytest.mark.parametrize("name", MODELS)
def test_every_exported_model_gives_the_logits_of_torch_at_any_batch_size(name):
    layout = small(2)
    torch.manual_seed(2)
    network = config_of(name, {"init_sd": 0.5}).make(layout)
    for module in network.modules():  # batch norms that do something
        if isinstance(module, torch.nn.BatchNorm1d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
    content = graphs(network, layout).files["network.onnx"]
    assert not network.training
    for rows in (1, 4, 33):
        ids, numbers = batch(layout, rows)
        expected = network(ids, numbers).detach().numpy()
        close(run(content, ids=ids, numbers=numbers)[0], expected)
        assert rows == 1 or expected.std() > 1e-3


@pytest.mark.parametrize("shared", [("a",), ("b", "tags", "c", "x"), ("x", "y"), ("a", "b", "c", "x", "y")])
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_shared_fields_computed_once_give_the_same_logits(name, shared):
    """The serving form in torch and in ONNX, against the network on repeated rows."""
    layout = small(2)
    network = lively(config_of(name).make(layout)).eval()
    ids, numbers = batch(layout, 21)
    form = ServedTransformer(network, layout, shared).eval()
    picked, numeric = columns(layout, form.shared), list(form.shared.numeric)
    assert len(form.shared.names) + len(numeric) == len(shared)
    ids[:, picked], numbers[:, numeric] = ids[:1, picked], numbers[:1, numeric]
    own, own_numeric = columns(layout, form.own), list(form.own.numeric)
    given, rest = (ids[:1, picked], numbers[:1, numeric]), (ids[:, own], numbers[:, own_numeric])
    expected = network(ids, numbers).detach().numpy()
    assert expected.std() > 1e-3
    close(form(*given, *rest).detach().numpy(), expected)
    if len(shared) != 4:  # the splits that differ most in their graphs
        return
    files = graphs(network, layout, shared).files
    state = run(files["request.onnx"], ids=given[0], numbers=given[1])
    fed = {f"state_{n}": torch.from_numpy(part) for n, part in enumerate(state)}
    close(run(files["candidates.onnx"], ids=rest[0], numbers=rest[1], **fed)[0], expected)


@pytest.mark.parametrize("settings", [{"positions": True}, {"head": "flatten"}, {"prune": False}, {"layers": 1}])
@pytest.mark.parametrize("name", ["vanilla", "heterogeneous", "hiformer"])
def test_every_setting_of_a_transformer_is_served(name, settings):
    layout = small()
    network = lively(config_of(name, settings).make(layout)).eval()
    ids, numbers = batch(layout, 9)
    ids[:, 1:5], numbers[:, :1] = ids[:1, 1:5], numbers[:1, :1]  # b and tags, x
    form = ServedTransformer(network, layout, ("b", "tags", "x"))
    found = form(ids[:1, 1:5], numbers[:1, :1], ids[:, [0, 5]], numbers[:, 1:])
    close(found.detach().numpy(), network(ids, numbers).detach().numpy())


def test_another_request_gives_other_logits():
    """Negative control of the shared fields."""
    layout = small()
    network = lively(config_of("hiformer").make(layout)).eval()
    form = ServedTransformer(network, layout, ("b", "tags", "c"))
    ids, numbers = batch(layout, 9)
    rest = ids[:, :1], numbers
    first, second = (form(ids[n : n + 1, 1:], numbers[:1, :0], *rest) for n in (0, 1))
    assert (first - second).abs().max() > 1e-2


def test_mixed_numeric_fields_are_shared_all_together_or_not_at_all():
    layout = small()
    network = lively(config_of("hiformer", {"numeric_tokens": 2}).make(layout)).eval()
    assert ServedTransformer(network, layout, ("a", "x")).shared.numeric == ()
    form = ServedTransformer(network, layout, ("a", "x", "y"))
    assert form.shared.numeric == (0, 1)
    ids, numbers = batch(layout, 9)
    ids[:, :1], numbers[:] = ids[:1, :1], numbers[:1]
    found = form(ids[:1, :1], numbers[:1], ids[:, 1:], numbers[:, :0])
    close(found.detach().numpy(), network(ids, numbers).detach().numpy())


@pytest.fixture(scope="module")
def visits():
    return shop_visits()


@pytest.fixture(scope="module")
def fitted():
    return shop_model()


@pytest.fixture(scope="module")
def served(fitted, tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    assert export(fitted, folder, shared=USER).parity < 1e-5
    return folder


def plain(frame):
    """Return rows as they come from JSON."""
    return json.loads(frame.to_json(orient="records", date_format="iso"))


def test_raw_rows_have_the_probabilities_of_the_recommender(visits, fitted, served):
    ranker = Ranker.load(served)
    rows = visits.drop(columns="bought")
    expected = fitted.predict_proba(rows)
    np.testing.assert_allclose(ranker.predict_proba(rows), expected, atol=1e-5)
    np.testing.assert_allclose(ranker.predict_proba(plain(rows)), expected, atol=1e-5)
    assert len(rows) > max(SAMPLES)


def test_candidates_of_a_request_score_like_whole_rows(visits, fitted, served):
    ranker = Ranker.load(served)
    rows = visits.drop(columns="bought").iloc[:150].copy()
    for name in USER:
        rows[name] = rows[name].iloc[0]
    request, candidates = plain(rows)[0], rows.drop(columns=list(USER))
    given = {name: request[name] for name in USER}
    expected = fitted.predict_proba(rows)[:, 1]
    for form in (candidates, plain(candidates)):
        np.testing.assert_allclose(ranker.score(given, form).probabilities[:, 0], expected, atol=1e-5)
    # any other division is scored as well, without the graphs
    other = plain(rows[["device", "age"]])[0]
    found = ranker.score(other, rows.drop(columns=["device", "age"])).probabilities[:, 0]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_unseen_and_missing_values_are_scored_and_counted(visits, fitted, served):
    ranker = Ranker.load(served)
    rows = visits.drop(columns="bought").iloc[:3].assign(device=["watch", "phone", None], item_id=[1, 2, 1001])
    found = ranker.score_rows(plain(rows))
    counts = fitted.unseen(rows).set_index("field")
    assert found.unseen == {k: v for k, v in counts["unseen"].items() if k in found.unseen}
    assert found.missing == counts["missing"].to_dict()
    assert (found.unseen["device"], found.unseen["item_id"], found.missing["device"]) == (1, 2, 1)
    np.testing.assert_allclose(found.probabilities[:, 0], fitted.predict_proba(rows)[:, 1], atol=1e-5)


def test_serving_needs_no_torch(served):
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from manyheads.recsys.serving import Ranker\n"
        f"ranker = Ranker.load({str(served)!r})\n"
        "row = {'device': 'phone', 'item_id': 1003, 'price': None, 'tags': 'new|red', 'at': '2026-02-01', 'age': 3.5}\n"
        "print(ranker.score_rows([row]).probabilities.shape)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "(1, 1)", done.stderr


def kinds(rows=60):
    rng = np.random.default_rng(4)
    tags = np.empty(rows, object)
    tags[:] = [list(rng.choice(["a", "b", "c"], rng.integers(0, 3))) for _ in range(rows)]
    return pd.DataFrame(
        {
            "text": rng.choice(["x", "y", "", "?", "zé"], rows),
            "whole_id": rng.integers(-5, 5, rows),
            "share_id": rng.choice([0.1, 2.5, 1e20, -3.0], rows),
            "flag": rng.random(rows) < 0.5,
            "tags": tags,
            "words": rng.choice(["p|q", "q | r", "", "p"], rows),
            "big": np.exp(rng.normal(0, 3, rows)),
            "gaps": np.where(rng.random(rows) < 0.3, np.nan, rng.normal(size=rows)),
            "time": pd.Timestamp("2026-03-01") + pd.to_timedelta(rng.integers(0, 9**6, rows), unit="min"),
        }
    )


@pytest.mark.parametrize("hashed", [False, True])
def test_rows_are_encoded_like_a_table_of_them(hashed):
    frame = kinds()
    spec = infer_spec(frame, min_count=4)
    kind = {"share_id": "categorical", "big": "numeric"}
    spec = replace(
        spec,
        fields=tuple(
            replace(
                one,
                kind=kind.get(one.name, one.kind),
                buckets=7 if hashed and kind.get(one.name, one.kind) in ("categorical", "multi") else None,
            )
            for one in spec.fields
        ),
    )
    assert {one.kind for one in spec.fields} == {"categorical", "multi", "numeric", "time"}
    encoder = Encoder.fit(frame.iloc[:40], spec)
    expected = encoder.arrays(frame)
    rows = [
        {k: None if isinstance(v, float) and np.isnan(v) else v for k, v in row.items()}
        for row in frame.to_dict("records")
    ]
    for given in (rows, plain(frame)):
        found = encode_rows(encoder, given)
        np.testing.assert_array_equal(found.ids, expected.ids)
        np.testing.assert_allclose(found.numbers, expected.numbers, rtol=1e-6)
        assert (found.unseen, found.missing) == (expected.unseen, expected.missing)
    assert hashed or sum(expected.unseen.values()) > 0


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"age": "old"}, r"row 1, field 'age': found text \('old'\), expected a finite number"),
        ({"age": float("nan")}, "field 'age': found a missing number, expected none as at fitting"),
        ({"age": float("inf")}, "expected a finite number"),
        ({"age": 10**400}, "field 'age': found a whole number of 1329 bits, expected a finite number"),
        ({"age": None}, "field 'age': found a missing number, expected none as at fitting"),
        ({"item_id": 2.5}, "field 'item_id': found 2.5, expected a whole number"),
        ({"item_id": 2**128}, "field 'item_id': found 3402.*, expected a whole number"),
        ({"device": 3}, "field 'device': found 3, expected text"),
        ({"device": ["phone"]}, "field 'device': found a list"),
        ({"tags": {"a": 1}}, "field 'tags': found dict"),
        ({"at": "soon"}, "row 1, field 'at': found text .*expected a time"),
        ({"at": "today"}, "row 1, field 'at': found text .*expected a time"),
        ({"at": "now"}, "row 1, field 'at': found text .*expected a time"),
        ({"at": "0001-01-01"}, "field 'at': found text .*, expected a time"),
        ({"at": 9e15}, "field 'at': found 9000000000000000.0, expected seconds since 1970"),
        ({"at": 1.7e12}, "field 'at': found 1700000000000.0, which is in milliseconds, expected seconds since 1970"),
        ({"age": 1e300}, "row 1, field 'age': found 1e.300, expected a number near those that were fitted"),
        ({"at": True}, "field 'at': found a boolean"),
    ],
)
def test_rows_of_another_kind_than_at_fitting_are_refused(served, visits, change, says):
    ranker = Ranker.load(served)
    rows = plain(visits.drop(columns="bought").iloc[:2])
    rows[1] |= change
    with pytest.raises(DataError, match=says):
        ranker.score_rows(rows)


def test_keys_that_are_no_columns_of_the_model_are_ignored(served, visits):
    """The same as for a table with more columns: both use one encoder."""
    ranker = Ranker.load(served)
    rows = plain(visits.drop(columns="bought").iloc[:3])
    expected = ranker.score_rows(rows).probabilities
    more = [{**row, "devise": number, "note": {"free": [None]}} for number, row in enumerate(rows)]
    np.testing.assert_array_equal(ranker.score_rows(more).probabilities, expected)
    request = {"session": "x", "device": rows[0]["device"]}
    candidates = [{k: v for k, v in row.items() if k != "device"} for row in more]
    whole = [{**row, "device": rows[0]["device"]} for row in rows]
    found = ranker.score(request, candidates).probabilities
    np.testing.assert_allclose(found, ranker.score_rows(whole).probabilities, atol=1e-6)


@pytest.mark.parametrize("name", ["device", "item_id", "price", "tags", "at", "age"])
def test_any_value_is_scored_or_refused_with_a_message(served, visits, name):
    """No other error is raised, and every score is finite."""
    ranker = Ranker.load(served)
    rows = plain(visits.drop(columns="bought").iloc[:2])
    odd = [
        0,
        -1,
        2.5,
        1e17,
        -1e300,
        10**30,
        True,
        None,
        "",
        "nan",
        "a|b|||",
        "2026-13-45",
        "99999-01-01",
        "\0",
        "\ud800",
    ]
    odd += [[], [1], [[]], {}, float("inf")]
    scored = 0
    for value in odd:
        try:
            found = ranker.score_rows([rows[1], {**rows[0], name: value}])
        except (DataError, UnknownNameError):
            continue
        assert np.isfinite(found.probabilities).all()
        scored += 1
    assert scored >= 1


def test_a_missing_field_and_no_rows_are_refused(served, visits):
    ranker = Ranker.load(served)
    row = plain(visits.drop(columns="bought").iloc[:1])[0]
    with pytest.raises(DataError, match="row 0: field 'age' is missing, expected a value, or null"):
        ranker.score_rows([{k: v for k, v in row.items() if k != "age"}])
    with pytest.raises(DataError, match="rows: found none"):
        ranker.score_rows([])
    with pytest.raises(DataError, match="row 0: found text, expected an object"):
        ranker.score_rows(["phone"])
    with pytest.raises(DataError, match="column 'age': found in the request and in the candidates"):
        ranker.score({"age": 3.0}, [row])
    with pytest.raises(DataError, match="candidate 1: field 'device' is missing"):
        ranker.score({"age": 3.0}, [{k: v for k, v in row.items() if k != "age"}, {"item_id": 3}])
    with pytest.raises(DataError, match="column 'age': found in the request and in the candidates"):
        ranker.score({"age": 3.0}, [{k: v for k, v in row.items() if k != "age"}, row])
    with pytest.raises(DataError, match="request: found every column"):
        ranker.score(row, [{}])


def test_bad_shared_columns_and_folders_are_refused(fitted, served, tmp_path, monkeypatch):
    import importlib.util

    with pytest.raises(UnknownNameError, match="unknown shared column 'devise': did you mean 'device'"):
        export(fitted, tmp_path, shared=("devise",))
    with pytest.raises(ArgumentError, match="shared: found every column"):
        export(fitted, tmp_path, shared=("device", "item_id", "price", "tags", "at", "age"))
    with pytest.raises(CheckpointError, match="no such file"):
        Ranker.load(tmp_path)
    for name in served.iterdir():
        (tmp_path / name.name).write_bytes(name.read_bytes())
    about = read_about(tmp_path)
    write_about(tmp_path, {**about, "format": 99})
    with pytest.raises(CheckpointError, match="found format 99, this version reads 1"):
        Ranker.load(tmp_path)
    write_about(tmp_path, about)
    (tmp_path / "network.onnx").write_text("nothing")
    with pytest.raises(CheckpointError, match=r"network\.onnx: damaged"):
        Ranker.load(tmp_path)
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if "onnx" in name else found(name, *a))
    with pytest.raises(MissingPackageError, match=r"pip install .*recsys\[onnx\]"):
        export(fitted, tmp_path)
    with pytest.raises(MissingPackageError, match=r"pip install .*recsys\[onnx\]"):
        Ranker.load(served)


def test_a_new_export_removes_the_files_of_the_previous_one(fitted, tmp_path):
    export(fitted, tmp_path, shared=USER)
    assert (tmp_path / "request.onnx").exists()
    export(fitted, tmp_path)
    assert not (tmp_path / "request.onnx").exists()
    assert Ranker.load(tmp_path).request is None
