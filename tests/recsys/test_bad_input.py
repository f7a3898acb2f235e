"""Bad input on the command line: one line with found and expected value, never a score."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from manyheads.lab.cli.command import run_commands
from manyheads.recsys.commands import commands
from manyheads.recsys.training.recommender import Recommender


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(2)
    count = 240
    columns = {"kind": rng.choice(list("abc"), count), "item_id": rng.integers(0, 9, count)}
    columns |= {
        "price": rng.normal(size=count),
        "at": pd.Timestamp("2026-01-01") + pd.to_timedelta(np.arange(count), "h"),
    }
    return pd.DataFrame({**columns, "clicked": rng.integers(0, 2, count)})


@pytest.fixture(scope="module")
def saved(rows, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    Recommender("vanilla", label="clicked", epochs=1, settings={"dim": 4}).fit(rows).save(folder / "model")
    return folder / "model"


@pytest.fixture
def said(tmp_path, capsys, monkeypatch):
    """Run a command that must fail; return its one line."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        capsys.readouterr()
        assert run_commands("manyheads recsys", "", commands, [str(a) for a in arguments]) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        lines = [line for line in printed.err.splitlines() if not line.startswith("permuting: ")]
        assert len(lines) == 1, lines
        assert lines[0].startswith("error: ")
        return lines[0]

    return run


def change(frame, column, value, row=3):
    changed = frame.astype({column: object})
    changed.loc[row, column] = value
    return changed


FIT = {
    "a label that is not there": (lambda f: f.drop(columns="clicked"), "column 'clicked' is missing; found kind"),
    "an all-missing column": (lambda f: f.assign(kind=None), "column 'kind': every value is missing, expected some"),
    "marks only": (lambda f: f.assign(kind="?"), "column 'kind': every value is missing, expected some"),
    "a label of three values": (
        lambda f: f.assign(clicked=f["item_id"] % 3),
        "label 'clicked': found 3 values (0, 1, 2)",
    ),
    "a label that is a measure": (lambda f: f.assign(clicked=f["price"]), "continuous values"),
    "one class": (lambda f: f.assign(clicked=1), "label 'clicked': found one class only (1), expected two"),
    "no label at all": (lambda f: f.assign(clicked=None), "label 'clicked': every value is missing, expected two"),
    "a label with a gap": (lambda f: change(f, "clicked", None), "label 'clicked', row 3: found no value"),
    "an empty table": (lambda f: f.iloc[:0], "found no rows, expected at least one"),
    "an infinity": (lambda f: change(f, "price", np.inf), "column 'price', row 3: found inf, expected a finite number"),
    "a negative infinity": (
        lambda f: change(f, "price", -np.inf),
        "column 'price', row 3: found -inf, expected a finite number",
    ),
    "no feature": (lambda f: f[["clicked"]], "found no column besides the label"),
    "one row": (lambda f: f.iloc[:1], "table: found 1 rows, too few for a split"),
}


@pytest.mark.parametrize("case", FIT)
def test_fit_refuses_bad_tables(case, rows, said):
    make, says = FIT[case]
    make(rows).to_csv("rows.csv", index=False)
    assert says in said("fit", "rows.csv", "--label", "clicked", "--epochs", 1)


