"""Configurations that the battery checks; the first is the plain one."""

EXAMPLES = {
    "lmu": {
        "plain": {},
        "linear": {"order": 4, "window": 5, "activation": "identity"},
        "channels": {"order": 3, "window": 8, "activation": "tanh", "channels": 2},
    },
}
CASES = {
    "lmu": {"seed": 2},  # other draws leave a ReLU shut or neurons silent, and then little to check
}
