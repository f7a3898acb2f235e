"""Configurations that the battery checks; the first is the plain one."""

EXAMPLES = {
    "fourier-cross": {
        "plain": {"heads": 2, "length": 12, "context_dim": 5, "modes": 4},
        "lowest": {"heads": 1, "length": 7, "context_dim": 5, "modes": 3, "select": "lowest", "bias": False},
        "short": {"heads": 1, "length": 8, "context_dim": 3, "context_length": 12, "modes": 5},
    },
}
