"""Installation hints for missing packages; errors and width of the output."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
import tomllib
from importlib.metadata import distribution
from pathlib import Path

import pytest

from manyheads.core.errors import MissingPackageError
from manyheads.lab import install
from manyheads.lab.cli.command import Outcome, run_commands
from manyheads.lab.install import folder_of, install_command, need_package
from manyheads.lab.reporting.tables import table

ROOT = Path(__file__).parents[2]


class _Distribution:
    def __init__(self, url: str | None):
        self.url = url

    def read_text(self, name: str) -> str | None:
        assert name == "direct_url.json"
        return None if self.url is None else json.dumps({"url": self.url, "dir_info": {"editable": True}})


@pytest.fixture
def installed_from(monkeypatch):
    return lambda url: monkeypatch.setattr(install, "distribution", lambda name: _Distribution(url))


def test_folder_of_gives_the_folder_of_every_distribution():
    for file in (ROOT / "shared/pyproject.toml", *ROOT.glob("packages/*/pyproject.toml")):
        name = tomllib.loads(file.read_text())["project"]["name"]
        assert folder_of(name) == str(file.parent.relative_to(ROOT))


def test_the_command_names_the_clone_that_the_core_was_installed_from(installed_from, monkeypatch, tmp_path):
    installed_from(f"file://{ROOT}/shared")
    monkeypatch.chdir(tmp_path)
    command = f"pip install -c {ROOT}/constraints.txt '{ROOT}/shared[lab]' '{ROOT}/packages/kws[onnx]'"
    assert install_command("manyheads-kws", "onnx") == command
    monkeypatch.chdir(ROOT)
    assert install_command("manyheads-recsys") == "pip install -c constraints.txt './shared[lab]' ./packages/recsys"
    assert install_command("manyheads-core") == "pip install -c constraints.txt './shared[lab]'"
    assert (
        install_command("manyheads-core", "tensorboard") == "pip install -c constraints.txt './shared[lab,tensorboard]'"
    )


@pytest.mark.parametrize("url", [None, "file:///nowhere/shared", "https://example.org/manyheads_core-0.1.0.whl"])
def test_without_a_clone_the_command_equals_that_of_the_readme(installed_from, url):
    installed_from(url)
    command = install_command("manyheads-forecasting")
    assert command in (ROOT / "README.md").read_text()
    assert command.startswith('pip install "manyheads-core[lab] @ git+https://')


def test_the_clone_is_read_from_the_record_of_pip():
    source = distribution("manyheads-core").read_text("direct_url.json")
    assert (install._clone() is not None) == bool(source and Path(json.loads(source)["url"][7:]).is_dir())


def test_a_missing_library_is_named_with_its_extra(installed_from):
    installed_from(None)
    need_package("json", "manyheads-kws", "onnx")
    with pytest.raises(
        MissingPackageError, match=r"^f\.onnx: no_such_one is not installed: pip install .*kws\[onnx\] @"
    ):
        need_package("no_such_one", "manyheads-kws", "onnx", place="f.onnx")


# Runs the command without the modules that `pip install ./shared` does not install.
ONLY_TORCH = """
import sys, importlib.metadata as m, importlib.util as u
gone = ("tyro", "rich", "pooch", "platformdirs", "matplotlib", "safetensors", "lightning", "numpy", "pandas", "scipy")
class Gone:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in gone:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Gone())
version = m.version
def absent(name):
    if name.split("-")[0] in gone:
        raise m.PackageNotFoundError(name)
    return version(name)
m.version = absent
m.entry_points = lambda **k: ()
from manyheads.lab.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (
            ["doctor"],
            0,
            "problem: not installed: lightning-fabric, matplotlib, numpy, pooch, rich, safetensors, tyro: pip",
        ),
        (["list"], 2, "error: tyro is not installed: pip install"),
        (["kws", "list"], 2, "error: the domain 'kws' is not installed: pip install"),
        (["vision"], 2, "error: unknown command 'vision'"),
    ],
)
def test_the_command_of_the_core_alone_names_the_packages_to_install(words, code, said):
    ran = subprocess.run([sys.executable, "-c", ONLY_TORCH, *words], capture_output=True, text=True, check=False)
    assert ran.returncode == code, ran.stderr
    assert said in (ran.stdout if code == 0 else ran.stderr)
    assert "Traceback" not in ran.stderr
    assert code == 0 or ran.stderr.count("\n") == 1


def test_an_error_on_standard_output_is_one_line():
    if not Path("/dev/full").exists():
        pytest.skip("no device that is always full")
    for words in (["list"], ["list", "--json"]):
        with open("/dev/full", "w") as full:
            ran = subprocess.run(
                [sys.executable, "-m", "manyheads.lab", *words],
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
                check=False,
            )
        assert ran.returncode == 2
        assert ran.stderr == "error: standard output: No space left on device\n"


def test_a_closed_pipe_on_standard_output_is_silent():
    ran = subprocess.run(
        f"{sys.executable} -m manyheads.lab list | true", shell=True, capture_output=True, text=True, check=False
    )
    assert ran.stderr == ""


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "out.csv"), "error: out.csv: No space left on device\n"),
        (OSError(errno.ENOSPC, "No space left on device"), "error: No space left on device\n"),
        (OSError("a reason\nof two lines"), "error: a reason of two lines\n"),
        (TimeoutError(), "error: TimeoutError\n"),
    ],
)
def test_an_os_error_is_one_line(capsys, error, line):
    def command() -> Outcome:
        raise error

    assert run_commands("x", "", {"go": command}, ["go"]) == 2
    assert capsys.readouterr().err == line


@pytest.mark.parametrize(("columns", "most"), [("", 120), ("80", 80), ("200", 200), ("wide", 120), ("0", 120)])
def test_a_piped_table_keeps_the_requested_width(capsys, monkeypatch, columns, most):
    monkeypatch.setenv("COLUMNS", columns)
    rows = [("closed-form-auto", "a sentence that is folded where the line ends " * 4, 0.123456)]
    assert run_commands("x", "", {"go": lambda: Outcome([], table(("model", "what", "mse"), rows))}, ["go"]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= most
    assert "0.123456" in out


@pytest.mark.parametrize("terminal", ["xterm", "dumb"])
def test_numbers_in_a_table_are_never_cut(capsys, monkeypatch, terminal):
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("TERM", terminal)
    monkeypatch.setenv("FORCE_COLOR", "1")
    rows = [[f"0.{i:08d}" for i in range(12)]]
    assert run_commands("x", "", {"go": lambda: Outcome([], table([f"m{i}" for i in range(12)], rows))}, ["go"]) == 0
    out = capsys.readouterr().out
    assert all(cell in out for cell in rows[0])
