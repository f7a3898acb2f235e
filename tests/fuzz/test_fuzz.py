"""Three hundred of the generated inputs, other ones than those that are counted; ``nox -s fuzz`` tries ten thousand."""

from __future__ import annotations

import time

import pytest

from tests.fuzz import run
from tests.fuzz.areas import AREAS, REFUSED, RIGHT

FIRST = 1_000_000


@pytest.mark.parametrize("area", AREAS)
def test_no_input_gives_a_wrong_answer_or_a_traceback(area, tmp_path):
    if area == "HTTP bodies":
        for package in ("onnxruntime", "fastapi", "httpx"):
            pytest.importorskip(package)
    try_one = AREAS[area](tmp_path)
    found = [run.attempt(try_one, FIRST + n) for n in range(run.shares(300)[area])]
    assert [said for outcome, said in found if outcome in run.FAULTS] == []
    kinds = {outcome for outcome, _ in found}
    assert REFUSED in kinds
    assert RIGHT in kinds or area in ("audio files", "layer calls")


def test_faults_are_counted_as_what_they_are(tmp_path, monkeypatch):
    def answers(seed):
        if seed == 1:
            raise AssertionError("another forecast")
        if seed == 2:
            raise ZeroDivisionError
        if seed == 3:
            bytearray(1 << 45)
        return "an input", REFUSED

    assert [run.attempt(answers, seed)[0] for seed in range(4)] == [REFUSED, run.WRONG, run.TRACEBACK, run.MEMORY]


def test_the_shares_are_of_ten_thousand_and_of_every_area():
    assert sum(run.shares(10_000).values()) == 10_000
    assert set(run.SHARES) == set(AREAS)


def test_an_input_that_hangs_is_counted_and_the_next_is_tried(monkeypatch):
    monkeypatch.setattr(run, "LIMIT_SECONDS", 1)
    script = "import json, sys, time\nprint(json.dumps({'begun': True}), flush=True)\ntime.sleep(60)\n"
    real = run.subprocess.Popen
    monkeypatch.setattr(run.subprocess, "Popen", lambda command, **k: real([command[0], "-c", script], **k))
    begun = time.monotonic()
    assert [outcome for outcome, _ in run.one_process("audio files", 0, 5)] == [run.HANG]
    assert time.monotonic() - begun < 30
