"""Configurations that the battery checks; the first is the plain one."""

EXAMPLES = {
    "ponet": {
        "plain": {"heads": 2, "segment": 3},
        "causal": {"heads": 2, "segment": 3, "causal": True},
        "growing": {"heads": 2, "segment": 3, "causal": True, "max_len": 32},
        "running": {"heads": 3, "segment": 3, "causal": True, "global_pooling": "running"},
    },
}
