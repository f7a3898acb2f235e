"""Evaluation: which episodes count, the statistics of many runs, and the pictures."""

from __future__ import annotations

import math

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import SyncVectorEnv
from PIL import Image

from manyheads.core.errors import ArgumentError, DataError
from manyheads.lab.data.files import write_figure
from manyheads.rl.environments.episodes import evaluate, play
from manyheads.rl.environments.t_maze import DOWN, UP
from manyheads.rl.environments.vector import make
from manyheads.rl.evaluation.plots import at_common_steps, learning_curves
from manyheads.rl.evaluation.recording import record, write_gif
from manyheads.rl.evaluation.statistics import estimate, interquartile_mean, mean


class Coin:
    """Draws actions from torch's generator, or says 0; keeps nothing."""

    def __init__(self, actions):
        self.actions = actions

    def init_state(self, count):
        return ()

    def act(self, observations, state, is_first, previous_action, previous_reward, *, deterministic):
        if deterministic:
            return np.zeros(len(is_first), np.int64), state
        return torch.randint(self.actions, (len(is_first),)).numpy(), state


class CueKeeper:
    """Plays the T-maze perfectly: its state is the cue."""

    def init_state(self, count):
        return np.zeros(count, np.int64)

    def act(self, observations, state, is_first, previous_action, previous_reward, *, deterministic):
        state = np.where(is_first, np.where(observations[:, DOWN] > 0, DOWN, UP), state)
        return state, state


class Countdown(gym.Env):
    """The lengths of its episodes are ``1, 10, 1, 10, …``, and each step gives reward 1."""

    observation_space, action_space = Box(0.0, 100.0, (1,), np.float32), Discrete(2)

    def __init__(self, lengths=(1, 10)):
        self.lengths, self.episode = lengths, -1

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode += 1
        self.left = self.lengths[self.episode % len(self.lengths)]
        return np.array([self.left], np.float32), {}

    def step(self, action):
        self.left -= 1
        return np.array([self.left], np.float32), 1.0, False, self.left == 0, {}


def test_a_perfect_player_of_the_t_maze_gets_one():
    found = evaluate(CueKeeper(), make("manyheads/TMaze-v0", 8, corridor=20), 20)
    assert found.returns.tolist() == [1.0] * 20
    assert found.lengths.tolist() == [21] * 20
    assert not found.truncated.any()
    assert (found.mean, found.sd) == (1.0, 0.0)


def test_the_first_episodes_of_each_environment_count():
    short, long = (lambda: Countdown([2])), (lambda: Countdown([9]))
    found = evaluate(Coin(2), make(SyncVectorEnv([short, long, short])), 7)
    # The first seven to end would be six short ones and a long one.
    assert found.environments.tolist() == [0, 0, 0, 1, 1, 2, 2]
    assert found.lengths.tolist() == [2, 2, 2, 9, 9, 2, 2]
    assert found.returns.tolist() == found.lengths.tolist()
    assert found.truncated.all()


def test_steps_between_episodes_count_nowhere():
    found = evaluate(Coin(2), make(Countdown()), 5)
    assert found.lengths.tolist() == [1, 10, 1, 10, 1]
    assert found.returns.tolist() == [1, 10, 1, 10, 1]


def test_memory_and_inputs_begin_anew_with_each_episode():
    seen = []

    class Watcher(Coin):
        def act(self, observations, state, is_first, previous_action, previous_reward, *, deterministic):
            seen.append((observations[0, 0], is_first[0], previous_action[0], previous_reward[0]))
            return np.ones(1, np.int64), state

    steps = play(Watcher(2), make(Countdown([2, 1])), seed=0)
    fillers = [bool(next(steps).is_filler[0]) for _ in range(6)]
    assert seen == [
        (2, True, 0, 0),
        (1, False, 1, 1),
        (0, False, 1, 1),
        (1, True, 0, 0),
        (0, False, 1, 1),
        (2, True, 0, 0),
    ]
    assert fillers == [False, False, True, False, True, False]


def test_an_evaluation_is_repeatable_and_leaves_the_generator_of_a_training_alone():
    env = make("manyheads/HiddenCartPole-v0", 4)
    before = torch.random.get_rng_state()
    first, again, other = (evaluate(Coin(2), env, 8, seed=s, deterministic=False) for s in (1, 1, 2))
    assert torch.equal(before, torch.random.get_rng_state())
    np.testing.assert_array_equal(first.returns, again.returns)
    assert not np.array_equal(first.returns, other.returns)