SETTINGS = {
    "no epoch": (("--epochs", 0), "epochs: found 0, expected 1 or more"),
    "no row a step": (("--batch-size", 0), "batch_size: found 0, expected 1 or more"),
    "a negative penalty": (("--l2", -1), "l2: found -1.0, expected 0 or more"),
    "a negative seed": (("--seed", -1), "seed: found -1, expected 0 or more"),
    "an option twice": (("--label", "kind"), "--label: found twice, expected once, with all of its values behind it"),
    "a spec and columns to ignore": (("--spec", "spec.json", "--ignore", "at"), "ignore: found at beside a spec"),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_fit_refuses_bad_settings(case, rows, said):
    words, says = SETTINGS[case]
    rows.to_csv("rows.csv", index=False)
    assert says in said("fit", "rows.csv", "--label", "clicked", *words)


def test_a_file_of_the_user_is_not_overwritten(rows, saved, said, tmp_path):
    rows.to_csv("rows.csv", index=False)
    (tmp_path / "spec.json").write_text("{}")
    assert "out: spec.json is there already" in said("spec", "rows.csv", "--label", "clicked")
    assert "out: found the data itself" in said("predict", saved, "--data", "rows.csv", "--out", "./rows.csv")
    assert (tmp_path / "spec.json").read_text() == "{}"


PREDICT = {
    "a missing column": (lambda f: f.drop(columns="price"), "column 'price' is missing; found kind"),
    "an empty table": (lambda f: f.iloc[:0], "found no rows"),
    "an infinity": (lambda f: change(f, "price", np.inf), "column 'price', row 3: found inf"),
    "a missing number": (lambda f: change(f, "price", None), "column 'price', row 3: found a missing number"),
    "an all-missing number": (lambda f: f.assign(price=None), "column 'price', row 0: found a missing number"),
    "text for a number": (lambda f: change(f, "price", "dear"), "column 'price': found text"),
    "text for an id": (lambda f: f.assign(item_id="x" + f["item_id"].astype(str)), "column 'item_id': found text ('x"),
    "numbers for text": (lambda f: f.assign(kind=f["item_id"]), "column 'kind': found integer"),
    "a fraction for an id": (
        lambda f: change(f, "item_id", 2.5),
        "column 'item_id', row 3: found 2.5, expected a whole number",
    ),
    "text for a time": (lambda f: change(f, "at", "soon"), "column 'at', row 3: found text ('soon'), expected a time"),
    "its own output": (lambda f: f.assign(**{"p(clicked=1)": 0.5}), "column 'p(clicked=1)' is there already"),
}


@pytest.mark.parametrize("case", PREDICT)
def test_predict_refuses_bad_tables(case, rows, saved, said):
    make, says = PREDICT[case]
    make(rows).to_csv("rows.csv", index=False)
    assert says in said("predict", saved, "--data", "rows.csv", "--out", "scored.csv")


@pytest.mark.parametrize("case", [c for c in PREDICT if c != "its own output"])
def test_explain_refuses_the_same_tables_as_predict(case, rows, saved, said):
    make, says = PREDICT[case]
    make(rows).to_csv("rows.csv", index=False)
    assert says in said("explain", saved, "--data", "rows.csv", "--out", "map.html")


def test_an_all_missing_text_column_and_unseen_ids_are_scored_and_counted(rows, saved, tmp_path, capsys):
    rows.assign(kind=None, item_id=rows["item_id"] + 1000).to_csv(tmp_path / "rows.csv", index=False)
    arguments = ["predict", str(saved), "--data", str(tmp_path / "rows.csv"), "--json"]
    assert run_commands("manyheads recsys", "", commands, arguments) == 0
    found = json.loads(capsys.readouterr().out)
    assert np.isfinite(found["probabilities"]["p(clicked=1)"]).all()
    counts = {entry["field"]: entry for entry in found["counts"]}
    assert counts["kind"]["missing"] == 240
    assert counts["item_id"]["unseen"] == 240


FILES = {
    "rows.txt": (b"a,b\n1,2\n", "found .txt, expected one of .csv"),
    "empty.csv": (b"", "empty.csv: cannot be read as a table"),
    "binary.csv": (bytes(range(256)) * 20, "binary.csv: cannot be read as a table"),
    "broken.parquet": (b"PAR1 not really PAR1", "broken.parquet: cannot be read as a table"),
    "broken.csv.gz": (b"\x1f\x8bnot gzip", "broken.csv.gz is truncated or damaged"),
    "twice.csv": (b"a,b,a\n1,2,3\n", "twice.csv: column 'a' is there twice, expected once"),
    "ragged.csv": (b"a,b\n1,2\n1,2,3,4\n", "ragged.csv: cannot be read as a table"),
}


@pytest.mark.parametrize("name", FILES)
def test_unreadable_table_files_are_refused(name, said, tmp_path):
    content, says = FILES[name]
    (tmp_path / name).write_bytes(content)
    assert says in said("fit", name, "--label", "clicked")


def damaged(saved, folder, name, content):
    shutil.copytree(saved, folder)
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content(folder / name) if callable(content) else content)
    return folder


