"""Configurations that the battery checks; the first is the plain one."""

EXAMPLES = {
    "fourier-block": {
        "plain": {"heads": 2, "length": 12, "modes": 4},
        "lowest": {"heads": 1, "length": 7, "modes": 3, "select": "lowest", "bias": False},
        "all": {"heads": 1, "length": 8, "modes": 5},
    },
}
