"""Configurations that the battery checks; the first is the plain one."""

EXAMPLES = {
    "axial": {
        "plain": {"heads": 2},
        "columns, causal": {"heads": 2, "axis": 0, "causal": True, "bias": True},
        "rows, causal": {"heads": 3, "axis": 1, "causal": True},
    },
}
CASES = {
    "axial": {"grid": (3, 4)},
}
