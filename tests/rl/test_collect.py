"""Collection from the emulator: state labels against the picture, continuation, resizing, policies."""

from __future__ import annotations

import numpy as np
import pytest

from manyheads.core.errors import ArgumentError, DataError, UnknownNameError
from manyheads.rl.pretraining import collect as collecting
from manyheads.rl.pretraining.collect import Emulator, HeldRandom, collect, resize_by_area
from manyheads.rl.pretraining.games import labels_of
from manyheads.rl.pretraining.recording import Recording

pytest.importorskip("ale_py")

# label -> colour of the object, rows and columns of the picture where it is searched, axis of its place (0 row, 1
# column), most pixels of the object: more of that colour is something else.
PLACES = {
    "pong": {
        "ball_x": ((236, 236, 236), (34, 194), (0, 160), 1, 8),
        "ball_y": ((236, 236, 236), (34, 194), (0, 160), 0, 8),
        "player_y": ((92, 186, 92), (34, 194), (0, 160), 0, 64),
        "enemy_y": ((213, 130, 74), (34, 194), (0, 160), 0, 64),
    },
    "breakout": {
        "ball_x": ((200, 72, 72), (94, 188), (8, 152), 1, 8),
        "ball_y": ((200, 72, 72), (94, 188), (8, 152), 0, 8),
        "player_x": ((200, 72, 72), (189, 195), (8, 152), 1, 99),
    },
    "freeway": {
        "player_y": ((252, 252, 84), (14, 195), (40, 52), 0, 99),
        "car_0_x": ((167, 26, 26), (26, 38), (8, 160), 1, 999),
        "car_9_x": ((210, 210, 64), (170, 182), (8, 160), 1, 999),
    },
    "boxing": {
        "player_x": ((214, 214, 214), (35, 180), (30, 130), 1, 9999),
        "player_y": ((214, 214, 214), (35, 180), (30, 130), 0, 9999),
        "enemy_x": ((0, 0, 0), (35, 180), (30, 130), 1, 9999),
        "enemy_y": ((0, 0, 0), (35, 180), (30, 130), 0, 9999),
    },
    "ms_pacman": {
        "player_x": ((210, 164, 74), (0, 170), (0, 160), 1, 999),
        "player_y": ((210, 164, 74), (0, 170), (0, 160), 0, 999),
    },
}


def screens(game, steps):
    """Colour screens and RAM of random play."""
    emulator = Emulator(game, 1, size=21)
    play = HeldRandom(len(emulator.actions), 4, np.random.default_rng(0))
    found = []
    for index in range(steps):
        emulator.step(play(emulator.frame, index == 0))
        if emulator.over:
            emulator = Emulator(game, index + 2, size=21)
        found.append((emulator.ale.getScreenRGB(), emulator.ram))
    return [np.stack(one) for one in zip(*found, strict=True)]


@pytest.mark.parametrize("game", PLACES)
def test_every_position_byte_moves_with_its_object_in_the_picture(game):
    rgb, ram = screens(game, 900)
    labels = {label.name: label for label in labels_of(game)}
    for name, (colour, (top, bottom), (left, right), axis, most) in PLACES[game].items():
        here = (rgb[:, top:bottom, left:right] == np.array(colour, np.uint8)).all(-1)
        count = here.sum((1, 2))
        places = np.arange(here.shape[1 + axis])
        place = (here.sum(2 - axis) * places).sum(1) / np.maximum(count, 1)
        # a car that leaves at one side and comes in at the other has no one place
        whole = (count > 0) & (count <= most) & (count >= 0.9 * np.median(count[count > 0]))
        whole &= labels[name].visible(ram)
        assert whole.sum() > 100, name
        correlation = np.corrcoef(place[whole], labels[name].values(ram)[whole])[0, 1]
        assert abs(correlation) > 0.98, (name, correlation)


def test_the_ball_is_invisible_where_its_label_says_so():
    rgb, ram = screens("pong", 600)
    seen = (rgb[:, 34:194] == 236).all(-1).any((1, 2))
    visible = labels_of("pong")[0].visible(ram)
    assert (seen == visible).mean() > 0.99


