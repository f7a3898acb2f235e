"""Configurations that the battery checks; the first is the plain one."""

EXAMPLES = {
    "softmax": {
        "plain": {"heads": 2},
        "causal": {"heads": 2, "causal": True},
        "window": {"heads": 2, "causal": True, "window": 4},
        "growing": {"heads": 2, "causal": True, "max_len": 32, "bias": True},
        "cross": {"heads": 2, "context_dim": 5},
        "rotary": {"heads": 3, "rotary": 100.0},
        "rotary, window": {"heads": 1, "causal": True, "window": 4, "rotary": 10.0},
        "rotary, growing": {"heads": 3, "causal": True, "max_len": 32, "rotary": 10000.0},
    },
}
