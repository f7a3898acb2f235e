"""The command line: help, errors, JSON, training, reports."""

from __future__ import annotations

import csv
import json
import math
import os
import stat
import subprocess
import sys
import warnings

import numpy as np
import pytest

from manyheads.core.errors import ArgumentError, ManyheadsWarning
from manyheads.lab.cli.command import Outcome, run_commands
from manyheads.lab.cli.experiments import overrides_first
from manyheads.lab.cli.main import main
from manyheads.lab.data.fields import plain
from manyheads.lab.data.files import write_atomically
from manyheads.lab.progress import progress
from manyheads.lab.reporting.html import HtmlReport
from manyheads.lab.reporting.tables import table
from manyheads.lab.training.environment import command_line


def run(capsys, *words):
    code = main(list(words))
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_no_arguments_print_the_help_page_on_standard_error_with_status_2(capsys):
    code, out, err = run(capsys)
    assert (code, out) == (2, "")
    assert "commands:" in err


def test_help_lists_every_command_with_status_0(capsys):
    code, out, _ = run(capsys, "--help")
    assert code == 0
    for word in ("list", "doctor", "report", "data", "bench", "forecasting"):
        assert f"\n  {word}" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["lst"], "unknown command 'lst': did you mean 'list'"),
        (["forcasting"], "did you mean 'forecasting'"),
        (["data", "verfy"], "did you mean 'verify'"),
        (["data", "fetch", "ETTh9"], "unknown data set 'ETTh9': did you mean 'ETTh"),
        (["forecasting", "bnch"], "did you mean 'bench'"),
        (["forecasting", "train", "etth1-96-dlinea"], "did you mean 'etth1-96-dlinear'"),
        (["bench", "layers", "--names", "sofmax"], "did you mean 'softmax'"),
        (["chess", "play"], "unknown command 'chess': known: "),
    ],
)
def test_unknown_names_are_one_line_with_the_nearest_known_name(capsys, words, message):
    code, out, err = run(capsys, *words)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data", "fetch"], "names: found none, expected data sets by name"),
        (["list", "--causal", "maybe"], "invalid choice 'maybe' for argument '--causal'. Expected one of"),
        (["forecasting", "fit", "my.csv"], "Missing from manyheads forecasting fit: --horizon INT"),
        (["forecasting", "fit", "my.csv", "--horizn", "3"], "Unrecognized options: --horizn 3"),
        (["forecasting", "bench", "--horizons", "abc"], "Could not find valid parse for arguments: ['abc']"),
        (["forecasting", "train", "etth1-96-dlinear", "model.form=xlinear"], "invalid choice 'xlinear'"),
    ],
)
def test_arguments_that_do_not_parse_are_one_line(capsys, words, message):
    for extra in ([], ["--json"]):
        code, out, err = run(capsys, *words, *extra)
        assert (code, out) == (2, "")
        assert message in err
        assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "usage"),
    [
        (["show"], "LAYER"),
        (["data", "verify"], "[NAMES ...]"),
        (["forecasting", "train"], "EXPERIMENT [OVERRIDES ...]"),
    ],
)
def test_help_shows_positional_arguments_by_name(capsys, words, usage):
    code, out, _ = run(capsys, *words, "--help")
    assert code == 0
    assert usage in out


def test_only_rank_0_prints_and_writes_files(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    train = ["forecasting", "train", "national_illness-24-nlinear", "--smoke", "--root", str(tmp_path), "--json"]
    code, out, _ = run(capsys, *train)
    assert (code, out) == (0, "")
    assert [path.name for path in tmp_path.rglob("*.json")] == []


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        ("/bin/manyheads", "manyheads train x"),
        ("/lib/manyheads/forecasting/__main__.py", "python -m manyheads.forecasting train x"),
        ("/bin/pytest", ""),
    ],
)
def test_a_report_records_the_command_as_typed(monkeypatch, program, expected):
    monkeypatch.setattr(sys, "argv", [program, "train", "x"])
    assert command_line() == expected


def test_json_option_prints_one_document_on_standard_output(capsys):
    for words in (["list"], ["data", "list"], ["forecasting", "list"], ["forecasting", "models"], ["doctor"]):
        code, out, _ = run(capsys, *words, "--json")
        assert code == 0
        json.loads(out)


