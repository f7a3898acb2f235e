"""The processes of the tests of sequence parallelism: ``ranks.py FOLDER JOB-RANKS …``.

Starts groups of RANKS processes one after another, forked from here, as importing torch costs seconds. Each process
runs every measurement below in the same order as the others of its group, and writes what it found to
``FOLDER/JOB-RANKS/RANK.json``; the tests read the numbers. The reference is an explicit masked softmax over the whole
sequence, on every rank, from the same seed. Bytes are counted a second time here, where torch.distributed is called.
"""

from __future__ import annotations

import json
import os
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.multiprocessing.spawn import start_processes

from manyheads.core.errors import ManyheadsError
from manyheads.core.methods.sequence_parallel import (
    Traffic,
    attention_over,
    gather,
    local_positions,
    shard,
    sum_gradients,
)

KINDS = ("ring", "all-gather", "ulysses")
SENT = {"bytes": 0}


def audit() -> None:
    """Counts what is handed to torch.distributed for other ranks."""
    batch, gathered, exchanged = dist.batch_isend_irecv, dist.all_gather, dist.all_to_all_single

    def batch_isend_irecv(operations):
        SENT["bytes"] += sum(op.tensor.nbytes for op in operations if op.op is dist.isend)
        return batch(operations)

    def all_gather(parts, own, group=None):
        SENT["bytes"] += own.nbytes * (len(parts) - 1)
        return gathered(parts, own, group=group)

    def all_to_all_single(received, sent, group=None):
        size = dist.get_world_size(group)
        SENT["bytes"] += sent.nbytes * (size - 1) // size
        return exchanged(received, sent, group=group)

    dist.batch_isend_irecv, dist.all_gather, dist.all_to_all_single = batch_isend_irecv, all_gather, all_to_all_single


def explicit(q, k, v, causal):
    shared = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(shared, 1), v.repeat_interleave(shared, 1)
    scores = torch.einsum("bhte,bhse->bhts", q, k) * q.shape[-1] ** -0.5
    if causal:
        scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), float("-inf"))
    return torch.einsum("bhts,bhsf->bhtf", scores.softmax(-1), v)


def inputs(tokens, *, batch=2, heads=4, caches=4, width=6, value_width=6, dtype=torch.float64, factor=1.0):
    generator = torch.Generator().manual_seed(tokens)
    shapes = ((batch, heads, tokens, width), (batch, caches, tokens, width), (batch, caches, tokens, value_width))
    q, k, v = (torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes)
    weights = torch.randn(batch, heads, tokens, value_width, generator=generator, dtype=torch.float64)
    return [(q * factor).to(dtype), k.to(dtype), v.to(dtype), weights.to(dtype)]


def relative(a, b):
    """Relative root mean square."""
    return float((a.double() - b.double()).square().mean().sqrt() / b.double().square().mean().sqrt().clamp_min(1e-12))


def largest(a, b):
    return float((a.double() - b.double()).detach().abs().max()) if a.numel() else 0.0


def compare(kind, tokens, *, causal=False, balanced=False, traffic=None, **given):
    """Largest errors of the output and of the three gradients, gathered, against the explicit softmax."""
    q, k, v, weights = inputs(tokens, **given)
    local = [shard(part, balanced=balanced).requires_grad_() for part in (q, k, v)]
    attend = attention_over(kind=kind, causal=causal, balanced=balanced, traffic=traffic)
    out = attend(*local, tokens=tokens)
    grads = torch.autograd.grad((out * shard(weights, balanced=balanced)).sum(), local)
    padded = local_positions(tokens, balanced=balanced) >= tokens
    whole = [part.double().requires_grad_() for part in (q, k, v)]
    expected = explicit(*whole, causal)
    wanted = torch.autograd.grad((expected * weights.double()).sum(), whole)
    found = [gather(part.detach(), tokens=tokens, balanced=balanced) for part in (out, *grads)]
    return {
        "out": largest(found[0], expected),
        "gradients": max(largest(a, b) for a, b in zip(found[1:], wanted, strict=True)),
        "relative": max(relative(a, b.detach()) for a, b in zip(found, (expected, *wanted), strict=True)),
        "padding": max(float(part.detach()[:, :, padded].abs().sum()) for part in (out, *grads)),
        "dtypes": sorted({str(part.dtype) for part in (out, *grads)}),
    }


