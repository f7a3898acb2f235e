"""A small recording without an emulator: a ball that moves across a black picture, in episodes of unequal length."""

from __future__ import annotations

import numpy as np

from manyheads.rl.pretraining.recording import Recording


def moving_ball(lengths=(40, 9, 60, 55, 50), size=14, seed=0):
    """RAM 49 and 54 hold the place of the ball, 51 and 50 the places of two paddles, as in Pong."""
    random = np.random.default_rng(seed)
    frames, ram, episodes = [], [], []
    for number, length in enumerate(lengths):
        place, speed = random.uniform(1, size - 2, 2), random.uniform(0.3, 1.2, 2) * random.choice([-1, 1], 2)
        paddles = random.integers(1, size - 1, 2)
        for _ in range(length):
            frame, state = np.zeros((size, size), np.uint8), np.zeros(128, np.uint8)
            x, y = place.round().astype(int)
            frame[y, x] = 255
            paddles = (paddles + random.integers(-1, 2, 2)).clip(0, size - 1)
            frame[paddles[0], 0], frame[paddles[1], size - 1] = 200, 150
            state[[49, 54, 50, 51]] = x, y + 1, *paddles
            frames.append(frame)
            ram.append(state)
            episodes.append(number)
            place = place + speed
            speed = np.where((place < 0.5) | (place > size - 1.5), -speed, speed)
            place = place.clip(0.5, size - 1.5)
    count = len(frames)
    return Recording(
        np.stack(frames),
        random.integers(0, 3, count).astype(np.int32),
        np.zeros(count, np.float32),
        np.array(episodes, np.int32),
        np.stack(ram),
        {"game": "pong", "size": size, "complete": True},
    )
