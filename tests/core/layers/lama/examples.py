"""Configurations that the battery checks; the first is the plain one."""

EXAMPLES = {
    "lama": {
        "plain": {"heads": 2},
        "learned": {"heads": 3, "context": "learned", "temperature": True},
        "causal": {"heads": 2, "causal": True},
        "recurrent": {"heads": 2, "causal": True, "context": "learned", "temperature": True},
        "window": {"heads": 2, "causal": True, "window": 4},
        "growing": {"heads": 3, "causal": True, "max_len": 32, "temperature": True},
    },
}