def exactness():
    return {
        f"{kind}-{tokens}-{causal}-{balanced}": compare(kind, tokens, causal=causal, balanced=balanced)
        for kind in KINDS
        for tokens in (8, 13)
        for causal in (False, True)
        for balanced in (False, True)
    }


def variants():
    found = {}
    for kind in KINDS:
        found[f"{kind}-grouped"] = compare(kind, 13, causal=True, heads=8, caches=4)
        found[f"{kind}-value_width"] = compare(kind, 13, causal=True, balanced=True, value_width=9)
        found[f"{kind}-one_token"] = compare(kind, 1, causal=True)
        found[f"{kind}-float32"] = compare(kind, 64, causal=True, dtype=torch.float32)
        found[f"{kind}-bfloat16"] = compare(kind, 64, causal=True, dtype=torch.bfloat16)
        found[f"{kind}-huge"] = compare(kind, 13, causal=True, factor=1e4)
    return found


def traffic():
    """Bytes and pairs; forward counted by hand as well, then forward and backward together."""
    found = {}
    for kind in KINDS:
        for dtype in (torch.float64, torch.float32, torch.bfloat16):
            counted = Traffic()
            q, k, v, _ = inputs(13, heads=8, caches=4, dtype=dtype)
            local = [shard(part).requires_grad_() for part in (q, k, v)]
            attend = attention_over(kind=kind, causal=True, traffic=counted, check=False)
            SENT["bytes"] = 0
            out = attend(*local, tokens=13)
            forward = SENT["bytes"]
            SENT["bytes"] = 0
            out.sum().backward()
            found[f"{kind}-{str(dtype)[6:]}"] = {
                "forward": counted.forward,
                "backward": counted.backward,
                "audited": [forward, SENT["bytes"]],
                "shard": local[0].shape[2],
            }
    return found


def work():
    found = {}
    for balanced in (False, True):
        counted = Traffic()
        local = [shard(part, balanced=balanced) for part in inputs(64, batch=1, heads=4)[:3]]
        attention_over(causal=True, balanced=balanced, traffic=counted)(*local, tokens=64)
        found[str(balanced)] = counted.scores
    return found


def memory():
    """Bytes of the largest tensor that any operation gives, forward and backward, 512 tokens."""

    class Largest(torch.utils._python_dispatch.TorchDispatchMode):
        nbytes = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for part in out if isinstance(out, tuple | list) else (out,):
                if isinstance(part, torch.Tensor):
                    self.nbytes = max(self.nbytes, part.nbytes)
            return out

    found = {}
    for kind in KINDS:
        local = [shard(part).requires_grad_() for part in inputs(512, batch=1, heads=4, width=4, value_width=4)[:3]]
        with Largest() as mode:
            attention_over(kind=kind, causal=True)(*local, tokens=512).sum().backward()
        found[kind] = mode.nbytes
    return found


