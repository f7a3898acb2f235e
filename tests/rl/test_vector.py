"""Making environments: every source, the refusals, and the checks at each step."""

from __future__ import annotations

import math

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Sequence, Text, Tuple
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from manyheads.core.errors import ArgumentError, DataError, ManyheadsError, UnknownNameError
from manyheads.rl.environments.checks import ActionCheck, ObservationCheck, check_outcome, check_spaces
from manyheads.rl.environments.t_maze import TMazeEnv, TMazeVectorEnv
from manyheads.rl.environments.vector import make
from manyheads.rl.environments.watchdog import EnvironmentFailedError
from tests.rl.faulty import Faulty


@pytest.mark.parametrize(
    ("what", "count", "options"),
    [
        ("manyheads/TMaze-v0", 3, {"corridor": 7}),
        ("CartPole-v1", 3, {}),
        (TMazeEnv, 3, {}),
        (lambda: gym.make("CartPole-v1"), 3, {}),
        (TMazeVectorEnv(3), None, {}),
        (SyncVectorEnv([TMazeEnv] * 3), 3, {}),
    ],
)
def test_every_source_gives_a_vector_environment(what, count, options):
    env = make(what, count, seed=1, **options)
    assert env.num_envs == 3
    assert env.metadata["autoreset_mode"] == AutoresetMode.NEXT_STEP
    first, _ = env.reset()
    assert first.shape[0] == 3
    observations, rewards, terminated, truncated, _ = env.step([0, 1, 0])
    assert observations.shape == first.shape
    assert rewards.shape == terminated.shape == truncated.shape == (3,)
    assert env.steps == 1
    env.close()


def test_one_environment_is_a_vector_of_one():
    env = make(TMazeEnv(corridor=3))
    assert env.num_envs == 1
    assert env.reset(seed=0)[0].shape == (1, 4)


def test_the_seed_counts_for_the_first_reset_only():
    env, same = make("manyheads/TMaze-v0", 32, seed=4), make("manyheads/TMaze-v0", 32)
    np.testing.assert_array_equal(env.reset()[0], same.reset(seed=np.int64(4))[0])
    second = env.reset()[0]
    np.testing.assert_array_equal(second, same.reset()[0])
    assert not np.array_equal(second, same.reset(seed=4)[0])


def test_names_are_known_without_registering_by_hand():
    assert make("manyheads/RepeatPrevious-v0", 2, k=2).single_action_space.n == 4


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.DISABLED])
def test_another_autoreset_mode_is_refused(mode):
    env = SyncVectorEnv([TMazeEnv], autoreset_mode=mode)
    with pytest.raises(ArgumentError, match=f"found autoreset mode {mode.name}, expected NEXT_STEP: make it with"):
        make(env)


def test_a_vector_environment_without_a_mode_is_refused():
    env = TMazeVectorEnv(2)
    env.metadata = {}
    with pytest.raises(ArgumentError, match="found autoreset mode None"):
        make(env)


def test_a_wrong_game_is_refused_with_the_nearest_name():
    pytest.importorskip("ale_py")
    with pytest.raises(UnknownNameError, match="did you mean 'pong'"):
        make("pon-42")


@pytest.mark.parametrize(
    ("make_it", "error", "words"),
    [
        (lambda: make("manyheads/TMaze-v1"), UnknownNameError, "did you mean 'manyheads/TMaze-v0'"),
        (lambda: make("cartpole-v1"), UnknownNameError, "did you mean 'CartPole-v1'"),
        (lambda: make(3), ArgumentError, "environment: found int, expected a name, a function"),
        (lambda: make(TMazeEnv(), 2), ArgumentError, "count: found 2 with one environment, expected 1"),
        (lambda: make(TMazeVectorEnv(2), 3), ArgumentError, "count: found 3, expected 2"),
        (lambda: make("CartPole-v1", 0), ArgumentError, "count: found 0"),
        (lambda: make(TMazeEnv, 2, corridor=3), ArgumentError, "corridor: found options beside"),
        (lambda: make(lambda: 5), ArgumentError, "a function that returns int"),
        (
            lambda: make("manyheads/TMaze-v0", 2, length=3),
            EnvironmentFailedError,
            "unexpected keyword argument 'length'",
        ),
        (lambda: make("manyheads/TMaze-v0", 2, corridor=0), ArgumentError, "corridor: found 0"),
        (lambda: make("CartPole-v1", timeout=0), ArgumentError, "timeout: found 0"),
    ],
)
def test_what_cannot_be_made_is_refused_in_words(make_it, error, words):
    with pytest.raises(error, match=words):
        make_it()


