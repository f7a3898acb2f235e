"""Configurations that the battery checks; the first is the plain one."""

EXAMPLES = {
    "lif": {
        "plain": {},
        "soft": {"reset": "soft", "surrogate": "atan", "threshold": 0.6},
        "attached": {"detach_reset": False, "surrogate": "triangle", "tau": 1.5, "threshold": 0.7},
        "bare": {
            "reset": "soft",
            "detach_reset": False,
            "decay_input": False,
            "surrogate": "rectangular",
            "alpha": 0.5,
        },
    },
}
CASES = {
    "lif": {"seed": 2},  # other draws leave a ReLU shut or neurons silent, and then little to check
}