def test_dicts_of_actions_and_continuous_actions_can_be_played():
    class Arm(gym.Env):
        observation_space, action_space = Box(-1.0, 1.0, (2,)), Box(-1.0, 1.0, (3,))

        def reset(self, *, seed=None, options=None):
            return np.zeros(2, np.float32), {}

        def step(self, action):
            return np.zeros(2, np.float32), float(action.sum()), True, False, {}

    class Pusher(Coin):
        def act(self, observations, state, is_first, previous_action, previous_reward, *, deterministic):
            assert previous_action.shape == (2, 3)
            return np.full((2, 3), 0.5, np.float32), state

    assert evaluate(Pusher(0), make(Arm, 2), 4).returns.tolist() == [1.5] * 4


def test_episodes_without_an_end_are_given_up():
    with pytest.raises(ArgumentError, match="max_steps: found 1 episodes in 30 steps, expected 2"):
        evaluate(Coin(2), make(Countdown([10, 100])), 2, max_steps=30)


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        # By hand: a quarter of 8 is 2 at each end; of 5 and of 7 it is 1; of 3 none.
        ([1, 2, 3, 4, 5, 6, 7, 100], 4.5),
        ([-50, 1, 2, 3, 90], 2.0),
        ([7, 1, 2, 3, 4, 5, 6], 4.0),
        ([1, 2, 6], 3.0),
        ([5], 5.0),
    ],
)
def test_the_interquartile_mean_is_that_of_the_middle_half(scores, expected):
    assert interquartile_mean(np.array(scores, float)) == pytest.approx(expected)


def test_the_interquartile_mean_is_the_trimmed_mean_of_scipy():
    trim_mean = pytest.importorskip("scipy.stats").trim_mean
    random = np.random.default_rng(0)
    for count in range(1, 30):
        scores = random.normal(size=count)
        assert interquartile_mean(scores) == pytest.approx(trim_mean(scores, 0.25), abs=1e-12)


def test_the_bootstrap_of_the_mean_has_its_known_distribution():
    # The mean of n draws from two values is binomial: its 2.5 % quantiles are known without drawing.
    scores = [0.0, 1.0] * 50
    found = estimate({"task": scores}, mean, samples=20_000)
    assert found.value == 0.5
    # Binomial(100, 1/2): P(X <= 39) = 0.0176, P(X <= 40) = 0.0284.
    assert (found.low, found.high) == (0.40, 0.60)


def test_samples_are_drawn_within_each_task():
    # Runs of a task agree, so every stratified sample is the same; drawing over all runs would vary.
    found = estimate({"a": [0.0, 0.0, 0.0], "b": [10.0, 10.0]}, mean, samples=500)
    assert found == (4.0, 4.0, 4.0)


def test_intervals_are_repeatable_and_shrink_with_their_confidence():
    scores = {"task": np.random.default_rng(0).normal(size=10).tolist()}
    wide, again, narrow = (estimate(scores, confidence=c, samples=2000) for c in (0.95, 0.95, 0.5))
    assert wide == again
    assert wide.low < narrow.low < wide.value < narrow.high < wide.high


def test_estimates_agree_with_rliable():
    rly = pytest.importorskip("rliable.library")
    from rliable import metrics

    random = np.random.default_rng(3)
    table = random.normal(size=(5, 4)) + np.arange(4)
    points, intervals = rly.get_interval_estimates(
        {"agent": table}, lambda x: np.array([metrics.aggregate_iqm(x)]), reps=20_000
    )
    found = estimate({str(task): table[:, task].tolist() for task in range(4)}, samples=20_000)
    assert found.value == pytest.approx(points["agent"][0], abs=1e-12)
    width = found.high - found.low
    assert [found.low, found.high] == pytest.approx(intervals["agent"][:, 0].tolist(), abs=0.03 * width)


@pytest.mark.parametrize(
    ("scores", "words"),
    [({}, "found no task"), ({"pong": []}, "scores of pong"), ({"pong": [1.0, math.nan]}, "scores of pong")],
)
def test_scores_without_runs_or_with_nan_are_refused(scores, words):
    with pytest.raises(DataError, match=words):
        estimate(scores)


