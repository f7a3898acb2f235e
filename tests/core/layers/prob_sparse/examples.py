"""Configurations that the battery checks; the first is the plain one."""

EXAMPLES = {
    "prob-sparse": {
        "plain": {"heads": 2, "factor": 1},
        "causal": {"heads": 2, "factor": 1, "causal": True},
        "sum": {"heads": 2, "factor": 1, "causal": True, "running": "sum", "bias": False},
        "many": {"heads": 1, "factor": 2.6, "causal": True, "seed": 5},
    },
}
