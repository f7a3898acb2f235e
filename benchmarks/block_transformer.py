"""Tokens per CPU second of decoding: ``python benchmarks/block_transformer.py``. Block Transformer, vanilla model.

Both models have softmax attention, width 256, bytes as tokens and nearly the same number of parameters: 6 layers
against 3 in the block decoder and 3 in the token decoder, blocks of 4, a prefix of 2. Decoding alone is measured, by
``generate`` with the most probable token: reading the prompt is left out, and the caches hold random keys and values of
``--contexts`` tokens for each of ``--batch`` rows, as the cost depends on their number only. Time begins after the
first block of 4 tokens. Both caches are written in place, and attention reads the slots in use only.

CPU seconds of one thread at nice 5; the models take turns ``--runs`` times, and the median of each counts.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

from manyheads.core.backbones.block_transformer import BlockTransformer
from manyheads.core.backbones.language_model import LanguageModel
from manyheads.core.backbones.stack import build_stack
from manyheads.core.layers.softmax import KeyValueState
from manyheads.core.state import State, leaves
from manyheads.lab.data.files import write_csv

BLOCK = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contexts", type=int, nargs="+", default=[512, 2048, 8192])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--new", type=int, default=32, help="measured tokens of a row, a multiple of 4")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--csv", type=Path, default=Path("benchmarks/results/block_transformer.csv"))
    asked = parser.parse_args()
    os.nice(max(0, 5 - os.nice(0)))
    torch.set_num_threads(1)
    rows = []
    for context in asked.contexts:
        rows += compare(context, asked)
        for row in rows[-2:]:
            print({key: row[key] for key in ("model", "context", "tokens_per_cpu_s", "times_vanilla")}, flush=True)
    write_csv(asked.csv, rows)


def compare(context: int, asked: argparse.Namespace) -> list[dict[str, Any]]:
    room = context + BLOCK + asked.new
    torch.manual_seed(0)
    options = {"causal": True, "heads": 4, "max_len": room}
    vanilla = LanguageModel(build_stack("softmax", asked.dim, depth=6, options=options), vocabulary=256)
    blocks = BlockTransformer(256, dim=asked.dim, block_layers=3, token_layers=3, context=room, options={"heads": 4})
    begin_filled(vanilla, blocks, context, asked.batch)
    models: dict[str, Any] = {"vanilla": vanilla, "block transformer": blocks}
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(asked.runs):
        for name, model in models.items():
            seconds[name].append(decoding_seconds(model, context, asked.batch, asked.new))
    rows = []
    for name, model in models.items():
        median = statistics.median(seconds[name])
        rows.append(
            {
                "model": name,
                "context": context,
                "batch": asked.batch,
                "dim": asked.dim,
                "layers": "6" if name == "vanilla" else "3 + 3",
                "parameters": sum(p.numel() for p in model.parameters()),
                "measured": "decoding only, after the prompt",
                "new_tokens": asked.new,
                "runs": asked.runs,
                "cpu_s": f"{median:.3f}",
                "sd": f"{statistics.stdev(seconds[name]) if asked.runs > 1 else 0:.3f}",
                "tokens_per_cpu_s": f"{asked.batch * asked.new / median:.0f}",
                "times_vanilla": f"{statistics.median(seconds['vanilla']) / median:.2f}",
                "kv_bytes_of_a_row": kv_bytes(model, room),
                "machine": f"{platform.machine()}, 1 thread, nice {os.nice(0)}",
                "torch": torch.__version__,
                "command": " ".join(["python", "benchmarks/block_transformer.py", *sys.argv[1:]]),
            }
        )
    return rows


def begin_filled(vanilla: LanguageModel, blocks: BlockTransformer, context: int, batch: int) -> None:
    """Replace the reading of the prompt by a cache that is full already."""
    whole = filled(vanilla.stack.init_state(batch), context)
    vanilla._whole = lambda ids, known: (torch.zeros(batch, vanilla.vocabulary), whole)
    coarse, contexts = filled(blocks.block_decoder.init_state(batch), context // BLOCK), blocks.contexts

    def after_prompt(ids: torch.Tensor, state: State | None = None, **more: Any) -> tuple[torch.Tensor, State]:
        return (torch.zeros(batch, 1, blocks.dim), coarse) if state is None else contexts(ids, state, **more)

    blocks.contexts = after_prompt


def filled(state: State, used: int) -> State:
    """Random keys and values in the first ``used`` slots."""
    for keys, values, _ in state:
        keys[:, :, :used].normal_()
        values[:, :, :used].normal_()
    return tuple(KeyValueState(part.keys, part.values, part.used + used) for part in state)


def decoding_seconds(model: Any, context: int, batch: int, new: int) -> float:
    """CPU seconds from the logits of token 4 to those of token ``4 + new``."""
    clock: list[float] = []
    hook = model.output.register_forward_hook(lambda *_: clock.append(time.process_time()))
    model.generate([[0] * context] * batch, BLOCK + new, temperature=0)
    hook.remove()
    return clock[-1] - clock[-1 - new]


def kv_bytes(model: Any, tokens: int) -> int:
    """Bytes of keys and values of a row: of the state (vanilla), or by the formula."""
    if isinstance(model, BlockTransformer):
        return model.kv_bytes(tokens)
    return sum(leaf.nbytes for leaf in leaves(model.stack.init_state(1)) if leaf.is_floating_point())


if __name__ == "__main__":
    main()
