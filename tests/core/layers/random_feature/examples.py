"""Configurations that the battery checks; the first is the plain one."""

EXAMPLES = {
    "random-feature": {
        "plain": {"heads": 5},
        "biased": {"heads": 4, "biased": True, "seed": 3},
        "causal": {"heads": 4, "causal": True},
        "growing": {"heads": 4, "causal": True, "max_len": 32},
        "cross": {"heads": 4, "context_dim": 5},
    },
}
