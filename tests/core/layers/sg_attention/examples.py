"""Configurations that the battery checks; the first is the plain one."""

EXAMPLES = {
    "sg-attention": {
        "plain": {"heads": 2, "ratio": 2, "window": 2},
        "three parts, short groups": {"heads": 2, "ratio": 3, "window": 3, "groups": (4, 3, 2), "bias": False},
        "three heads": {"heads": 3, "ratio": 2, "window": 3, "groups": (3, 1)},
    },
}
CASES = {
    # no window of a single cell: its significance would be equal to that of others
    "sg-attention": {"grid": (4, 6), "batch": 2},
}
