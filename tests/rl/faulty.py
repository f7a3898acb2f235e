"""Environments with a fault each, for the tests of the checks and of the watchdog."""

from __future__ import annotations

import os
import time

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Discrete


class Faulty(gym.Env):
    """Works until step ``at``; then ``fault(self)`` runs, and may change ``observation`` and ``reward``."""

    def __init__(self, fault=None, *, at=3, in_reset=False, observation_space=None, action_space=None):
        self.observation_space = observation_space or Box(-1.0, 1.0, (2,), np.float32)
        self.action_space = action_space or Discrete(3)
        self.fault, self.at, self.in_reset = fault, at, in_reset

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        self.time = 0
        self.observation = self.observation_space.sample()
        if self.in_reset and self.fault:
            self.fault(self)
        return self.observation, {}

    def step(self, action):
        self.time += 1
        self.observation, self.reward = self.observation_space.sample(), 0.5
        if self.time == self.at and self.fault:
            self.fault(self)
        return self.observation, self.reward, False, False, {}


def hang(env):
    time.sleep(600)


def spin(env):
    while True:
        pass


def complain(env):
    raise RuntimeError("the joint\nis broken")


def die(env):
    os._exit(7)


def leave(env):
    raise SystemExit(3)
