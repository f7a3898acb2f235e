"""Configurations that the battery checks; the first is the plain one."""

EXAMPLES = {
    "combiner-fixed": {
        "plain": {"heads": 2, "segment": 3},
        "causal": {"heads": 2, "segment": 3, "causal": True, "bias": True},
        "by length": {"heads": 2},
        "growing": {"heads": 3, "segment": 3, "causal": True, "max_len": 32},
    },
}
