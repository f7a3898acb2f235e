"""Configurations that the battery checks; the first is the plain one."""

EXAMPLES = {
    "gtrxl": {
        "plain": {"heads": 2, "memory": 3, "hidden": 8},
        "memory-gradient": {"heads": 2, "memory": 3, "hidden": 8, "memory_gradient": True},
        "residual": {"heads": 2, "memory": 3, "gate": "residual", "head_width": 4},
        "input": {"heads": 2, "memory": 3, "hidden": 8, "gate": "input"},
        "output": {"heads": 2, "memory": 3, "hidden": 8, "gate": "output"},
        "highway": {"heads": 2, "memory": 3, "hidden": 8, "gate": "highway"},
        "sigmoid-tanh": {"heads": 2, "memory": 3, "hidden": 8, "gate": "sigmoid-tanh", "gate_bias": 0.0},
    },
}
