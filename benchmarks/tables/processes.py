"""Table of what each job costs."""

from __future__ import annotations

from rows import markdown, read


def speed() -> str:
    """List CPU time and peak memory of the jobs, without trainings and keyword jobs."""
    rows = [row for row in read("processes") if "train" not in row["command"] or "auto-train" in row["command"]]
    rows = [row for row in rows if not row["job"].startswith("kws")]
    shown = [
        (f"`{row['command'].split(' --csv')[0]}`", row["cpu_s"], row["peak_mb"], row["machine"].split(",")[0])
        for row in rows
    ]
    return markdown(("one process", "CPU s", "peak MB", "processor"), shown)


TABLES = (speed,)
