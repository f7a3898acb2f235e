"""``torchrun … -m manyheads.recsys train EXPERIMENT --sharded``: embedding tables sharded over the processes."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial

from manyheads.lab.training.options import TrainOptions
from manyheads.lab.training.run import Fit


@dataclass(frozen=True)
class RecommenderOptions(TrainOptions):
    """Options of ``manyheads recsys train``."""

    sharded: bool = False
    """Under torchrun with TorchRec: the embedding tables are cut over the processes."""
    row_wise_from: int = 100_000
    """With --sharded: tables with so many rows or more are cut by rows, smaller ones lie on one process each."""

    def trainer(self) -> AbstractContextManager[Fit | None]:
        return self._sharded() if self.sharded else nullcontext()

    @contextmanager
    def _sharded(self) -> Generator[Fit]:
        from manyheads.lab.training.loop import fit_supervised
        from manyheads.recsys.distributed.placement import ShardedPlacement
        from manyheads.recsys.distributed.sharded_tables import process_group, torchrec

        torchrec()
        with process_group():
            yield partial(fit_supervised, placement=ShardedPlacement(self.row_wise_from))
