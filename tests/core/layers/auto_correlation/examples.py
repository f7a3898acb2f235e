"""Configurations that the battery checks; the first is the plain one."""

EXAMPLES = {
    "auto-correlation": {
        "plain": {"heads": 2, "factor": 1.6},
        "per-head": {"heads": 2, "factor": 1.6, "per_head": True, "bias": False},
        "all": {"heads": 1, "factor": 9},
        "cross": {"heads": 2, "factor": 1.6, "context_dim": 5},
    },
}
