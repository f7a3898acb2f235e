"""Configurations that the battery checks; the first is the plain one."""

EXAMPLES = {
    "transformer-xl": {
        "plain": {"heads": 2, "memory": 3},
        "memory-gradient": {"heads": 2, "memory": 3, "memory_gradient": True},
        "wide-heads": {"heads": 3, "head_width": 5, "memory": 2, "memory_gradient": True, "norm": True},
        "long-memory": {"heads": 1, "memory": 20},
    },
}
