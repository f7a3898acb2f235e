"""The watchdog: an environment that hangs, raises or dies gives an error that names it, and nothing waits for it."""

from __future__ import annotations

import gc
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv

from manyheads.core.errors import ArgumentError
from manyheads.rl.environments.vector import make
from manyheads.rl.environments.watchdog import EnvironmentFailedError, Watchdog
from tests.rl.faulty import Faulty, complain, die, hang, leave, spin


def one_of(count, bad, fault, **options):
    """Functions that make ``count`` environments, one of them with a fault."""
    return [lambda i=i: Faulty(fault if i == bad else None, **options) for i in range(count)]


def run(env, steps=5):
    env.reset(seed=0)
    for _ in range(steps):
        env.step(np.zeros(env.num_envs, int))


@pytest.mark.parametrize("fault", [hang, spin])
def test_a_hanging_environment_is_named_with_its_step(fault):
    env = make(SyncVectorEnv(one_of(4, 2, lambda e: fault(e) if not ended.is_set() else None)), timeout=0.5)
    ended = threading.Event()
    start = time.monotonic()
    with pytest.raises(
        EnvironmentFailedError, match=r"^Faulty, environment 2, step 3: found no answer in 0.5 s"
    ) as caught:
        run(env)
    assert time.monotonic() - start < 20
    assert caught.value.environment == 2
    assert "faulty.py" in str(caught.value)
    with pytest.raises(EnvironmentFailedError, match="environment 2, step 3"):
        env.step(np.zeros(4, int))
    env.close()


def test_a_hanging_reset_is_named():
    env = make(SyncVectorEnv(one_of(3, 1, hang, in_reset=True)), timeout=0.3)
    with pytest.raises(EnvironmentFailedError, match=r"environment 1, reset after step 0: found no answer"):
        env.reset()
    env.close()


@pytest.mark.parametrize("timeout", [None, 30.0])
def test_a_raising_environment_is_named_with_its_words(timeout):
    env = make(SyncVectorEnv(one_of(4, 3, complain)), timeout=timeout)
    with pytest.raises(
        EnvironmentFailedError,
        match=r"^Faulty, environment 3, step 3: found RuntimeError: the joint is broken \(.*faulty.py",
    ) as caught:
        run(env)
    assert isinstance(caught.value.__cause__, RuntimeError)
    env.close()


def test_an_environment_that_leaves_the_program_is_an_error():
    env = make(SyncVectorEnv(one_of(2, 0, leave)))
    with pytest.raises(EnvironmentFailedError, match="environment 0, step 3: found SystemExit"):
        run(env)
    env.close()


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
@pytest.mark.parametrize(
    ("fault", "options", "words"),
    [
        (die, {}, "environment 1, step 3: found its process dead"),
        (die, {"in_reset": True}, "environment 1, reset after step 0: found its process dead"),
        (complain, {}, "environment 1, step 3: found RuntimeError: the joint is broken"),
        (hang, {}, "environment 1, step 3: found no answer in 5 s"),
    ],
)
def test_workers_are_named_and_ended(fault, options, words):
    workers = AsyncVectorEnv(one_of(3, 1, fault, **options))
    env = make(workers, timeout=5.0)
    with pytest.raises(EnvironmentFailedError, match=f"^AsyncVectorEnv, {words}") as caught:
        run(env)
    assert caught.value.environment == 1
    assert not any(process.is_alive() for process in workers.processes)
    env.close()


@pytest.fixture
def interruptible():
    """SIGINT raises KeyboardInterrupt, also where a background job ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_the_caller_may_use_the_environment_after_an_interruption(interruptible):
    entered, interrupted = threading.Event(), []

    class Slow(Faulty):
        def step(self, action):
            if not interrupted:
                interrupted.append(True)
                entered.set()
                time.sleep(0.3)
            return super().step(action)

    env = make(Slow())
    env.reset(seed=0)
    import _thread

    threading.Thread(target=lambda: (entered.wait(), _thread.interrupt_main())).start()
    with pytest.raises(KeyboardInterrupt):
        env.step([0])
    assert env.step([0])[1].tolist() == [0.5]
    env.close()


def test_errors_of_this_library_pass_through():
    def refuse():
        raise ArgumentError("corridor: found 0")

    with pytest.raises(ArgumentError, match=r"^corridor: found 0$"):
        Watchdog("task").call(refuse, place="step 1")


def threads_of(name):
    return sum(thread.name == f"environment {name}" for thread in threading.enumerate())


@pytest.mark.parametrize("close", [True, False])
def test_a_thread_ends_with_its_environment(close):
    class Short(Faulty):
        pass

    env = make(Short())
    run(env)
    assert threads_of("Short") == 1
    if close:
        env.close()
    del env
    gc.collect()
    deadline = time.monotonic() + 10
    while threads_of("Short") and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not threads_of("Short")


def test_own_tasks_need_no_thread():
    env = make("manyheads/TMaze-v0", 4)
    run(env)
    assert not threads_of("manyheads/TMaze-v0")


def test_a_program_with_a_hanging_environment_ends():
    program = (
        "from tests.rl.faulty import Faulty, hang\n"
        "from manyheads.rl.environments.vector import make\n"
        "env = make(Faulty(hang, at=1), timeout=0.3)\n"
        "env.reset()\n"
        "env.step([0])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "EnvironmentFailedError: Faulty, environment 0, step 1: found no answer" in done.stderr
