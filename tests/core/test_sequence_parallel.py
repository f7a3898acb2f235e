"""Attention over several processes against one process; the measurements are made in ``ranks.py``."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from manyheads.core.errors import ArgumentError
from manyheads.core.methods.sequence_parallel import Traffic, attention_over, shard
from manyheads.core.methods.sequence_parallel.layout import Layout
from manyheads.core.methods.sequence_parallel.ring import merge_blocks

KINDS = ("ring", "all-gather", "ulysses")
SIZES = (1, 2, 4)


def run_ranks(folder: Path, *jobs: str) -> None:
    command = [sys.executable, str(Path(__file__).with_name("ranks.py")), str(folder), *jobs]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="session")
def found(tmp_path_factory, worker_id_or_none):
    """What all ranks measured, by number of ranks: made once, whichever test process comes first."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id_or_none is None else base.parent) / "ranks"
    try:
        folder.mkdir()
    except FileExistsError:
        limit = time.monotonic() + 300
        while not (folder / "done").exists():
            assert time.monotonic() < limit, "the other test process did not finish"
            time.sleep(0.2)
    else:
        run_ranks(folder, *(f"all-{size}" for size in SIZES), "ends-3")
        (folder / "done").touch()
    return {job.name: [json.loads(p.read_text()) for p in sorted(job.glob("*.json"))] for job in folder.glob("*-*")}


@pytest.fixture(scope="session")
def worker_id_or_none(request):
    """The name of this test process where pytest-xdist runs several."""
    return getattr(request.config, "workerinput", {}).get("workerid")


@pytest.fixture(params=SIZES)
def size(request):
    return request.param


@pytest.fixture
def ranks(found, size):
    assert len(found[f"all-{size}"]) == size
    return found[f"all-{size}"]


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_and_gradients_equal_those_of_one_process(ranks, kind):
    for rank in ranks:
        cases = {name: case for name, case in rank["exactness"].items() if name.startswith(kind)}
        assert len(cases) == 8
        for name, case in cases.items():
            assert case["out"] < 1e-10, name
            assert case["gradients"] < 1e-10, name


def test_padded_tokens_give_and_get_nothing(ranks):
    assert all(case["padding"] == 0 for rank in ranks for case in rank["exactness"].values())


@pytest.mark.parametrize("variant", ["grouped", "value_width", "one_token", "huge"])
@pytest.mark.parametrize("kind", KINDS)
def test_variants_equal_one_process(ranks, kind, variant):
    """Grouped heads, values of another width, fewer tokens than ranks, and logits of ten thousand."""
    for rank in ranks:
        case = rank["variants"][f"{kind}-{variant}"]
        assert case["out"] < 1e-10
        assert case["gradients"] < (1e-7 if variant == "huge" else 1e-10)  # gradients of a size of 1e4


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("bfloat16", 1e-2)])
@pytest.mark.parametrize("kind", KINDS)
def test_lower_precision_keeps_its_type_and_stays_near(ranks, kind, dtype, tolerance):
    for rank in ranks:
        case = rank["variants"][f"{kind}-{dtype}"]
        assert case["relative"] < tolerance
        assert case["dtypes"] == [f"torch.{dtype}"]


