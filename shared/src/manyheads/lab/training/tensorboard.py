"""Write TensorBoard events of a run; needs the extra ``tensorboard``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from manyheads.lab.install import missing


def event_writer(folder: Path) -> Callable[[Mapping[str, float], int], None]:
    """Return a function ``write(values, step)`` that logs scalars into ``folder``.

    Raises :class:`MissingPackageError` if tensorboard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise missing("tensorboard", "manyheads-core", "tensorboard") from error
    writer = SummaryWriter(str(folder))

    def write(values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            if name not in ("epoch", "step"):
                writer.add_scalar(name, value, step)
        writer.flush()

    return write
