"""Configurations that the battery checks; the first is the plain one."""

EXAMPLES = {
    "combiner-axial": {
        "plain": {"heads": 2},
        "horizontal": {"heads": 2, "plan": "horizontal", "bias": True},
        "rowmajor": {"heads": 2, "plan": "rowmajor"},
    },
}
CASES = {
    "combiner-axial": {"dim": 4, "grid": (3, 4)},
}
