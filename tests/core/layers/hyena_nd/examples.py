"""Configurations that the battery checks; the first is the plain one."""

EXAMPLES = {
    "hyena-nd": {
        "plain": {"filter_width": 4},
        "all directions, learned": {"filter_width": 4, "directions": "all", "window": "learned"},
        "all directions, order 3": {"filter_width": 3, "directions": "all", "order": 3},
        "joint, order 3": {"filter_width": 3, "filter": "joint", "order": 3, "bands": 2, "causal": True},
        "joint, symmetric": {"filter_width": 3, "filter": "joint", "window": "symmetric", "directions": "all"},
        "joint, learned": {"filter_width": 3, "filter": "joint", "window": "learned"},
        "sequence, causal": {"axes": 1, "filter_width": 8, "causal": True, "bands": 2},
        "cube": {"axes": 3, "filter_width": 3, "window": "none", "causal": True},
    },
}
