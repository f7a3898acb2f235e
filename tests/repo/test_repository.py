"""Properties of the whole repository: packaging, imports, pages and their tables."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib.resources import files
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("core", "lab", *sorted(path.parent.name for path in ROOT.glob("packages/*/pyproject.toml")))


def sources():
    return [p for place in ("shared/src", "packages") for p in (ROOT / place).rglob("*.py") if "build" not in p.parts]


def test_manyheads_is_a_namespace_package():
    assert [p for p in sources() if p.parts[-2:] == ("manyheads", "__init__.py")] == []


@pytest.mark.parametrize("name", PACKAGES)
def test_every_package_is_typed(name):
    assert files(f"manyheads.{name}").joinpath("py.typed").is_file()


def test_every_dependency_is_pinned():
    pinned = {
        line.split("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line
    }
    for path in [ROOT / "shared/pyproject.toml", *ROOT.glob("packages/*/pyproject.toml")]:
        project = tomllib.loads(path.read_text())["project"]
        groups = [project["dependencies"], *project.get("optional-dependencies", {}).values()]
        for requirement in [r for group in groups for r in group]:
            name = re.split(r"[\[<>=!~ ]", requirement)[0].lower()
            assert name in pinned or name.startswith("manyheads-"), f"{path}: {name} is not in constraints.txt"


def test_every_package_pins_the_version_of_the_core():
    core = tomllib.loads((ROOT / "shared/pyproject.toml").read_text())["project"]["version"]
    for path in ROOT.glob("packages/*/pyproject.toml"):
        project = tomllib.loads(path.read_text())["project"]
        assert project["version"] == core
        assert any(re.fullmatch(rf"manyheads-core(\[\w+\])?=={re.escape(core)}", r) for r in project["dependencies"])


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("manyheads.core", ("numpy", "pandas", "rich", "tyro", "requests")),
        ("manyheads.core.registry", ("pandas", "rich", "tyro", "requests", "lightning_fabric")),
        ("manyheads.forecasting", ("torch", "pandas", "matplotlib", "scipy")),
        ("manyheads.forecasting.evaluation.bench", ("torch", "matplotlib", "lightning_fabric")),
        ("manyheads.recsys", ("torch", "pandas", "sklearn", "scipy")),
        ("manyheads.recsys.commands", ("torch", "pandas", "sklearn", "lightning_fabric")),
        ("manyheads.kws", ("torch", "soundfile", "matplotlib", "scipy")),
        ("manyheads.kws.commands", ("torch", "soundfile", "matplotlib", "scipy", "onnx")),
        ("manyheads.lab.cli.main", ("torch", "pandas", "matplotlib", "lightning_fabric", "requests")),
    ],
)
def test_importing_loads_only_what_is_needed(module, absent):
    code = f"import sys, {module}; print(*[m for m in {absent!r} if m in sys.modules])"
    # torch imports numpy if it is installed, so only the modules imported after torch count
    if module.startswith("manyheads.core"):
        code = f"import sys, torch; before = set(sys.modules); import {module}; new = set(sys.modules) - before; "
        code += f"print(*[m for m in {absent!r} if m in new])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_importing_opens_no_connection():
    code = (
        "import socket\n"
        "def refuse(*args): raise AssertionError('a connection was opened')\n"
        "socket.socket.connect = refuse\n"
        "socket.create_connection = refuse\n"
        "import manyheads.core.registry, manyheads.lab.cli.main, manyheads.lab.data.registry, "
        "manyheads.forecasting.commands, manyheads.forecasting.training.experiments, "
        "manyheads.forecasting.estimator.forecaster, manyheads.core.testing, "
        "manyheads.kws.commands, manyheads.kws.training.experiments, manyheads.kws.streaming.spotter\n"
        "from manyheads.lab.cli.main import main\n"
        "assert main(['data', 'list']) == 0\n"
    )
    subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)


def test_relative_links_of_the_pages_exist():
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *ROOT.glob("packages/*/README.md")]
    links = [(page, link) for page in pages for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text())]
    inside = [(page, link) for page, link in links if not link.startswith(("http://", "https://"))]
    assert [f"{page.name}: {link}" for page, link in inside if not (page.parent / link).exists()] == []


def test_the_tables_of_the_pages_match_the_results():
    done = subprocess.run([sys.executable, ROOT / "benchmarks/tables", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_nox_session_named_in_the_pages_exists():
    named = set(
        re.findall(r"nox -s ([\w-]+)", (ROOT / "README.md").read_text() + (ROOT / "CONTRIBUTING.md").read_text())
    )
    known = set(re.findall(r"@nox\.session[^\n]*\ndef (\w+)", (ROOT / "noxfile.py").read_text()))
    assert named <= known
    assert {"demo", "tests", "lint", "core", "forecasting", "kws", "recsys", "wheels", "bench", "docs", "slow"} <= known


def test_the_catalogue_matches_the_registry():
    done = subprocess.run([sys.executable, ROOT / "docs/catalogue.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_page_of_every_layer_states_its_use_and_has_short_code_lines():
    pages = [page for page in (ROOT / "docs/layers").glob("*.md") if "docs/catalogue.py" in page.read_text()]
    for page in pages:
        text = page.read_text()
        assert re.search(r"-->\n\n\*\*Use it for:\*\* [A-Z][^\n]+\.\n\n\*\*Take another layer:\*\* [A-Z]", text), (
            page.name
        )
        assert re.search(r"\n\$\$\n.+\n\$\$\n", text), page.name
        assert re.search(r"\n\| property \| [\w-]+ \|\n", text), page.name
    for page in [*pages, ROOT / "docs/layers/index.md"]:
        code = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
        assert [line for line in "".join(code).splitlines() if len(line) > 80] == [], page.name


def test_the_snippet_of_every_layer_runs():
    pages = [page for page in (ROOT / "docs/layers").glob("*.md") if "docs/catalogue.py" in page.read_text()]
    assert pages
    snippets = [re.search(r"```python\n(.*?)```", page.read_text(), re.DOTALL) for page in pages]
    script = "\n".join(match[1] for match in snippets if match)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert script.count("create(") >= len(pages)
