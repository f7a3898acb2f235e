"""The benchmark sets of the papers."""