def test_json_of_list_has_the_documented_keys(capsys):
    _, out, _ = run(capsys, "list", "--causal", "strict", "--streaming", "--grid-rank", "1", "--json")
    rows = json.loads(out)
    assert "softmax" in [row["name"] for row in rows]
    keys = ["name", "title", "arxiv", "causal", "state", "lookahead", "grid_ranks", "cost", "deviations", "package"]
    assert all(list(row) == keys for row in rows)
    _, out, _ = run(capsys, "data", "list", "--json")
    assert {"name", "domain", "licence", "bytes", "sha256", "available", "sources"} <= set(json.loads(out)[0])


def test_bench_layers_reports_cost_for_every_length(capsys):
    code, out, err = run(capsys, "bench", "layers", "--names", "softmax", "--lengths", "32", "64", "--json")
    rows = json.loads(out)
    assert code == 0
    assert [row["length"] for row in rows[:2]] == [32, 64]
    assert rows[0]["slope"] is None
    for row in rows:
        assert row["forward_cpu_s"] > 0
        assert row["peak_bytes"] > 0
    assert rows[1]["flops"] > 2 * rows[0]["flops"]
    assert "softmax" in err


def test_verify_exits_with_2_if_a_data_set_is_damaged(capsys, tmp_path, monkeypatch):
    (tmp_path / "ltsf").mkdir()
    (tmp_path / "ltsf/ETTh1.csv").write_text("date,OT\n")
    monkeypatch.setenv("MANYHEADS_DATA", str(tmp_path))
    code, out, err = run(capsys, "data", "verify", "ETTh1")
    assert (code, out) == (2, "")
    assert "ETTh1.csv is not the published ETTh1" in err
    assert run(capsys, "data", "verify", "ETTh2")[:2] == (0, "ETTh2: ok\n")
    _, out, _ = run(capsys, "doctor", "--json")
    document = json.loads(out)
    assert document["data"]["ETTh1"] == "damaged"
    assert any("ETTh1.csv" in problem for problem in document["problems"])


def test_fetch_with_out_writes_a_copy(capsys, tmp_path):
    code, out, _ = run(capsys, "data", "fetch", "national_illness", "--out", str(tmp_path))
    assert (code, out) == (0, f"national_illness: {tmp_path / 'national_illness.csv'}\n")
    assert (tmp_path / "national_illness.csv").read_text().startswith("date,")


