"""Configurations that the battery checks; the first is the plain one."""

EXAMPLES = {
    "ffnified": {
        "plain": {"kernel": 5},
        "small": {"kernel": 3, "norm": "layer"},
        "unequal": {"kernel": 1, "value_kernel": 3, "small_kernel": 1, "norm": "none"},
    },
    "ffnified-sequence": {
        "plain": {"kernel": 5},
        "causal": {"kernel": 5, "value_kernel": 3, "causal": True},
        "causal, batch norm": {"kernel": 1, "value_kernel": 5, "causal": True, "norm": "batch"},
    },
}
CASES = {
    "ffnified": {"grid": (3, 4)},
}
