"""Loads torch before the tests of the core, so that the settings above take hold."""

import torch  # noqa: F401