def test_a_function_that_returns_one_environment_twice_is_refused():
    env = TMazeEnv()
    with pytest.raises(ArgumentError, match="returns the same environment again"):
        make(lambda: env, 2)


@pytest.mark.parametrize(
    "space",
    [
        Box(0, 255, (3, 8, 8), np.uint8),
        Box(-np.inf, np.inf, (5,), np.float64),
        Discrete(3, start=2),
        MultiDiscrete([3, 4]),
        MultiBinary(4),
        Dict({"a": Box(-1.0, 1.0, (2,)), "b": Dict({"c": Discrete(2)})}),
        Tuple((Box(-1.0, 1.0, (2,)), Discrete(2))),
    ],
)
def test_supported_observations_pass_at_every_step(space):
    env = make(lambda: Faulty(observation_space=space), 2)
    env.reset(seed=0)
    for _ in range(50):
        env.step([0, 1])


@pytest.mark.parametrize(
    ("space", "words"),
    [
        (Text(5), "observation space: found Text, expected Box, Discrete"),
        (Dict({"a": Dict({"b": Sequence(Discrete(2))})}), r"observation space\['a'\]\['b'\]: found Sequence"),
        (Box(0.0, 1.0, (0,)), r"found the shape \(0,\), expected at least one element"),
        (Dict({}), "expected at least one part"),
    ],
)
def test_other_observations_are_refused_in_words(space, words):
    with pytest.raises(ArgumentError, match=words):
        check_spaces(space, Discrete(2))


@pytest.mark.parametrize(
    ("space", "words"),
    [
        (Box(-np.inf, np.inf, (2,)), "expected Discrete, MultiDiscrete, or a Box of floats with one axis"),
        (Box(-1.0, 1.0, (2, 2)), "one axis"),
        (Box(0, 255, (2,), np.uint8), "a Box of floats"),
        (MultiBinary(3), r"use MultiDiscrete\(\[2\] \* 3\)"),
        (Dict({"a": Discrete(2)}), "TransformAction"),
    ],
)
def test_other_actions_are_refused_in_words(space, words):
    with pytest.raises(ArgumentError, match=words):
        check_spaces(Box(-1.0, 1.0, (2,)), space)


@pytest.mark.parametrize(
    ("space", "actions", "words"),
    [
        (Discrete(3), [0, 1, 3], "environment 2, step 9: action: found 3, expected 0 to 2: check the head"),
        (Discrete(3), [-1, 1, 2], "environment 0, step 9: action: found -1, expected 0 to 2"),
        (Discrete(3, start=5), [5, 7, 4], "environment 2, step 9: action: found 4, expected 5 to 7"),
        (Discrete(3), [0.0, 1.0, 2.0], "step 9: actions: found float64, expected integers"),
        (Discrete(3), [0, 1], r"found the shape \(2,\), expected \(3,\)"),
        (Discrete(3), [True, False, True], "found bool, expected integers"),
        (
            MultiDiscrete([2, 5]),
            [[0, 4], [1, 0], [2, 1]],
            r"environment 2, step 9: action\[0\]: found 2, expected 0 to 1",
        ),
        (
            Box(-1.0, 1.0, (2,)),
            [[0, 0], [0, 1.5], [0, 0]],
            r"environment 1, step 9: action\[1\]: found 1.5, expected -1.0",
        ),
        (Box(-1.0, 1.0, (2,)), [[0, 0], [0, 0], [math.nan, 0]], r"environment 2, step 9: action\[0\]: found nan"),
    ],
)
def test_wrong_actions_are_refused_with_environment_and_step(space, actions, words):
    with pytest.raises(ArgumentError, match=f"^task.*{words}"):
        ActionCheck(space, 3, "task")(np.array(actions), 9)


