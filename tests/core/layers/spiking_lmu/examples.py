"""Configurations that the battery checks; the first is the plain one."""

EXAMPLES = {
    "spiking-lmu": {"plain": {}, "short": {"order": 5, "window": 6, "threshold": 0.5, "tau": 3.0, "surrogate": "atan"}},
}
CASES = {
    "spiking-lmu": {"seed": 2},  # other draws leave a ReLU shut or neurons silent, and then little to check
}
