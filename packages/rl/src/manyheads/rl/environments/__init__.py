"""Environments: tasks of memory, Atari, and the checks that every Gymnasium environment passes.

Importing this package makes ``gymnasium.make("manyheads/TMaze-v0")`` work, and the other names of ``names.py``.
"""

from manyheads.rl.environments.names import register_tasks

register_tasks()
