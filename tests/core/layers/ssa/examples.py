"""Configurations that the battery checks; the first is the plain one."""

EXAMPLES = {
    "ssa": {
        "plain": {"heads": 2, "ratio": 0.5},
        "causal": {"heads": 2, "ratio": 0.5, "causal": True},
        "local": {"heads": 2, "ratio": 0.5, "spread": 0.5},
        "growing": {"heads": 2, "ratio": 0.5, "causal": True, "max_len": 32, "bias": True},
    },
}
