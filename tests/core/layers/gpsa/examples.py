"""Configurations that the battery checks; the first is the plain one."""

EXAMPLES = {
    "gpsa": {
        "plain": {"heads": 2},
        "biases": {"heads": 3, "bias": True, "alpha": 0.5, "gate": -1.0},
        "not local": {"heads": 2, "alpha": None},
    },
}
CASES = {
    "gpsa": {"grid": (3, 4)},
}
