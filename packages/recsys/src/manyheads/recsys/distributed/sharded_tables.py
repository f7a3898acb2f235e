"""Embedding tables that are cut over several processes, by TorchRec; the rest of the model is copied to each (DDP).

    torchrun --nproc-per-node 2 -m manyheads.recsys train adult-hiformer+ --sharded

A process holds its part of the tables, of their gradients and of the optimiser's state; rows are asked for and sent by
all-to-all. :func:`gathered` gives the weights as the model of one process has them.

TorchRec is optional and is installed by a recipe (:data:`RECIPE`), as its plain installation brings a CUDA build that
does not import beside the CPU build of torch. Only gloo on CPUs is tested.

Differs from a usual TorchRec job: a part of a table has dense gradients of its own size, as a table of one process has,
so that any optimiser and either L2 give what they give in one process. TorchRec's optimisers inside the backward pass
know neither Adam nor L2 on the CPU, and are not used. Tables are drawn whole before they are cut, so that they start as
those of one process do: for that moment each process needs the memory of all of them.
"""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from manyheads.core.errors import ArgumentError, MissingPackageError
from manyheads.recsys.models.tokens import AnyTables, Tables

RECIPE = (
    "pip install --no-deps torchrec==1.9.2 fbgemm-gpu-cpu==1.8.0 tensordict==0.15.3 torchmetrics==1.0.3 "
    "pyre-extensions==0.0.32 typing-inspect==0.9.0 mypy-extensions==1.2.0 pyvers==0.2.3 tqdm==4.70.1"
)
ROW_WISE_FROM = 100_000


