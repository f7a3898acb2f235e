"""Configurations that the battery checks; the first is the plain one."""

EXAMPLES = {
    "subpixel": {
        "plain": {"heads": 2, "points": 2},
        "three heads in small chunks": {"heads": 3, "points": 1, "chunk": 5},
        "pixels only": {"heads": 2, "points": 3, "global_token": False},
    },
}
CASES = {
    "subpixel": {"grid": (3, 4)},
}
