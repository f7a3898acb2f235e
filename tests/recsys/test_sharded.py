"""Embedding tables sharded over two processes by TorchRec give losses, weights and logits of one process."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from types import SimpleNamespace

import pytest

from manyheads.core.errors import ArgumentError, MissingPackageError
from manyheads.lab.cli.command import run_commands
from manyheads.lab.cli.experiments import experiment_commands
from manyheads.lab.data.storage import load_model
from manyheads.lab.training.loop import check_choice, whole_batches
from manyheads.recsys import domain
from manyheads.recsys.distributed.placement import check_supported

from .test_processes import HERE, compare, python, torchrun

HERE_TOO = importlib.util.find_spec("torchrec") is not None
needs_torchrec = pytest.mark.skipif(
    not HERE_TOO, reason="TorchRec is not installed: packages/recsys/torchrec-requirements.txt, nox -s torchrec"
)


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sharded")
    python(HERE / "two_processes.py", "sharded", folder)
    return folder


@needs_torchrec
@pytest.mark.parametrize("case", ["tower", "norm", "apart", "shared"])
def test_sharded_tables_end_with_the_weights_of_one_process(case, sharded):
    """Tables of 30 rows and more are sharded by rows, the others are on one process each."""
    weights, logits, chosen, (ours, alone) = compare(case, sharded)
    assert max(weights.values()) < 1e-6, weights
    assert logits < 1e-6
    assert chosen < 1e-6
    assert [h["step"] for h in ours] == [h["step"] for h in alone]
    for a, b in zip(ours, alone, strict=True):
        assert a["train_loss"] == pytest.approx(b["train_loss"], abs=1e-6)


@needs_torchrec
def test_an_interrupted_run_resumes_from_the_newest_checkpoint_that_all_processes_have(sharded):
    """The second process lacks the checkpoint of the last epoch, which is trained again, to the same bits."""
    kept = [sorted(p.name for p in (sharded / "resumed" / "checkpoints" / f"process-{n}").iterdir()) for n in (0, 1)]
    assert kept[0] == kept[1]
    assert len(kept[0]) == 2
    whole, resumed = (load_model(sharded / name, fix="")[0] for name in ("tower", "resumed"))
    assert whole.keys() == resumed.keys()
    assert all(whole[name].equal(resumed[name]) for name in whole)
    lines = [(sharded / name / "metrics.jsonl").read_text() for name in ("tower", "resumed")]
    assert lines[0] == lines[1]


@needs_torchrec
def test_a_sharded_table_is_where_the_plan_says_and_nowhere_whole(tmp_path):
    script = tmp_path / "parts.py"
    script.write_text(PARTS)
    torchrun(script, tmp_path)
    sizes = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    # 100 rows are cut in two, of the others each lies on one rank
    assert [a + b for a, b in zip(*sizes, strict=True)] == [100, 12, 30]
    assert sizes[0][0] == sizes[1][0] == 50
    assert all(0 in pair for pair in list(zip(*sizes, strict=True))[1:])


PARTS = """
import json, pathlib, sys
import torch.distributed as dist
from manyheads.recsys.features.layout import Layout
from manyheads.recsys.models import config_of
from manyheads.recsys.distributed.sharded_tables import process_group, shard
with process_group():
    model = config_of("dnn", {"hidden": ()}).make(Layout(("a", "b", "c"), (100, 12, 30), (1, 1, 1)))
    shard(model, row_wise_from=50)
    own = dict(model.tokens.tables.collection.named_parameters())
    rows = [own[f"embedding_bags.table{i}.weight"] for i in range(3)]
    sizes = [len(w) if w.numel() else 0 for w in rows]
    pathlib.Path(sys.argv[1], f"{dist.get_rank()}.json").write_text(json.dumps(sizes))
"""


@pytest.mark.skipif(HERE_TOO, reason="TorchRec is installed")
def test_without_torchrec_the_error_names_the_installation(capsys):
    from manyheads.recsys.distributed.sharded_tables import torchrec

    with pytest.raises(MissingPackageError, match=r"pip install --no-deps torchrec==1\.9\.2 fbgemm-gpu-cpu==1\.8\.0"):
        torchrec()
    assert run_commands("manyheads recsys", "", experiment_commands(domain), ["train", "adult-lr", "--sharded"]) == 2
    said = capsys.readouterr().err
    assert "sharded tables need TorchRec" in said
    assert said.count("\n") == 1


def test_sharded_training_in_one_process_says_how_to_start_several(monkeypatch):
    from manyheads.recsys.distributed.sharded_tables import process_group, shard
    from manyheads.recsys.features.layout import Layout
    from manyheads.recsys.models import config_of

    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ArgumentError, match="found one process, expected torchrun"), process_group():
        pass
    with pytest.raises(ArgumentError, match="found no process group, expected several processes: torchrun"):
        shard(config_of("lr").make(Layout(("a",), (5,), (1,))))


def test_the_named_installation_is_that_of_the_requirements_file():
    from manyheads.recsys.distributed.sharded_tables import RECIPE

    lines = (HERE.parents[1] / "packages" / "recsys" / "torchrec-requirements.txt").read_text().splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert f"pip install --no-deps {' '.join(pins)}" == RECIPE


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda e: replace(e, budget=replace(e.budget, keep="mean")), "patience: found 2 with keep='mean'"),
        (lambda e: replace(e, budget=replace(e.budget, precision="bf16-mixed")), "precision: found bf16-mixed"),
        (lambda e: replace(e, optimiser=replace(e.optimiser, clip_norm=1.0)), "clip_norm: found 1.0"),
        (lambda e: replace(e, budget=replace(e.budget, batch_size=511)), "batch_size: found 511, expected a multiple"),
    ],
)
def test_settings_without_sharded_support_are_refused(change, said):
    from manyheads.recsys.training.experiments import experiments

    experiment = next(e for e in experiments() if e.name == "adult-lr")
    splits, two = experiment.data.open(), SimpleNamespace(world_size=2)

    def check(experiment):
        check_choice(experiment.budget, splits.validation)
        whole_batches(splits.train, experiment.budget, two)
        check_supported(experiment)

    check(experiment)
    with pytest.raises(ArgumentError, match=said):
        check(change(experiment))