def test_doctor_reports_a_data_folder_that_does_not_exist(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("MANYHEADS_DATA", str(tmp_path / "none"))
    assert "which is no folder: point it at your data" in run(capsys, "doctor")[1]


def test_version_option_prints_the_version_of_the_core(capsys):
    code, out, _ = run(capsys, "--version")
    assert code == 0
    assert out.strip().count(".") == 2


def test_train_applies_overrides_and_report_shows_the_run(capsys, tmp_path):
    words = [
        "forecasting",
        "train",
        "national_illness-24-nlinear",
        "--root",
        str(tmp_path),
        "--smoke",
        "--seeds",
        "1",
        "2",
    ]
    code, out, err = run(capsys, *words, "--model.form", "linear", "budget.batch_size=16", "--json")
    report = json.loads(out)
    assert code == 0
    assert report["seeds"] == [1, 2]
    assert report["source"] is None
    assert report["sd"]["mse"] > 0
    folder = tmp_path / "national_illness-24-nlinear-smoke" / report["hash"]
    assert json.loads((folder / "report.json").read_text()).items() >= report.items()
    stored = json.loads((folder / "experiment.json").read_text())
    assert (stored["model"]["form"], stored["budget"]["batch_size"]) == ("linear", 16)
    assert "epoch 1" in err
    code, out, _ = run(capsys, "report", "--root", str(tmp_path), "--html", str(tmp_path / "board.html"))
    assert code == 0
    assert "national_illness-24-nlinear-smoke" in out
    assert "national_illness-24-nlinear-smoke" in (tmp_path / "board.html").read_text()
    run(capsys, "report", "--root", str(tmp_path), "--csv", str(tmp_path / "board.csv"))
    rows = list(csv.DictReader((tmp_path / "board.csv").open()))
    assert [row["metric"] for row in rows] == ["mse", "mae", "windows"]
    assert len(rows[0]["values"].split()) == 2


def test_overrides_in_any_form_are_normalised_and_moved_before_the_options():
    words = [
        "train",
        "x",
        "--seeds",
        "1",
        "2",
        "--model.kernel-size",
        "25",
        "--budget.batch-size=8",
        "model.form=linear",
    ]
    expected = ["train", "x", "model.kernel_size=25", "budget.batch_size=8", "model.form=linear", "--seeds", "1", "2"]
    assert overrides_first(words) == expected
    flags = ["train", "x", "--model.no-bias", "--smoke", "--model.norm", "--seeds", "1", "--model.gate"]
    assert overrides_first(flags) == [
        *("train", "x", "model.bias=False", "model.norm=True", "model.gate=True", "--smoke", "--seeds", "1")
    ]
    untouched = ["fit", "data.csv", "--time", "model", "--out", "model.safetensors", "--look-back=3"]
    assert overrides_first(untouched) == untouched


def test_help_loads_neither_torch_nor_matplotlib():
    code = (
        "import sys; from manyheads.lab.cli.main import main; assert main(['--help']) == 0; "
        "assert main(['forecasting', '--help']) == 0; "
        "print([m for m in ('torch', 'numpy', 'pandas', 'scipy', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = done.stdout.strip().split("\n")[-1]
    assert "torch" not in loaded
    assert "matplotlib" not in loaded
    for module in ("manyheads.lab", "manyheads.forecasting"):
        done = subprocess.run([sys.executable, "-m", module, "--help"], capture_output=True, text=True, check=True)
        assert "COMMAND" in done.stdout


def failing(error):
    def command() -> Outcome:
        """Raise the error."""
        raise error

    return {"fail": command}


def test_an_error_is_one_line(capsys):
    assert run_commands("x", "", failing(ArgumentError("one\n   two")), ["fail"]) == 2
    assert capsys.readouterr().err == "error: one two\n"


def test_debug_raises_the_error():
    with pytest.raises(ArgumentError):
        run_commands("x", "", failing(ArgumentError("one")), ["fail", "--debug"])


def test_an_unwritable_file_is_one_line(capsys):
    denied = PermissionError(13, "Permission denied", "/there")
    assert run_commands("x", "", failing(denied), ["fail"]) == 2
    assert capsys.readouterr().err == "error: /there: Permission denied\n"


def test_an_interrupt_exits_with_130():
    assert run_commands("x", "", failing(KeyboardInterrupt()), ["fail"]) == 130


def test_plain_converts_values_to_json_types():
    value = {1: (np.float64(math.nan), np.int64(3)), "a": np.array([1.5, math.inf]), "b": {"x"}}
    assert plain(value) == {"1": [None, 3], "a": [1.5, None], "b": ["x"]}


def test_an_html_page_escapes_all_text(tmp_path):
    page = HtmlReport("<b>", "a & b")
    page.section("<script>")
    page.table(("x", "y"), [("<i>", "1.5"), ("t", "2.0 ± 0.1")], best={(0, 1)})
    page.code("a < b")
    text = page.write(tmp_path / "deep" / "p.html").read_text()
    for raw in ("<script>", "<i>", "<b>"):
        assert raw not in text
    assert '<td class="number best">1.5</td>' in text
    assert '<td class="number">2.0 ± 0.1</td>' in text


def test_columns_of_numbers_are_right_aligned():
    made = table(("name", "value"), [("a", "1.5"), ("b", 2)])
    assert [column.justify for column in made.columns] == ["left", "right"]


def test_progress_goes_to_standard_error(capsys):
    with progress("doing", 2) as advance:
        advance("one")
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "doing: one\n")


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "new" / "f"
    write_atomically(path, b"old")
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~_umask()

    def broken(source, target):
        raise OSError("no space")

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(OSError, match="no space"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in path.parent.iterdir()] == ["f"]


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_warnings_are_one_line_on_standard_error_without_a_path(capsys):
    def command() -> Outcome:
        """Warn twice."""
        warnings.warn(ManyheadsWarning("the table:\nnot used: price"), stacklevel=1)
        warnings.warn("of another library", UserWarning, stacklevel=1)
        return Outcome({}, "done")

    assert run_commands("toy", "Toy.", {"command": command}, ["command"]) == 0
    printed = capsys.readouterr()
    assert printed.out == "done\n"
    assert printed.err == "warning: the table: not used: price\nwarning: of another library\n"