@pytest.mark.parametrize(("dtype", "number", "accumulator"), [("float64", 8, 8), ("float32", 4, 4), ("bfloat16", 2, 4)])
@pytest.mark.parametrize("kind", KINDS)
def test_bytes_sent_are_those_of_the_formulas(ranks, size, kind, dtype, number, accumulator):
    batch, heads, caches, width, tokens = 2, 8, 4, 6, -(-13 // size)
    if kind == "ulysses":
        forward = backward = 2 * batch * tokens * (heads + caches) * width * number * (size - 1) // size
    else:
        forward = 2 * batch * tokens * caches * width * number * (size - 1)
        backward = 2 * batch * tokens * caches * width * (number + accumulator) * (size - 1)
    for rank in ranks:
        case = rank["traffic"][f"{kind}-{dtype}"]
        assert case["shard"] == tokens
        assert (case["forward"], case["backward"]) == (forward, backward)
        assert case["audited"] == [forward, backward]


def test_head_tail_order_gives_every_rank_the_same_work(ranks, size):
    rows, heads = 64 // size, 4
    plain = [rank["work"]["False"] for rank in ranks]
    assert plain == [heads * (rows * rows * r + rows * (rows + 1) // 2) for r in range(size)]
    assert [rank["work"]["True"] for rank in ranks] == [heads * 64 * 65 // 2 // size] * size


@pytest.mark.parametrize("kind", KINDS)
def test_no_rank_holds_all_scores(ranks, kind):
    """512 tokens in float64: the scores of one head are 2 MiB."""
    assert all(rank["memory"][kind] <= 512 * 512 * 8 / 8 for rank in ranks)


def test_shards_join_to_the_sequence_and_carry_its_gradient(ranks):
    for rank in ranks:
        for case in rank["shards"].values():
            assert max(case.values()) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_on_shards_has_the_gradients_of_the_whole(ranks, kind):
    assert all(rank["training"][kind] < 1e-10 for rank in ranks)


def test_a_group_of_some_ranks_attends_among_itself(ranks, size):
    assert all(rank["subgroup"]["error"] < 1e-10 for rank in ranks)
    outside = [rank["subgroup"]["outside"] for rank in ranks if "outside" in rank["subgroup"]]
    assert len(outside) == size // 2
    assert all("group: this process is not a member" in text for text in outside)


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("heads", "ArgumentError: attention_over: heads: found 3 of queries and 3 of keys, expected multiples of the"),
        ("uneven", "ArgumentError: attention_over: rank {last} came with q, k, v of (2, 3, {less}, 6)"),
        ("tokens", "ArgumentError: attention_over: q: found {shard} tokens, expected {more}: 40 tokens over {size}"),
        ("kind", "ArgumentError: attention_over: kind: found 'star', expected one of ring, all-gather, ulysses"),
        ("rank", "ArgumentError: attention_over: q, k, v: found ({heads}, {shard}, 6)"),
        ("groups", "ArgumentError: attention_over: k, v: found (2, 2, {shard}, 6)"),
        ("gather", "ArgumentError: gather: x: found {shard} tokens, expected {hundred} of 100 in all"),
    ],
)
def test_what_does_not_fit_is_named_on_every_rank(ranks, size, case, message):
    if size == 1 and case in ("heads", "uneven"):
        pytest.skip("one rank fits itself")
    cut = 8 // size
    expected = message.format(
        last=size - 1, less=cut - 1, shard=cut, more=40 // size, size=size, heads=3, hundred=100 // size
    )
    for rank in ranks:
        assert rank["bad_input"][case].startswith(expected)


def test_a_rank_that_ends_is_an_error_for_the_others(found):
    assert len(found["ends-3"]) == 2
    for rank in found["ends-3"]:
        assert rank["message"].startswith("RankError: rank")
        assert "no answer from another rank" in rank["message"]


@pytest.mark.slow
def test_a_silent_rank_is_an_error_after_the_timeout(tmp_path):
    run_ranks(tmp_path, "silent-2")
    message = json.loads((tmp_path / "silent-2" / "0.json").read_text())["message"]
    assert message.startswith("RankError: rank 0 of 2: no answer from another rank")


def test_without_a_process_group_the_error_says_what_to_do():
    for call in (attention_over, lambda: shard(torch.zeros(1, 4, 2))):
        with pytest.raises(ArgumentError, match=r"no process group is initialised, expected .*init_process_group"):
            call()


def blocks_of(layout, q, k, v):
    positions = [layout.positions(rank) for rank in range(layout.ranks)]
    padding = layout.shard * layout.ranks - layout.tokens
    q, k, v = (torch.nn.functional.pad(part, (0, 0, 0, padding), value=float("nan")) for part in (q, k, v))
    return [q[:, :, at] for at in positions], [(r, k[:, :, at], v[:, :, at]) for r, at in enumerate(positions)]


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_blocks_may_come_in_any_order(causal, balanced):
    layout = Layout(13, 4, balanced)
    q, k, v = (torch.randn(1, 2, 13, 4, dtype=torch.float64) for _ in range(3))
    queries, blocks = blocks_of(layout, q, k, v)
    draw = random.Random(0)
    for rank in range(4):
        group = SimpleNamespace(rank=rank, traffic=Traffic())
        first = merge_blocks(queries[rank], iter(blocks), group, layout, causal, 0.5)
        for _ in range(4):
            draw.shuffle(blocks)
            other = merge_blocks(queries[rank], iter(blocks), group, layout, causal, 0.5)
            for a, b in zip(first, other, strict=True):
                torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_blocks_of_which_nothing_is_seen_give_zero_and_minus_infinity():
    layout = Layout(8, 2)
    queries, blocks = blocks_of(layout, *(torch.randn(1, 2, 8, 4) for _ in range(3)))
    group = SimpleNamespace(rank=0, traffic=Traffic())
    out, lse = merge_blocks(queries[0], iter(blocks[1:]), group, layout, True, 0.5)
    assert (out == 0).all()
    assert (lse == float("-inf")).all()
    assert group.traffic.scores == 0


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("tokens", [0, 1, 8, 13])
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_every_pair_of_tokens_is_seen_once(tokens, ranks, balanced):
    layout = Layout(tokens, ranks, balanced)
    for causal in (False, True):
        seen = torch.zeros(tokens, tokens, dtype=torch.int64)
        for rank in range(ranks):
            for source in range(ranks):
                for rows, keys, diagonal in layout.pairs(rank, source, causal):
                    block = torch.ones(rows.stop - rows.start, keys.stop - keys.start, dtype=torch.int64)
                    at = layout.positions(rank)[rows], layout.positions(source)[keys]
                    seen[at[0][:, None], at[1]] += block.tril() if diagonal else block
        expected = torch.ones_like(seen)
        assert torch.equal(seen, expected.tril() if causal else expected)


def test_an_order_that_is_not_the_shards_is_found_out():
    """Negative control: causal pairs of the plain order on tokens in head–tail order are not causal attention."""
    layout, wrong = Layout(16, 2, balanced=True), Layout(16, 2)
    q, k, v = (torch.randn(1, 1, 16, 4, dtype=torch.float64) for _ in range(3))
    queries, blocks = blocks_of(layout, q, k, v)
    group = SimpleNamespace(rank=0, traffic=Traffic())
    right, _ = merge_blocks(queries[0], iter(blocks), group, layout, True, 0.5)
    other, _ = merge_blocks(queries[0], iter(blocks), group, wrong, True, 0.5)
    assert (right - other).abs().max() > 1e-2
