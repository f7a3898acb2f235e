"""Configurations that the battery checks; the first is the plain one."""

EXAMPLES = {
    "extractor-she": {
        "plain": {"max_len": 32},
        "lag": {"max_len": 32, "index": "lag"},
        "width": {"max_len": 32, "width": 4},
    },
    "extractor-he": {
        "plain": {"max_len": 32},
        "lag": {"max_len": 32, "index": "lag"},
    },
    "extractor-we": {
        "plain": {"max_len": 32},
        "lag": {"max_len": 32, "index": "lag"},
    },
    "extractor-me": {"plain": {}, "width": {"width": 4}},
}
CASES = {
    "extractor-she": {"grid": (9,)},
    "extractor-he": {"grid": (9,)},
    "extractor-we": {"grid": (9,)},
}
