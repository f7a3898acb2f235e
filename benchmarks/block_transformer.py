"""Tokens per CPU second of decoding, Block Transformer against a vanilla model: ``python benchmarks/block_transformer.py``.

Both models have softmax attention, width 256, bytes as tokens and nearly the same number of parameters: 6 layers
against 3 in the block decoder and 3 in the token decoder, blocks of 4, a prefix of 2. A prompt of ``--contexts`` tokens
for each of ``--batch`` rows is read once; then ``--new`` tokens are generated greedily. Decoding is measured alone: CPU
time of the generation of ``new + 4`` tokens less that of 4 tokens, both after the same prompt, so that the prompt is
in neither. The weights are random, which changes no cost. The vanilla cache is written in place and attention reads the
slots in use only, as in the block decoder.

CPU seconds of one thread; the models take turns ``--runs`` times, and the median of each counts.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from manyheads.core.backbones.block_transformer import BlockTransformer
from manyheads.core.backbones.language_model import LanguageModel
from manyheads.core.backbones.stack import build_stack
from manyheads.core.state import leaves
from manyheads.lab.data.files import write_csv

BEFORE = 4  # tokens whose time is subtracted: one block


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contexts", type=int, nargs="+", default=[2048, 8192])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--new", type=int, default=32, help="tokens of the measured generation, a multiple of 4")
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
    room = context + BEFORE + asked.new
    torch.manual_seed(0)
    options = {"causal": True, "heads": 4, "max_len": room}
    models: dict[str, Any] = {
        "vanilla": LanguageModel(build_stack("softmax", asked.dim, depth=6, options=options), vocabulary=256),
        "block transformer": BlockTransformer(
            256, dim=asked.dim, block_layers=3, token_layers=3, context=room, options={"heads": 4}
        ),
    }
    prompts = torch.randint(256, (asked.batch, context)).tolist()
    decoding: dict[str, list[float]] = {name: [] for name in models}
    prefill: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(asked.runs):
        for name, model in models.items():
            short = cpu_seconds(model.generate, prompts, BEFORE)
            decoding[name].append(cpu_seconds(model.generate, prompts, BEFORE + asked.new) - short)
            prefill[name].append(short)
    rows = []
    for name, model in models.items():
        seconds = statistics.median(decoding[name])
        rows.append(
            {
                "model": name,
                "context": context,
                "batch": asked.batch,
                "dim": asked.dim,
                "layers": "6" if name == "vanilla" else "3 + 3",
                "parameters": sum(p.numel() for p in model.parameters()),
                "measured": "decoding only",
                "new_tokens": asked.new,
                "runs": asked.runs,
                "cpu_s": f"{seconds:.3f}",
                "sd": f"{statistics.stdev(decoding[name]) if asked.runs > 1 else 0:.3f}",
                "tokens_per_cpu_s": f"{asked.batch * asked.new / seconds:.0f}",
                "times_vanilla": f"{statistics.median(decoding['vanilla']) / seconds:.2f}",
                "prompt_and_4_tokens_cpu_s": f"{statistics.median(prefill[name]):.2f}",
                "kv_bytes_of_a_row": cache_bytes(model, room),
                "machine": f"{platform.machine()}, 1 thread, nice {os.nice(0)}",
                "torch": torch.__version__,
                "command": " ".join(["python", "benchmarks/block_transformer.py", *sys.argv[1:]]),
            }
        )
    return rows


def cache_bytes(model: Any, tokens: int) -> int:
    """Bytes of keys and values of a row, as the states hold them (vanilla) or by ``kv_bytes``."""
    if isinstance(model, BlockTransformer):
        return model.kv_bytes(tokens)
    return sum(leaf.nbytes for leaf in leaves(model.stack.init_state(1)) if leaf.is_floating_point())


def cpu_seconds(generate: Callable[..., Any], prompts: list[list[int]], new: int) -> float:
    begun = time.process_time()
    generate(prompts, new, temperature=0)
    return time.process_time() - begun


if __name__ == "__main__":
    main()
