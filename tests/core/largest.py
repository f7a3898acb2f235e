"""How large the largest tensor is that a function makes."""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _Watch(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            # A sparse matrix has no storage of its own, and the tensors that it holds are seen when they are made.
            if isinstance(leaf, torch.Tensor) and leaf.layout is torch.strided:
                self.largest = max(self.largest, leaf.untyped_storage().nbytes() // leaf.element_size())
        return out


def largest_tensor(run) -> int:
    """Elements of the largest tensor that ``run()`` makes; a view counts as what it is a view of."""
    with _Watch() as watch:
        run()
    return watch.largest