def test_curves_meet_at_common_steps():
    steps, values = at_common_steps([([0, 100], [0, 1]), ([50, 200], [0, 3])])
    assert (steps[0], steps[-1]) == (50, 100)
    np.testing.assert_allclose(values[[0, -1]], [[0.5, 0.0], [1.0, 1.0]])


@pytest.mark.parametrize(
    ("curves", "words"),
    [
        ([], "found none"),
        ([([], [])], "found 0 steps"),
        ([([1, 2], [0])], "found 2 steps and 1 returns"),
        ([([2, 1], [0, 0])], "growing steps"),
        ([([0, 1], [0, 0]), ([5, 6], [0, 0])], "no common steps"),
    ],
)
def test_curves_that_cannot_be_compared_are_refused(curves, words):
    with pytest.raises(DataError, match=words):
        at_common_steps(curves, "gtrxl")


def test_learning_curves_have_a_line_and_a_band_for_each_agent(tmp_path):
    random = np.random.default_rng(0)
    steps = np.arange(0, 40_000, 1000)
    runs = {
        "gtrxl": [(steps, np.tanh(steps / 9000) + 0.1 * random.normal(size=40)) for _ in range(5)],
        "lstm": [(steps, 0.1 * random.normal(size=40)) for _ in range(2)],
    }
    figure = learning_curves(runs, levels={"chance": 0.0}, title="T-maze")
    (axes,) = figure.axes
    assert [line.get_label() for line in axes.get_lines()[:2]] == ["gtrxl (5 seeds)", "lstm (2 seeds)"]
    assert len(axes.collections) == 2
    write_figure(tmp_path / "curves.png", figure)
    assert Image.open(tmp_path / "curves.png").width > 500


@pytest.mark.parametrize("name", ["manyheads/TMaze-v0", "manyheads/RepeatPrevious-v0", "manyheads/HiddenCartPole-v0"])
def test_play_of_own_tasks_becomes_an_animation(name, tmp_path):
    env = make(name, 1, render_mode="rgb_array")
    recording = record(Coin(2), env, deterministic=False)
    assert recording.episodes == 1
    assert len(recording.frames) == len(recording.rewards) == 1 + evaluate(Coin(2), env, 1, deterministic=False).lengths
    write_gif(tmp_path / "play.gif", recording.frames)
    with Image.open(tmp_path / "play.gif") as image:
        assert max(image.size) >= 160
        assert image.n_frames > 3


def test_play_of_atari_becomes_an_animation(tmp_path):
    pytest.importorskip("ale_py")
    recording = record(Coin(6), make("pong-42", 2), max_steps=20, deterministic=False)
    assert (len(recording.frames), recording.episodes) == (20, 0)
    write_gif(tmp_path / "pong.gif", recording.frames, scale=3)
    with Image.open(tmp_path / "pong.gif") as image:
        assert image.size == (126, 126)


def test_frames_are_enlarged_without_blur(tmp_path):
    frames = [np.zeros((2, 3, 3), np.uint8), np.zeros((2, 3, 3), np.uint8)]
    frames[0][0, 0], frames[1][1, 2] = (255, 0, 0), (0, 0, 255)
    write_gif(tmp_path / "two.gif", frames, scale=5, fps=10)
    with Image.open(tmp_path / "two.gif") as image:
        for index, frame in enumerate(frames):
            image.seek(index)
            assert image.info["duration"] == 100
            shown = np.asarray(image.convert("RGB"))
            np.testing.assert_array_equal(shown, frame.repeat(5, axis=0).repeat(5, axis=1))


def test_an_environment_without_pictures_is_refused():
    with pytest.raises(ArgumentError, match="found no pictures"):
        record(Coin(2), make("manyheads/TMaze-v0", 1))


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"path": "play.mp4"}, ArgumentError, r"ends in \.gif"),
        ({"fps": 80}, ArgumentError, "fps: found 80"),
        ({"scale": 0}, ArgumentError, "scale: found 0"),
        ({"frames": []}, DataError, "frames: found the shapes"),
        ({"frames": [np.zeros((2, 2, 3))]}, DataError, "expected bytes"),
    ],
)
def test_animations_of_another_form_are_refused(change, error, words, tmp_path):
    settings = {"path": "play.gif", "frames": [np.zeros((2, 2, 3), np.uint8)], "fps": 10.0, "scale": 1, **change}
    path = tmp_path / settings.pop("path")
    with pytest.raises(error, match=words):
        write_gif(path, settings.pop("frames"), **settings)
