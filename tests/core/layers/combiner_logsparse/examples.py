"""Configurations that the battery checks; the first is the plain one."""

EXAMPLES = {
    "combiner-logsparse": {"plain": {"heads": 2}, "growing": {"heads": 3, "max_len": 32, "bias": True}},
}