@pytest.mark.parametrize(
    ("space", "actions"),
    [
        (Discrete(3), np.array([0, 1, 2], np.uint8)),
        (MultiDiscrete([2, 5]), np.array([[0, 4], [1, 0], [1, 4]])),
        (Box(np.array([-1, 0], np.float32), np.array([1, 9], np.float32)), np.array([[-1, 9], [1, 0], [0, 4]])),
    ],
)
def test_right_actions_come_back_in_the_dtype_of_the_space(space, actions):
    checked = ActionCheck(space, 3, "task")(actions, 1)
    assert checked.dtype == space.dtype
    np.testing.assert_array_equal(checked, actions)


def spoil(value, index=1):
    def fault(env):
        env.observation[index] = value

    return fault


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (spoil(math.nan), r"environment 1, step 3: observation\[1\]: found nan, expected a finite number"),
        (spoil(math.inf, 0), r"environment 1, step 3: observation\[0\]: found inf, expected a finite number"),
        (spoil(1.25), r"environment 1, step 3: observation\[1\]: found 1.25, expected -1.0 to 1.0"),
        (lambda env: setattr(env, "reward", math.nan), "environment 1, step 3: reward: found nan, expected a finite"),
        (lambda env: setattr(env, "reward", -math.inf), "environment 1, step 3: reward: found -inf"),
    ],
)
def test_a_wrong_answer_names_environment_and_step(fault, words):
    made = []

    def one():
        made.append(0)
        return Faulty(fault if len(made) == 2 else None)

    env = make(one, 3)
    env.reset(seed=0)
    for _ in range(2):
        env.step([0, 0, 0])
    with pytest.raises(DataError, match=f"^Faulty, {words}"):
        env.step([0, 0, 0])


def test_bounds_can_be_left_unchecked_and_nan_cannot():
    for value, error in ((7.0, None), (math.nan, DataError)):
        env = make(lambda value=value: Faulty(spoil(value), at=1), bounds=False)
        env.reset(seed=0)
        if error is None:
            env.step([0])
        else:
            with pytest.raises(error):
                env.step([0])


def test_bounds_are_checked_for_each_element():
    check = ObservationCheck(Box(np.array([-1.0, -5.0]), np.array([1.0, np.inf]), dtype=np.float64), 2, "task")
    check(np.array([[0.0, 1e9], [1.0, -5.0]]), 0)
    with pytest.raises(DataError, match=r"environment 1, step 4: observation\[0\]: found 1.5, expected -1.0 to 1.0"):
        check(np.array([[0.0, 1e9], [1.5, -5.0]]), 4)
    with pytest.raises(DataError, match=r"observation\[1\]: found inf"):
        check(np.array([[0.0, 1.0], [0.5, np.inf]]), 4)


@pytest.mark.parametrize(
    ("observations", "words"),
    [
        (
            {"a": np.zeros((2, 3), np.float32), "b": np.zeros(2, np.int64)},
            r"observations\['a'\]: found float32\(2, 3\)",
        ),
        (
            {"a": np.zeros((2, 2)), "b": np.zeros(2, np.int64)},
            r"\['a'\]: found float64\(2, 2\), expected float32\(2, 2\)",
        ),
        ({"a": np.zeros((2, 2), np.float32), "b": [0, 1]}, r"\['b'\]: found list, expected int64\(2,\)"),
        (
            {"a": np.zeros((2, 2), np.float32), "b": np.array([0, 4])},
            r"environment 1.*\['b'\]: found 4, expected 0 to 3",
        ),
    ],
)
def test_parts_of_dicts_are_named(observations, words):
    check = ObservationCheck(Dict({"a": Box(-1.0, 1.0, (2,)), "b": Discrete(4)}), 2, "task")
    with pytest.raises(DataError, match=words):
        check(observations, 1)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rewards", np.zeros(3)),
        ("rewards", [0.0, 0.0]),
        ("terminated", np.zeros(2)),
        ("truncated", np.array([None, None])),
    ],
)
def test_outcomes_of_another_form_are_refused(name, value):
    parts = {"rewards": np.zeros(2), "terminated": np.zeros(2, bool), "truncated": np.zeros(2, bool), name: value}
    with pytest.raises(DataError, match=f"task, step 2: {name}: found"):
        check_outcome(**parts, count=2, name="task", step=2)


def test_rewards_whose_sum_overflows_are_right():
    check_outcome(np.full(4, 1e308), np.zeros(4, bool), np.zeros(4, bool), count=4, name="task", step=1)


def test_every_error_is_one_of_ours():
    assert issubclass(EnvironmentFailedError, ManyheadsError)
