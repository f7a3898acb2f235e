"""Environments: tasks of memory, Atari, and what every Gymnasium environment must pass before it is used."""
