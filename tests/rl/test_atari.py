"""Atari through ale-py: its traps, each of which once hung, failed without words, or changed a number."""

from __future__ import annotations

import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, VectorEnv

from manyheads.core.errors import ArgumentError, MissingPackageError, UnknownNameError
from manyheads.rl.environments.atari import Atari, rom_name
from manyheads.rl.environments.vector import make
from manyheads.rl.environments.watchdog import EnvironmentFailedError

pytest.importorskip("ale_py")


def play(env, steps, seed=0):
    """Play random actions: observations, rewards and ends of every step."""
    random = np.random.default_rng(seed)
    trace = [env.reset(seed=seed)[0]]
    for _ in range(steps):
        trace += env.step(random.integers(env.single_action_space.n, size=env.num_envs))[:4]
    return trace


@pytest.mark.parametrize(("name", "size"), [("pong-42", 42), ("pong-84", 84), ("ALE/Pong-v5", 84)])
def test_presets_have_their_size(name, size):
    env = make(name, 2)
    observations, _ = env.reset(seed=0)
    assert observations.shape == (2, 4, size, size)
    assert observations.dtype == np.uint8
    assert env.single_action_space.n == 6
    env.close()


def test_options_reach_the_games():
    env = make("pong-42", 1, stack=2, all_actions=True, size=30)
    assert env.single_observation_space.shape == (2, 30, 30)
    assert env.single_action_space.n == 18


@pytest.mark.parametrize("action", [9, -1, 6])
def test_an_action_out_of_range_is_refused_instead_of_hanging(action):
    for env in (Atari("pong", 2), make("pong-42", 2)):
        env.reset(seed=0)
        env.step(np.array([0, 1]))
        with pytest.raises(ArgumentError, match=f"environment 1, step 2: action: found {action}, expected 0 to 5"):
            env.step(np.array([0, action]))
        # The environment is as it was.
        env.step(np.array([0, 5]))


def test_the_watchdog_ends_the_hang_of_ale_py_itself():
    # Its own process, which ends although a thread of ale-py never returns.
    program = (
        "import numpy as np\n"
        "from manyheads.rl.environments.atari import Atari\n"
        "from manyheads.rl.environments.vector import make\n"
        "env = make('pong-42', 2, timeout=1.0)\n"
        "env.env._check_actions = env._check_actions = lambda actions, step: actions\n"
        "env.reset(seed=0)\n"
        "env.step(np.array([9, 9]))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert f"{EnvironmentFailedError.__name__}: pong-42, step 1: found no answer in 1 s" in done.stderr


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint8])
def test_integers_of_any_kind_are_actions(dtype):
    env = Atari("pong", 2)
    env.reset(seed=0)
    env.step(np.array([0, 5], dtype))
    env.step([1, 2])


@pytest.mark.parametrize(
    ("actions", "words"),
    [
        (np.array([0.0, 1.0]), "actions: found float64, expected integers"),
        (np.array([0, 1, 2]), r"found the shape \(3,\), expected \(2,\)"),
        (np.array(1), r"found the shape \(\), expected \(2,\)"),
        (np.array([[0, 1]]), r"found the shape \(1, 2\)"),
    ],
)
def test_actions_of_another_form_are_refused_in_words(actions, words):
    env = Atari("pong", 2)
    env.reset(seed=0)
    with pytest.raises(ArgumentError, match=words):
        env.step(actions)


def test_seeds_of_any_kind_give_the_same_game():
    env = Atari("breakout", 2)
    frames = [env.reset(seed=s)[1]["frame_number"] for s in (3, np.int64(3), np.array(3), [3, 4], np.array([3, 4]))]
    assert len({f.tobytes() for f in frames}) == 1


@pytest.mark.parametrize("seed", [-1, 2**31, 2**40, 1.5, [1, -2]])
def test_seeds_out_of_range_are_refused(seed):
    with pytest.raises(ArgumentError, match="seed: found"):
        Atari("pong", 2).reset(seed=seed)