def shards():
    """A sequence is cut, joined and differentiated as if every rank had computed all of it."""
    x = torch.arange(26.0, dtype=torch.float64).reshape(1, 13, 2).requires_grad_()
    weights = torch.randn(1, 13, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = {}
    for balanced in (False, True):
        part = shard(x, balanced=balanced)
        (grad,) = torch.autograd.grad((gather(part**2, tokens=13, balanced=balanced) * weights).sum(), x)
        positions = local_positions(13, balanced=balanced)
        inside = positions < 13
        found[str(balanced)] = {
            "back": largest(gather(part, tokens=13, balanced=balanced), x),
            "gradient": largest(grad, 2 * x * weights),
            "positions": largest(part[0, inside, 0], 2.0 * positions[inside]),
        }
    return found


class Model(nn.Module):
    """One layer with positions, over a shard or over the whole."""

    def __init__(self, attend):
        super().__init__()
        self.embed, self.place = nn.Embedding(11, 8), nn.Embedding(13, 8)
        self.qkv, self.head = nn.Linear(8, 24), nn.Linear(8, 11)
        self.attend = attend

    def forward(self, ids, positions):
        x = self.embed(ids) + self.place(positions.clamp(max=12))
        q, k, v = (part.unflatten(-1, (4, 2)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        return self.head(x + self.attend(q, k, v).transpose(1, 2).flatten(2))


def training():
    """Summed gradients of a model on shards against the whole on one process."""
    ids = torch.randint(11, (2, 13), generator=torch.Generator().manual_seed(0))
    targets = ids.roll(-1, 1)
    found = {}
    for kind in KINDS:
        attend = attention_over(kind=kind, causal=True, balanced=True)
        torch.manual_seed(0)
        model = Model(lambda q, k, v, attend=attend: attend(q, k, v, tokens=13)).double()
        positions = local_positions(13, balanced=True)
        local = [shard(part, dim=1, balanced=True) for part in (ids, targets)]
        logits = model(local[0], positions)
        loss = nn.functional.cross_entropy(logits.transpose(1, 2), local[1], reduction="none")
        (loss[:, positions < 13].sum() / 13).backward()
        sum_gradients(model.parameters())
        torch.manual_seed(0)
        single = Model(lambda q, k, v: explicit(q, k, v, True)).double()
        logits = single(ids, torch.arange(13))
        (nn.functional.cross_entropy(logits.transpose(1, 2), targets, reduction="none").sum() / 13).backward()
        pairs = zip(model.parameters(), single.parameters(), strict=True)
        found[kind] = max(largest(a.grad, b.grad) for a, b in pairs)
    return found


def message(call):
    try:
        call()
    except ManyheadsError as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def bad_input():
    rank, size = dist.get_rank(), dist.get_world_size()
    q, k, v, _ = inputs(8, heads=3, caches=3)
    cut = [shard(part) for part in (q, k, v)]
    uneven = [part[:, :, : part.shape[2] - (rank == size - 1)] for part in cut]
    return {
        "heads": message(lambda: attention_over(kind="ulysses")(*cut)),
        "uneven": message(lambda: attention_over()(*uneven)),
        "tokens": message(lambda: attention_over()(*cut, tokens=40)),
        "kind": message(lambda: attention_over(kind="star")),
        "rank": message(lambda: attention_over()(cut[0][0], *cut[1:])),
        "groups": message(lambda: attention_over()(cut[0], cut[1][:, :2], cut[2][:, :2])),
        "gather": message(lambda: gather(cut[0], tokens=100)),
    }


def subgroup():
    """The last half of the ranks as a group of their own."""
    size = dist.get_world_size()
    members = list(range(size // 2, size))
    group = dist.new_group(members)
    if dist.get_rank() not in members:
        return {"error": 0.0, "outside": message(lambda: attention_over(group))}
    q, k, v, _ = inputs(13)
    local = [shard(part, group) for part in (q, k, v)]
    out = gather(attention_over(group, causal=True)(*local, tokens=13), group, tokens=13)
    return {"error": largest(out, explicit(q, k, v, True))}


def lost(how):
    """The last rank ends, or is silent, while the others wait for its block."""
    rank, size = dist.get_rank(), dist.get_world_size()
    q, k, v, _ = inputs(8)
    local = [shard(part) for part in (q, k, v)]
    attend = attention_over(check=False)
    dist.barrier()
    if rank == size - 1:
        if how == "ends":
            os._exit(0)
        time.sleep(12)
    return {"message": message(lambda: attend(*local))}


MEASUREMENTS = (exactness, variants, traffic, work, memory, shards, training, bad_input, subgroup)


def main(rank, ranks, folder, job):
    store = dist.FileStore(str(folder / "store"), ranks)
    patience = timedelta(seconds=60 if job == "all" else 4)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks, timeout=patience)
    if job == "all":
        audit()
        found = {measure.__name__: measure() for measure in MEASUREMENTS}
        dist.barrier()
        dist.destroy_process_group()
    else:
        found = lost(job)
    (folder / f"{rank}.json").write_text(json.dumps(found))
    os._exit(0)  # after a loss nobody is there to say goodbye to


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    for name in sys.argv[2:]:
        job, ranks = name.split("-")
        folder = Path(sys.argv[1]) / name
        folder.mkdir(parents=True)
        start_processes(main, (int(ranks), folder, job), int(ranks), start_method="fork")
