"""docs/rl.md: its Python runs, the tests it names exist, and its commands are parsed."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from manyheads.lab.cli.main import main
from manyheads.rl import Agent

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "rl.md").read_text()


def snippet(words: str) -> str:
    """The Python block of the page that contains the words."""
    (found,) = [code for code in re.findall(r"```python\n(.*?)```", PAGE, re.S) if words in code]
    return found


def test_an_agent_for_an_own_environment_takes_twenty_lines(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = snippet("agent.learn(")
    assert sum(bool(line.strip()) for line in code.splitlines()) <= 20
    # as shown, but one update
    names: dict[str, object] = {}
    exec(code.replace("100_000", "500"), names)  # noqa: S102 - our own page
    assert names["done"]


def test_the_attention_of_an_agent_is_drawn_as_shown(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("reports").mkdir()
    Agent("gtrxl", "manyheads/TMaze-v0", heads=4, memory=12).save("reports/agent.safetensors")
    exec(snippet("attention_over_memory"), {})  # noqa: S102 - our own page
    assert capsys.readouterr().out.startswith("(2, 4, 11, 11)\n[(")
    assert Path("memory.png").stat().st_size > 1000


def test_every_test_that_the_page_names_exists():
    named = set(re.findall(r"`(test_\w+)`", PAGE))
    assert len(named) > 10
    known = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    assert not [name for name in named if f"def {name}(" not in known]


COMMANDS = [
    line.partition("#")[0].strip()
    for block in re.findall(r"```bash\n(.*?)```", PAGE, re.S)
    for line in block.splitlines()
    if line.startswith("manyheads rl")
]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_of_a_command_that_the_page_shows_is_in_its_help(command, capsys):
    words = shlex.split(command)[1:]
    assert main([*words[:2], "--help"]) == 0
    shown = capsys.readouterr().out
    assert all(word in shown for word in words if word.startswith("--"))