def torchrec(part: str = "") -> Any:
    """The package, or a module of it. Raises :class:`MissingPackageError` with the recipe where it does not import."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(f"torchrec.{part}" if part else "torchrec")
    except (ImportError, OSError) as error:
        said = " ".join(str(error).split())[:120]
        raise MissingPackageError(f"sharded tables need TorchRec, which does not import ({said}): {RECIPE}") from error


class ShardedTables(AnyTables):
    """The fields of some :class:`Tables`, each a table of a TorchRec ``EmbeddingBagCollection``: ``(B, C)`` ids ->
    ``(B, fields, D)``, the mean over the values of a field. Before :func:`shard` it is whole and on the meta device."""

    columns: Tensor

    def __init__(self, tables: Tables) -> None:
        super().__init__()
        found = torchrec()
        self.widths, self.sizes, self.holds, self.dim = (
            tables.widths,
            tables.sizes,
            tables.holds,
            tables.weight.shape[1],
        )
        self.fields = [f"field{i}" for i in range(len(self.widths))]  # fields' own names may hold dots
        self.names = [f"table{i}" for i in range(len(self.sizes))]
        self.register_buffer("columns", tables.columns.clone(), persistent=False)
        configs = [
            found.EmbeddingBagConfig(
                name=name,
                embedding_dim=self.dim,
                num_embeddings=rows,
                feature_names=[self.fields[i] for i in held],
                pooling=found.PoolingType.SUM,
            )
            for name, rows, held in zip(self.names, self.sizes, self.holds, strict=True)
        ]
        self.jagged = torchrec("sparse.jagged_tensor").KeyedJaggedTensor
        self.starts = [0] * len(self.names)  # the first row of each table's part here
        self.collection = found.EmbeddingBagCollection(tables=configs, device=torch.device("meta"))

    def forward(self, ids: Tensor) -> Tensor:
        values, lengths = [], []
        for part in ids[:, self.columns].split(self.widths, 1):
            held = part >= 0
            values.append(part[held])
            lengths.append(held.sum(1, dtype=torch.int32))
        found = self.collection(self.jagged(keys=self.fields, values=torch.cat(values), lengths=torch.cat(lengths)))
        sums = torch.stack([found[name] for name in self.fields], 1)  # sharding orders them otherwise
        return sums / torch.stack(lengths, 1).clamp(min=1).unsqueeze(-1)

    def weights(self) -> list[nn.Parameter]:
        return [weight for weight in self.collection.parameters() if weight.numel()]

    def penalty(self, ids: Tensor | None) -> Tensor:
        """The gradient is that of the part that lies here; the value is such that the mean over the ranks, as that of
        the loss, is the penalty of the whole tables. ``ids`` are those of all ranks."""
        total = torch.zeros(())
        columns = None if ids is None else ids[:, self.columns].split(self.widths, 1)
        own = dict(self.collection.named_parameters())
        for index, name in enumerate(self.names):
            weight, start = own[f"embedding_bags.{name}.weight"], self.starts[index]
            if weight.numel() == 0:
                continue
            if columns is not None:
                rows = torch.cat([columns[i] for i in self.holds[index]], 1).unique()
                weight = weight[rows[(rows >= max(start, 0)) & (rows < start + len(weight))] - start]
            total = total + 0.5 * weight.square().sum()
        return total + total.detach() * (dist.get_world_size() - 1)

    def fill(self, whole: Tensor) -> None:
        """Sets the part of this process from the fused table ``(sum of rows, D)``; after :func:`shard`."""
        for index, (shards, table) in enumerate(zip(self._shards(), whole.split(self.sizes), strict=True)):
            for one in shards:
                self.starts[index] = start = one.metadata.shard_offsets[0]
                one.tensor.copy_(table[start : start + one.metadata.shard_sizes[0]])

    def gathered(self) -> Tensor | None:
        """The fused table ``(sum of rows, D)`` on the first rank, None on the others; every rank has to call."""
        first = dist.get_rank() == 0
        whole = torch.empty(sum(self.sizes), self.dim) if first else None
        parts = [None] * len(self.sizes) if whole is None else whole.split(self.sizes)
        for table, part in zip(self._tensors(), parts, strict=True):
            table.gather(0, part)
        return whole

    def _tensors(self) -> list[Any]:
        stored = self.collection.state_dict()
        return [stored[f"embedding_bags.{name}.weight"] for name in self.names]

    def _shards(self) -> list[list[Any]]:
        return [table.local_shards() for table in self._tensors()]


def shard(model: nn.Module, *, row_wise_from: int = ROW_WISE_FROM) -> nn.Module:
    """Cuts the tables of a model over the ranks and gives TorchRec's ``DistributedModelParallel`` of it, to be called
    as the model is; the model itself is changed.

    Tables of ``row_wise_from`` rows or more are cut into equal runs of rows; smaller ones lie whole on the rank that
    has the fewest numbers so far. Raises :class:`ArgumentError` outside of a process group.
    """
    if not (dist.is_available() and dist.is_initialized()):
        raise ArgumentError(
            "sharded tables: found no process group, expected several processes: "
            "torchrun --nproc-per-node 2 -m manyheads.recsys train EXPERIMENT --sharded"
        )
    planning, types = torchrec("distributed.sharding_plan"), torchrec("distributed.types")
    state = torch.get_rng_state()
    whole = {path: module for path, module in model.named_modules() if isinstance(module, Tables)}
    ranks, sharder = dist.get_world_size(), torchrec("distributed.embeddingbag").EmbeddingBagCollectionSharder()
    loads, plans, made = [0] * ranks, {}, {}
    for path, tables in whole.items():
        made[path] = ShardedTables(tables)
        places = {}
        for index in sorted(range(len(tables.sizes)), key=lambda i: -tables.sizes[i]):
            rows = tables.sizes[index]
            rank = loads.index(min(loads))
            split = rows >= row_wise_from
            places[made[path].names[index]] = planning.row_wise() if split else planning.table_wise(rank=rank)
            loads[rank] += 0 if split else rows * made[path].dim
        plans[f"{path}.collection"] = planning.construct_module_sharding_plan(
            made[path].collection, places, sharder=sharder, local_size=ranks, world_size=ranks, device_type="cpu"
        )
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, made[path])
    parallel = torchrec("distributed.model_parallel").DistributedModelParallel(
        model,
        env=types.ShardingEnv.from_process_group(dist.group.WORLD),
        device=torch.device("cpu"),
        plan=types.ShardingPlan(plans),
        sharders=[sharder],
    )
    for path, tables in whole.items():
        made[path].fill(tables.weight.detach())
    torch.set_rng_state(state)  # TorchRec draws tables that are not kept; dropout goes on as in one process
    return parallel


def gathered(model: nn.Module) -> dict[str, Tensor]:
    """The weights under the names that they have in one process, on the first rank; all ranks have to call.

    ``model`` is what :func:`shard` was given. The other ranks get the copied part only.
    """
    state = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    state = {name: value for name, value in state.items() if ".collection." not in name}
    for path, module in model.named_modules():
        if isinstance(module, ShardedTables) and (table := module.gathered()) is not None:
            state[f"{path}.weight"] = table
    return state


@contextmanager
def process_group() -> Generator[None]:
    """gloo over the processes that torchrun started. Raises :class:`ArgumentError` where it did not."""
    if "RANK" not in os.environ:
        raise ArgumentError(
            "sharded: found one process, expected torchrun: "
            "torchrun --nproc-per-node 2 -m manyheads.recsys train EXPERIMENT --sharded"
        )
    dist.init_process_group("gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()
