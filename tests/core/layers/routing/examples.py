"""Configurations that the battery checks; the first is the plain one."""

EXAMPLES = {
    "routing": {
        "plain": {"heads": 2, "local_heads": 1, "clusters": 2, "window": 3, "block": 2},
        "causal": {"heads": 2, "local_heads": 1, "clusters": 3, "window": 3, "block": 3, "causal": True},
        "shared": {
            **{"heads": 2, "local_heads": 0, "clusters": 2, "window": 4, "block": 2},
            **{"causal": True, "shared_qk": True},
        },
        "latest-w": {
            **{"heads": 2, "local_heads": 1, "clusters": 2, "window": 2, "block": 2},
            **{"causal": True, "shared_qk": True, "assignment": "latest-w"},
        },
        "latest-w, all heads": {
            **{"heads": 3, "local_heads": 0, "clusters": 2, "window": 3, "block": 1},
            **{"causal": True, "shared_qk": True, "assignment": "latest-w"},
        },
    },
}
