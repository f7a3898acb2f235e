"""Our own tasks: their rules, their seeds, and Gymnasium's and Stable-Baselines3's checks of environments."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import manyheads.rl.environments  # noqa: F401
from manyheads.core.errors import ArgumentError
from manyheads.rl.environments.hidden_cartpole import HiddenCartPoleVectorEnv
from manyheads.rl.environments.repeat_previous import RepeatPreviousEnv, RepeatPreviousVectorEnv
from manyheads.rl.environments.t_maze import DOWN, FORWARD, UP, TMazeEnv, TMazeVectorEnv

TASKS = [
    ("manyheads/TMaze-v0", {"corridor": 4}),
    ("manyheads/TMaze-v0", {"corridor": 4, "forward_action": True}),
    ("manyheads/RepeatPrevious-v0", {"k": 3}),
    ("manyheads/HiddenCartPole-v0", {}),
]


def play(vector, steps, seed, options=None):
    """Observations, rewards and ends of random actions."""
    random = np.random.default_rng(0)
    trace = [vector.reset(seed=seed, options=options)[0]]
    for _ in range(steps):
        actions = random.integers(vector.single_action_space.n, size=vector.num_envs)
        trace += vector.step(actions)[:4]
    return trace


def assert_same(left, right, *, exact=True):
    for a, b in zip(left, right, strict=True):
        if exact:
            np.testing.assert_array_equal(a, b)
        else:
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("name", "options"), TASKS)
@pytest.mark.filterwarnings("error")
def test_single_environments_pass_the_check_of_gymnasium(name, options):
    check_env(gym.make(name, render_mode="rgb_array", **options).unwrapped)


@pytest.mark.parametrize(("name", "options"), TASKS)
def test_single_environments_pass_the_check_of_stable_baselines3(name, options):
    checker = pytest.importorskip("stable_baselines3.common.env_checker")
    checker.check_env(gym.make(name, **options), warn=True)


@pytest.mark.parametrize(("name", "options"), TASKS)
def test_a_vector_plays_the_episodes_of_single_environments(name, options):
    vector = gym.make_vec(name, num_envs=3, **options)
    singles = SyncVectorEnv([lambda: gym.make(name, **options)] * 3)
    assert vector.metadata["autoreset_mode"] == AutoresetMode.NEXT_STEP
    assert vector.observation_space == singles.observation_space
    assert vector.action_space == singles.action_space
    assert_same(play(vector, 300, seed=5), play(singles, 300, seed=5))


@pytest.mark.parametrize(("name", "options"), TASKS)
def test_an_environment_does_not_depend_on_the_others(name, options):
    few, many = gym.make_vec(name, num_envs=1, **options), gym.make_vec(name, num_envs=4, **options)
    few.reset(seed=8), many.reset(seed=6)
    random = np.random.default_rng(0)
    for _ in range(200):
        actions = random.integers(few.single_action_space.n, size=4)
        alone, together = few.step(actions[2:3]), many.step(actions)
        for a, b in zip(alone[:4], together[:4], strict=True):
            np.testing.assert_array_equal(a[0], b[2])


@pytest.mark.parametrize(("name", "options"), TASKS)
def test_seeds_are_exact_and_differ(name, options):
    vector = gym.make_vec(name, num_envs=8, **options)
    first, again, other = (play(vector, 60, seed=s) for s in (1, np.int64(1), 2))
    assert_same(first, again)
    assert any(not np.array_equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize(("name", "options"), TASKS)
def test_the_step_after_an_end_is_a_filler(name, options):
    vector = gym.make_vec(name, num_envs=5, **options)
    vector.reset(seed=0)
    ended, fillers = np.zeros(5, bool), 0
    random = np.random.default_rng(1)
    for _ in range(400):
        actions = random.integers(vector.single_action_space.n, size=5)
        _, rewards, terminated, truncated, _ = vector.step(actions)
        assert not rewards[ended].any()
        assert not (terminated | truncated)[ended].any()
        fillers += ended.sum()
        ended = terminated | truncated
    assert fillers > 10


@pytest.mark.parametrize(("name", "options"), TASKS)
def test_later_steps_do_not_change_returned_arrays(name, options):
    vector = gym.make_vec(name, num_envs=2, **options)
    kept = list(vector.reset(seed=0)[0:1])
    copies = [kept[0].copy()]
    for _ in range(80):
        actions = np.zeros(2, np.int64)
        kept += [actions, *vector.step(actions)[:4]]
        copies += [a.copy() for a in kept[-5:]]
    assert_same(kept, copies)


def test_a_mask_resets_single_environments():
    vector = TMazeVectorEnv(3, corridor=5)
    vector.reset(seed=0)
    for _ in range(3):
        vector.step(np.zeros(3, int))
    observations, _ = vector.reset(options={"reset_mask": np.array([False, True, False])})
    assert observations[:, 2].tolist() == [1, 0, 1]


@pytest.mark.parametrize("corridor", [1, 2, 10, 50])
def test_the_way_of_the_cue_gives_one_and_the_other_minus_one(corridor):
    vector = TMazeVectorEnv(64, corridor=corridor)
    first, _ = vector.reset(seed=0)
    cue = first[:, :2].argmax(axis=1)
    assert (first.sum(axis=1) == 1).all()
    assert set(cue) == {UP, DOWN}
    for step in range(corridor):
        observations, rewards, terminated, truncated, _ = vector.step(1 - cue)
        assert not any(part.any() for part in (rewards, terminated, truncated))
        expected = [0, 0, 1, 0] if step < corridor - 1 else [0, 0, 0, 1]
        assert (observations == expected).all()
    answers = np.where(np.arange(64) < 32, cue, 1 - cue)
    observations, rewards, terminated, truncated, _ = vector.step(answers)
    assert rewards.tolist() == [1.0] * 32 + [-1.0] * 32
    assert terminated.all()
    assert not truncated.any()
    assert not observations.any()
    assert (vector.step(answers)[0][:, :2].sum(axis=1) == 1).all()


def test_the_cue_is_fair():
    vector = TMazeVectorEnv(1, corridor=1)
    ups = sum(vector.reset(seed=s)[0][0, UP] for s in range(1000))
    # Four standard errors of 1000 fair draws.
    assert abs(ups - 500) < 4 * 1000**0.5 / 2


def test_walking_by_itself_costs_standing_still_and_is_truncated():
    maze = TMazeEnv(corridor=2, forward_action=True, max_episode_steps=4)
    first, _ = maze.reset(seed=0)
    cue = int(first[:2].argmax())
    seen, reward, *_ = maze.step(UP)
    assert reward == -0.1
    np.testing.assert_array_equal(seen, first)
    assert maze.step(FORWARD)[1] == 0.0
    assert maze.step(FORWARD)[0].tolist() == [0, 0, 0, 1]
    _, reward, terminated, truncated, _ = maze.step(FORWARD)
    assert (reward, terminated, truncated) == (-0.1, False, True)
    maze.reset(seed=0)
    maze.step(FORWARD), maze.step(FORWARD)
    assert maze.step(cue)[1:4] == (1.0, True, False)


@pytest.mark.parametrize(("k", "decks"), [(1, 1), (4, 1), (32, 2), (51, 1)])
def test_repeat_previous_plays_like_popgym(k, decks):
    popgym = pytest.importorskip("popgym.envs.repeat_previous")
    ours = RepeatPreviousVectorEnv(2, k=k, decks=decks)
    theirs = SyncVectorEnv([lambda: popgym.RepeatPrevious(num_decks=decks, k=k)] * 2)
    assert_same(play(ours, 250, seed=3), play(theirs, 250, seed=3))


@pytest.mark.parametrize(("k", "decks"), [(1, 1), (4, 1), (20, 2)])
def test_perfect_memory_returns_one_in_repeat_previous(k, decks):
    game = RepeatPreviousEnv(k=k, decks=decks)
    seen, total, steps = [game.reset(seed=1)[0]], 0.0, 0
    ended = False
    while not ended:
        suit, reward, ended, _, _ = game.step(seen[-k] if len(seen) >= k else 0)
        seen.append(suit)
        total += reward
        steps += 1
    assert total == pytest.approx(1.0)
    assert steps == 52 * decks - 1
    assert np.bincount(seen).tolist() == [13 * decks] * 4


def test_hidden_cartpole_moves_like_cartpole_of_gymnasium():
    ours = HiddenCartPoleVectorEnv(3)
    theirs = SyncVectorEnv([lambda: gym.make("CartPole-v1")] * 3)
    mine, full = play(ours, 400, seed=11), play(theirs, 400, seed=11)
    limits = np.array([2.4, np.deg2rad(12)])
    hidden = [a[:, [0, 2]] / limits if a.ndim == 2 else a for a in full]
    assert_same(mine, hidden, exact=False)


def test_the_time_limit_of_hidden_cartpole_is_a_truncation():
    vector = gym.make_vec("manyheads/HiddenCartPole-v0", num_envs=1)
    vector.reset(seed=0)
    poles = vector.unwrapped
    ends = []
    for step in range(1, 1002):
        # The full state, by which balancing is easy.
        position, drift, angle, speed = poles.state[:, 0]
        _, reward, terminated, truncated, _ = vector.step(
            np.array([int(3 * angle + speed + 0.1 * position + 0.3 * drift > 0)])
        )
        assert reward[0] == (0.0 if step == 501 else 1.0)
        if terminated[0] or truncated[0]:
            ends.append((step, bool(terminated[0]), bool(truncated[0])))
    assert ends == [(500, False, True), (1001, False, True)]


@pytest.mark.parametrize(("name", "options"), TASKS)
def test_pictures_show_every_environment(name, options):
    vector = gym.make_vec(name, num_envs=2, render_mode="rgb_array", **options)
    vector.reset(seed=0)
    shown = set()
    for step in range(60):
        vector.step(np.full(2, step % vector.single_action_space.n))
        for picture in vector.render():
            assert picture.dtype == np.uint8
            assert picture.ndim == 3
            assert picture.shape[2] == 3
            shown.add(picture.tobytes())
    assert len(shown) > 4


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: TMazeVectorEnv(2, corridor=0), "corridor: found 0, expected an integer of at least 1"),
        (lambda: TMazeVectorEnv(2, corridor=2.5), "corridor: found 2.5"),
        (lambda: TMazeVectorEnv(0), "num_envs: found 0"),
        (lambda: TMazeVectorEnv(2, render_mode="human"), "render_mode: found 'human'"),
        (lambda: RepeatPreviousVectorEnv(2, k=52), "k: found 52, expected less than the 52 cards"),
        (lambda: TMazeEnv().step(0), r"call reset\(\)"),
        (lambda: TMazeVectorEnv(2).step(np.zeros(2, int)), r"call reset\(\)"),
        (lambda: TMazeVectorEnv(2).reset(seed=[1, 2, 3]), "found 3 seeds, expected 2"),
    ],
)
def test_wrong_options_are_refused_in_words(make, words):
    with pytest.raises(ArgumentError, match=words):
        make()


def test_a_step_after_the_end_is_refused():
    maze = TMazeEnv(corridor=1)
    maze.reset(seed=0)
    maze.step(0), maze.step(0)
    with pytest.raises(ArgumentError, match="no running episode"):
        maze.step(0)


def test_an_action_out_of_range_is_refused():
    vector = TMazeVectorEnv(3)
    vector.reset(seed=0)
    vector.step(np.zeros(3, int))
    with pytest.raises(ArgumentError, match="environment 1, step 2: action: found 2, expected 0 to 1"):
        vector.step(np.array([0, 2, 1]))


@pytest.mark.parametrize("name", ["TMaze", "RepeatPrevious", "HiddenCartPole"])
def test_a_task_goes_on_from_its_stored_state(name):
    first, second = (gym.make_vec(f"manyheads/{name}-v0", num_envs=3) for _ in range(2))
    first.reset(seed=1)
    second.reset(seed=2)
    actions = np.random.default_rng(0).integers(0, 2, (80, 3))
    for action in actions[:20]:
        first.step(action)
    second.unwrapped.set_state(first.unwrapped.get_state())
    for action in actions[20:]:
        for a, b in zip(first.step(action)[:4], second.step(action)[:4], strict=True):
            np.testing.assert_array_equal(a, b)
