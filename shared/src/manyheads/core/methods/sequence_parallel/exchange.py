"""Communication between ranks, with a counter of the bytes sent.

Tensors are sent as bytes, so that every backend can send every dtype. A collective counts the bytes that leave a rank:
``P - 1`` copies of a tensor for all others, or the parts for the other ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from manyheads.core.errors import ArgumentError, RankError

if TYPE_CHECKING:
    from jaxtyping import Shaped


@dataclass
class Traffic:
    """Counter of what this rank has sent and computed since the object was made.

    The eight-byte numbers that compare the shapes of the ranks are not counted.
    """

    forward: int = 0
    """Bytes sent in forward passes."""
    backward: int = 0
    """Bytes sent in backward passes."""
    scores: int = 0
    """Products of a query with a key in forward passes, over all rows and heads."""
    largest_block: int = 0
    """Scores of the largest call of the kernel."""

    def computed(self, scores: int) -> None:
        """Count one call of the kernel."""
        self.scores += scores
        self.largest_block = max(self.largest_block, scores)


class Ranks:
    """A process group with its traffic. Raises :class:`ArgumentError` without a process group."""

    def __init__(self, group: dist.ProcessGroup | None, traffic: Traffic | None = None) -> None:
        if not dist.is_available() or not dist.is_initialized():
            raise ArgumentError(
                "group: no process group is initialised, expected torch.distributed.init_process_group() before "
                "(torchrun sets what it needs)"
            )
        # None stays None: a reference to the default group would keep it alive after its destruction.
        self.group = group
        self.rank, self.size = dist.get_rank(self.group), dist.get_world_size(self.group)
        if self.rank < 0:
            raise ArgumentError("group: this process is not a member, expected a group that it belongs to")
        self.traffic = Traffic() if traffic is None else traffic

    def pass_on(self, tensor: Shaped[Tensor, "..."], *, backward: bool = False, tag: int = 0) -> Callable[[], Tensor]:
        """Start to send to the next rank and to receive the same shape from the previous one.

        The result waits for the received tensor and returns it.
        """
        outgoing = _bytes(tensor)
        incoming = torch.empty_like(outgoing)
        after, before = (self._global((self.rank + step) % self.size) for step in (1, -1))
        self._count(outgoing.numel(), backward)
        with self._watched():
            works = dist.batch_isend_irecv(
                [
                    dist.P2POp(dist.isend, outgoing, after, self.group, tag),
                    dist.P2POp(dist.irecv, incoming, before, self.group, tag),
                ]
            )

        def arrived() -> Tensor:
            with self._watched():
                for work in works:
                    work.wait()
            return incoming.view(tensor.dtype).view(tensor.shape)

        return arrived

    def all_gather(
        self, tensor: Shaped[Tensor, "*any"], *, backward: bool = False, count: bool = True
    ) -> list[Shaped[Tensor, "*any"]]:
        """The tensors of all ranks, in the order of the ranks."""
        own = _bytes(tensor)
        parts = [torch.empty_like(own) for _ in range(self.size)]
        if count:
            self._count(own.numel() * (self.size - 1), backward)
        with self._watched():
            dist.all_gather(parts, own, group=self.group)
        return [part.view(tensor.dtype).view(tensor.shape) for part in parts]

    def all_to_all(
        self, parts: Sequence[Shaped[Tensor, "*any"]], *, backward: bool = False
    ) -> list[Shaped[Tensor, "*any"]]:
        """Send the i-th part to rank i; the i-th result comes from rank i. All parts have the same shape."""
        outgoing = torch.stack(list(parts))
        sent = _bytes(outgoing)
        received = torch.empty_like(sent)
        self._count(sent.numel() // self.size * (self.size - 1), backward)
        with self._watched():
            dist.all_to_all_single(received, sent, group=self.group)
        return list(received.view(outgoing.dtype).view(outgoing.shape).unbind())

    def _global(self, rank: int) -> int:
        return rank if self.group is None else dist.get_global_rank(self.group, rank)

    def _count(self, sent: int, backward: bool) -> None:
        if backward:
            self.traffic.backward += sent
        else:
            self.traffic.forward += sent

    @contextmanager
    def _watched(self) -> Generator[None]:
        try:
            yield
        except RuntimeError as error:
            reason = str(error).split("\n")[0].split(". ")[0]
            raise RankError(
                f"rank {self.rank} of {self.size}: no answer from another rank, which ended, failed, or took longer "
                f"than the timeout of the process group: {reason}"
            ) from error


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(-1).view(torch.uint8)
