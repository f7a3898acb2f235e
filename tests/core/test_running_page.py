"""The snippets of docs/running.md run, and do what the page says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "running.md"


def snippets():
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)


def test_the_decoding_snippet_runs():
    decode, _ = snippets()
    exec(decode, {})  # noqa: S102 - our own page


def test_the_torchrun_snippet_runs_in_under_twenty_lines(tmp_path):
    _, script = snippets()
    assert len(script.splitlines()) < 20
    (tmp_path / "ring.py").write_text(script)
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "ring.py"]
    done = subprocess.run([sys.executable, *command], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    error, sent = re.fullmatch(r"largest error (\S+), (\S+) bytes sent\n", done.stdout).groups()
    assert float(error) < 5e-6
    assert int(sent.replace(",", "")) == 2 * 502 * 8 * 64 * 4  # 1,001 tokens over 2 ranks in chunks of 251
