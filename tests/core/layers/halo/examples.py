"""Configurations that the battery checks; the first is the plain one."""

EXAMPLES = {
    "halo": {
        "plain": {"heads": 2, "block": 2, "halo": 1},
        "no halo": {"heads": 3, "block": 3, "halo": 0, "bias": True},
        "sliding window": {"heads": 2, "block": 1, "halo": 1},
        "zero border": {"heads": 2, "block": 2, "halo": 1, "border": "zero", "bias": True},
        "wide halo": {"heads": 1, "block": 2, "halo": 3},
    },
}
CASES = {
    "halo": {"grid": (3, 5)},
}
