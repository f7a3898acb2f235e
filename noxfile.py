"""Every job of the repository, each in an environment of its own: ``nox -l`` lists them."""

from __future__ import annotations

import os
from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "uv|venv"
nox.options.reuse_venv = "yes"
nox.options.sessions = ["lint", "tests"]

ROOT = Path(__file__).parent
PACKAGES = ["shared[lab]", *sorted(f"packages/{p.parent.name}" for p in ROOT.glob("packages/*/pyproject.toml"))]

# A folder of wheels that pip knows of is not known to uv unless it is told.
if "PIP_FIND_LINKS" in os.environ:
    os.environ.setdefault("UV_FIND_LINKS", os.environ["PIP_FIND_LINKS"])


def install(session: nox.Session, *tools: str, packages: list[str] | None = None) -> None:
    """One command for all: the core is on no index, so that its siblings must be resolved beside it."""
    editable = [part for package in packages or PACKAGES for part in ("-e", f"./{package}")]
    session.install("-c", "constraints.txt", *editable, *tools)


@nox.session
def demo(session: nox.Session) -> None:
    """The forecasting bench on the shipped sets: a table, and an HTML report with plots."""
    install(session)
    session.run("manyheads", "forecasting", "bench", "--report", "reports/forecasting.html", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """ruff (format and lint), ty, import-linter."""
    install(session, "ruff", "ty", "import-linter", "pytest", "hypothesis", "nox", "tensorboard")
    session.run("ruff", "format", "--check", ".")
    session.run("ruff", "check", ".")
    session.run("ty", "check", "shared/src", "packages")
    session.run("lint-imports")


TEST_TOOLS = ["pytest", "pytest-xdist", "hypothesis", "scikit-learn", "tensorboard"]


@nox.session
def tests(session: nox.Session) -> None:
    """All tests but the slow ones, on two processes."""
    install(session, *TEST_TOOLS)
    session.run("pytest", "-n", "2", "-m", "not slow", *session.posargs)


@nox.session
def slow(session: nox.Session) -> None:
    """The learning checks and the long tests."""
    install(session, *TEST_TOOLS)
    session.run("pytest", "-m", "slow", *session.posargs)


@nox.session
def core(session: nox.Session) -> None:
    """The tests of the core alone, with nothing but torch installed."""
    install(session, "pytest", "pytest-xdist", "hypothesis", packages=["shared"])
    session.run("pytest", "-n", "2", "tests/core", *session.posargs)


@nox.session
def forecasting(session: nox.Session) -> None:
    """The tests of the forecasting package."""
    install(session, *TEST_TOOLS, packages=["shared[lab]", "packages/forecasting"])
    session.run("pytest", "-n", "2", "tests/forecasting", *session.posargs)