def test_a_resized_pixel_is_the_mean_of_its_area():
    screen = np.random.default_rng(0).integers(0, 256, (10, 7)).astype(np.uint8)
    found = resize_by_area(screen, 4)
    for row in range(4):
        for column in range(4):
            total = 0.0
            for i in range(10):
                for j in range(7):
                    high = max(0, min(i + 1, (row + 1) * 2.5) - max(i, row * 2.5))
                    wide = max(0, min(j + 1, (column + 1) * 1.75) - max(j, column * 1.75))
                    total += high * wide * float(screen[i, j])
            assert abs(found[row, column] - total / (2.5 * 1.75)) <= 0.51


def test_random_play_holds_its_actions():
    play = HeldRandom(6, 4, np.random.default_rng(0))
    actions = [play(np.zeros((3, 2, 2)), index == 0) for index in range(8000)]
    changes = np.flatnonzero(np.diff(actions)) + 1
    # a new draw is the same action once in six
    assert 8000 / len(changes) == pytest.approx(4 * 6 / 5, rel=0.1)


def test_a_continued_collection_is_that_of_an_unbroken_one(tmp_path, monkeypatch):
    settings = {"size": 21, "seed": 3}
    whole = collect("breakout", 700, tmp_path / "whole.safetensors", **settings)
    assert len(whole.bounds) > 2
    cut = tmp_path / "cut.safetensors"
    monkeypatch.setattr(collecting, "WRITE_EVERY", -1.0)
    played = collecting._episode

    def stop(game, facts, number, *rest):
        if number == 2:
            raise KeyboardInterrupt
        return played(game, facts, number, *rest)

    monkeypatch.setattr(collecting, "_episode", stop)
    with pytest.raises(KeyboardInterrupt):
        collect("breakout", 700, cut, **settings)
    unfinished = Recording.load(cut)
    assert not unfinished.facts["complete"]
    assert len(unfinished.bounds) == 2
    monkeypatch.setattr(collecting, "_episode", played)
    assert collect("breakout", 700, cut, **settings).digest == whole.digest
    assert cut.read_bytes() == (tmp_path / "whole.safetensors").read_bytes()


def test_a_longer_collection_keeps_what_there_is(tmp_path):
    path = tmp_path / "x.safetensors"
    short = collect("breakout", 300, path, size=21)
    longer = collect("breakout", 400, path, size=21)
    assert (longer.frames[:300] == short.frames).all()
    assert longer.digest == collect("breakout", 400, size=21).digest
    with pytest.raises(DataError, match="found 400 frames, expected 300 or fewer"):
        collect("breakout", 300, path, size=21)
    with pytest.raises(DataError, match="seed: found 0, expected 1"):
        collect("breakout", 400, path, size=21, seed=1)


def test_a_policy_plays_and_gets_the_stack(tmp_path):
    seen = []

    def policy(observation, first):
        seen.append((observation.shape, first))
        return 1

    made = collect("pong", 50, policy=policy, policy_name="fire", size=21)
    assert seen == [((3, 21, 21), True), *[((3, 21, 21), False)] * 49]
    assert (made.actions == 1).all()
    assert made.facts["policy"] == "fire"


def test_frames_are_the_larger_of_two_screens():
    emulator = Emulator("pong", 0, size=84)
    kept = []
    act = emulator.ale.act
    emulator.ale = type("Ale", (), {"act": None, "getScreenGrayscale": None})()
    screen = iter([np.full((210, 160), 10, np.uint8), np.full((210, 160), 7, np.uint8)])
    emulator.ale.act = lambda action: kept.append(action) or 1
    emulator.ale.getScreenGrayscale = lambda: next(screen)
    assert emulator.step(0) == 4
    assert len(kept) == 4
    assert (emulator.frame == 10).all()
    assert callable(act)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"frames": 0}, "frames: found 0"),
        ({"hold": 0}, "hold: found 0"),
        ({"policy": lambda seen, first: 0}, "policy_name"),
        ({"policy": lambda seen, first: 9, "policy_name": "wrong"}, "found the action 9, expected 0 to 5"),
    ],
)
def test_wrong_arguments_are_refused(arguments, words):
    with pytest.raises(ArgumentError, match=words):
        collect("pong", **{"frames": 10, "size": 21, **arguments})


def test_an_unknown_game_is_told_with_the_nearest_name():
    with pytest.raises(UnknownNameError, match="did you mean 'ms_pacman'"):
        collect("mspacman", 10)
    with pytest.raises(UnknownNameError, match="state labels"):
        labels_of("tennis")
