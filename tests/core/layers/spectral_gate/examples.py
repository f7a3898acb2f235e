"""Configurations that the battery checks; the first is the plain one."""

EXAMPLES = {
    "spectral-gate": {
        "even": {"height": 3, "width": 4},
        "odd": {"height": 4, "width": 5},
        "one column": {"height": 5, "width": 1},
    },
}
