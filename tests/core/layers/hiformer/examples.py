"""Configurations that the battery checks; the first is the plain one."""

EXAMPLES = {
    "heterogeneous": {
        "plain": {"fields": 5, "heads": 2},
        "pruned": {"fields": 5, "heads": 1, "queries": 2, "expansion": 1},
    },
    "hiformer": {
        "plain": {"fields": 5, "heads": 2},
        "low-rank": {"fields": 5, "heads": 2, "rank": 4},
        "pruned": {"fields": 5, "heads": 1, "queries": 2, "expansion": 1},
        "low-rank-pruned": {"fields": 5, "heads": 1, "rank": 7, "queries": 1},
    },
}
CASES = {
    "heterogeneous": {"grid": (5,)},
    "hiformer": {"grid": (5,)},
}