def test_the_same_seed_gives_the_same_rollout():
    first, again, other = (play(Atari("breakout", 3, size=42), 80, s) for s in (1, 1, 2))
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert any(not np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_rewards_are_the_points_of_the_game():
    # A brick of MsPacman's kind: each pill gives ten points.
    env = Atari("ms_pacman", 2, size=42)
    rewards = np.concatenate(play(env, 150)[2::4])
    assert rewards.max() >= 10
    assert not (rewards % 10).any()


def test_the_stack_is_black_after_a_reset_and_fills_from_the_end():
    env = Atari("pong", 2)
    first, _ = env.reset(seed=0)
    assert [bool(frame.any()) for frame in first[0]] == [False, False, False, True]
    second = env.step(np.zeros(2, int))[0]
    assert [bool(frame.any()) for frame in second[0]] == [False, False, True, True]
    np.testing.assert_array_equal(second[:, 2], first[:, 3])


def test_the_step_after_an_end_is_a_filler():
    env = make(Atari("breakout", 2, size=42, max_frames=120), timeout=None)
    env.reset(seed=0)
    ended, ends = np.zeros(2, bool), 0
    for _ in range(120):
        observations, rewards, terminated, truncated, _ = env.step(np.full(2, 2))
        if ended.any():
            assert not rewards[ended].any()
            assert not (terminated | truncated)[ended].any()
            # The first frame of a new stack.
            assert not observations[ended][:, :3].any()
        ended = terminated | truncated
        ends += truncated.sum()
    assert ends >= 2


def test_later_steps_do_not_change_returned_arrays():
    env = Atari("pong", 2, size=42)
    kept = play(env, 20)
    copies = [a.copy() for a in kept]
    for _ in range(20):
        env.step(np.array([2, 3]))
    for a, b in zip(kept, copies, strict=True):
        np.testing.assert_array_equal(a, b)
    assert kept[0].flags.c_contiguous
    assert kept[0].flags.writeable


def test_the_mode_is_not_written_into_the_dict_of_all_vector_environments():
    env = Atari("pong", 1)
    assert env.metadata["autoreset_mode"] == AutoresetMode.NEXT_STEP
    assert env.metadata is not VectorEnv.metadata


def test_another_mode_of_ale_py_is_refused():
    from ale_py.vector_env import AtariVectorEnv

    same_step = AtariVectorEnv("pong", 1, autoreset_mode="SameStep")
    # This one overwrites the mode in the dict that both share.
    AtariVectorEnv("pong", 1)
    with pytest.raises(ArgumentError, match="found autoreset mode SAME_STEP, expected NEXT_STEP"):
        make(same_step)


def test_other_names_of_gymnasium_for_atari_are_refused():
    import ale_py

    gym.register_envs(ale_py)
    gym.register("Test/Pong-v0", vector_entry_point="ale_py.vector_env:AtariVectorEnv", kwargs={"game": "pong"})
    try:
        with pytest.raises(ArgumentError, match="found an Atari game, expected a name such as 'pong-84'"):
            make("Test/Pong-v0")
    finally:
        del gym.registry["Test/Pong-v0"]


@pytest.mark.parametrize("name", ["ms_pacman", "MsPacman", "ALE/MsPacman-v5"])
def test_a_game_has_three_names(name):
    assert rom_name(name) == "ms_pacman"


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("ms-pacman", "ms_pacman"), ("MsPackman", "MsPacman"), ("ALE/Pog-v5", "Pong"), ("braekout", "breakout")],
)
def test_an_unknown_game_is_answered_with_the_nearest(name, nearest):
    with pytest.raises(UnknownNameError, match=f"unknown Atari game .*: did you mean '{nearest}'"):
        Atari(name)


def test_every_rom_of_ale_py_is_there():
    from ale_py.roms import get_all_rom_ids, get_rom_path

    absent = [name for name in get_all_rom_ids() if not get_rom_path(name).is_file()]
    assert absent == []


def test_without_ale_py_the_pip_line_is_given(monkeypatch):
    for module in ("ale_py", "ale_py.registration", "ale_py.roms"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingPackageError, match=r"ale-py is not installed: pip install .*rl\[atari\]"):
        make("pong-42")


def test_pictures_are_the_newest_frames():
    env = make("pong-42", 2)
    observations, _ = env.reset(seed=0)
    pictures = env.render()
    assert [p.shape for p in pictures] == [(42, 42, 3)] * 2
    np.testing.assert_array_equal(pictures[1][..., 0], observations[1, -1])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sticky": 1.5}, "sticky: found 1.5"),
        ({"size": 4}, "size: found 4"),
        ({"frame_skip": 0}, "frame_skip: found 0"),
    ],
)
def test_options_out_of_range_are_refused(options, words):
    with pytest.raises(ArgumentError, match=words):
        Atari("pong", 1, **options)
