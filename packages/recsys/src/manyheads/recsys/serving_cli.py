"""The commands of ``manyheads recsys`` that take a fitted model to where it answers requests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from manyheads.lab.command import Outcome


def export(model: Path, /, *, out: Path, shared: tuple[str, ...] = ()) -> Outcome:
    """Writes a fitted model as a folder that answers without torch: ONNX, encoder, labels, calibration.

    Args:
        model: the folder that 'fit' saved, or runs/NAME/HASH/seed-N of 'train'.
        out: the folder that is written.
        shared: columns that all candidates of a request share, such as the user's and the context's; what they give
            is then computed once a request.
    """
    from rich.console import Group

    from manyheads.lab.terminal import table
    from manyheads.recsys.recommender import Recommender
    from manyheads.recsys.serving.export import export as write

    done = write(Recommender.load(model), out, shared=shared)
    files = {path.name: path.stat().st_size for path in sorted(out.iterdir())}
    document = {"folder": str(out), "parity": done.parity, "shared_graphs": done.shared_graphs, "files": files}
    shown = table(("file", "bytes"), [(name, f"{size:,}") for name, size in files.items()])
    closing = [f"largest difference from torch: {done.parity:.1e}"]
    if shared and not done.shared_graphs:
        closing.append("shared: this model computes nothing of these columns apart; they are encoded once and repeated")
    return Outcome(document, Group(shown, *closing, f"next: manyheads recsys serve {out}"))


commands: dict[str, Callable[..., Outcome]] = {"export": export}