def foreign(path):
    save_file({"weight": torch.zeros(2)}, path)
    return path.read_bytes()


def without_learned(path):
    header = json.loads(path.read_text())
    header["learned"] = {}
    return json.dumps(header).encode()


def without_types(path):
    header = json.loads(path.read_text())
    header["spec"] = {"format": 1, "fields": [{"name": "kind"}]}
    return json.dumps(header).encode()


OTHER = "not a file of this model (the model was saved with another)"
BROKEN = {
    "no weights": ("model.safetensors", None, "holds no model.safetensors: fit or train one first"),
    "half of the weights": (
        "model.safetensors",
        lambda p: p.read_bytes()[:200],
        "model.safetensors: damaged, or not a model",
    ),
    "weights of another package": ("model.safetensors", foreign, "model.safetensors: damaged, or not a model"),
    "no encoder": ("encoder.json", None, "encoder.json: no such file"),
    "an encoder that is no JSON": ("encoder.json", b"{", f"encoder.json: damaged, or {OTHER}"),
    "an encoder of another kind": ("encoder.json", b"[1, 2]", f"encoder.json: damaged, or {OTHER}"),
    "an encoder that learned nothing": (
        "encoder.json",
        without_learned,
        f"encoder.json: damaged, or {OTHER}",
    ),
    "a spec without types": ("encoder.json", without_types, f"encoder.json: damaged, or {OTHER}"),
    "no vocabularies": ("encoder.safetensors", None, "encoder.safetensors: no such file"),
    "vocabularies of another": ("encoder.safetensors", foreign, f"encoder.safetensors: damaged, or {OTHER}"),
    "no labels": ("labels.json", None, "labels.json: no such file"),
    "labels that are no JSON": ("labels.json", b"]", f"labels.json: damaged, or {OTHER}"),
    "labels of another kind": ("labels.json", b"[]", f"labels.json: damaged, or {OTHER}"),
}


@pytest.mark.parametrize("command", ["predict", "explain"])
@pytest.mark.parametrize("case", BROKEN)
def test_damaged_model_folders_are_refused(case, command, rows, saved, said, tmp_path):
    name, content, says = BROKEN[case]
    folder = damaged(saved, tmp_path / "model", name, content)
    rows.to_csv("rows.csv", index=False)
    assert says in said(command, folder, "--data", "rows.csv")


@pytest.mark.parametrize("command", ["predict", "explain"])
def test_folders_without_a_model_are_refused(command, rows, saved, said, tmp_path):
    rows.to_csv("rows.csv", index=False)
    assert "holds no model.safetensors" in said(command, "rows.csv", "--data", "rows.csv")  # a file
    assert "holds no model.safetensors" in said(command, tmp_path, "--data", "rows.csv")
    # weights of one model beside the encoder of another
    other = tmp_path / "other"
    Recommender("lr", label="clicked", epochs=1).fit(rows.assign(kind=rows["kind"] + "x", more="y")).save(other)
    shutil.copy(saved / "model.safetensors", other / "model.safetensors")
    assert f"encoder.json: damaged, or {OTHER}" in said(command, other, "--data", "rows.csv")
    # a run of another domain
    from manyheads.lab.data.storage import save_model

    kws = tmp_path / "kws"
    kws.mkdir()
    save_model(kws, {"w": torch.zeros(1)}, {"experiment": {"model": {"type": "x.Y"}}, "seed": 1})
    assert "encoder.json: no such file" in said(command, kws, "--data", "rows.csv")
