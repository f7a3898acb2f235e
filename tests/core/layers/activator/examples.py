"""Configurations that the battery checks; the first is the plain one."""

EXAMPLES = {
    "activator": {
        "plain": {"hidden": 8},
        "only-glu": {"hidden": 8, "second_block": False},
        "token": {"axis": "token", "tokens": 7},
        "silu": {"activation": "silu"},
    },
}
