"""Reproducibility: the same seed gives the same files, byte for byte, in every application and in threads."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from manyheads.lab.training.experiment import Budget
from manyheads.lab.training.run import run
from tests.lab.toy import toy


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def forecaster(folder: Path, seed: int) -> None:
    from manyheads.forecasting import Forecaster

    stamps = pd.date_range("2024-01-01", periods=160, freq="h")
    table = pd.DataFrame({"ds": stamps, "a": np.random.default_rng(0).normal(size=160).cumsum()})
    for model in ("closed-form-auto", "nlinear"):
        Forecaster(4, model=model, look_back=24, seed=seed).fit(table).save(folder / f"{model}.safetensors")


def recommender(folder: Path, seed: int) -> None:
    from manyheads.recsys import Recommender
    from tests.recsys.served import SETTINGS, shop_visits

    fitted = Recommender("hiformer+", label="bought", epochs=2, settings=SETTINGS, seed=seed).fit(shop_visits())
    fitted.save(folder / "recommender")


def spotter(folder: Path, seed: int) -> None:
    from tests.kws.spotters import small_spotter

    small_spotter().save(folder / "spotter.safetensors")


def trained(folder: Path, seed: int) -> None:
    run(toy(budget=Budget(epochs=2, batch_size=8), seeds=(seed,)), root=folder, progress=False)


MAKERS = [forecaster, recommender, spotter, trained]


@pytest.mark.parametrize("make", MAKERS)
def test_the_same_seed_gives_the_same_bytes(make: Callable[[Path, int], None], tmp_path):
    found = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        # earlier draws from the global generator must not matter
        torch.rand(3)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            make(tmp_path / name, 3)
        found.append(contents(tmp_path / name))
    # these files hold measured times
    measured = ("report.json", "result.json", "metrics.jsonl", "cpu-seconds.txt")
    one, two = ({n: c for n, c in held.items() if Path(n).name not in measured} for held in found)
    assert one.keys() == two.keys()
    assert [name for name in one if one[name] != two[name]] == []
    assert any(name.endswith(".safetensors") for name in one)


@pytest.mark.parametrize("make", [forecaster, recommender, trained])
def test_fits_in_parallel_threads_equal_fits_alone(make: Callable[[Path, int], None], tmp_path):
    """Each thread has another seed; the warning filters and torch's generator stay unchanged."""
    seeds = (1, 2, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for seed in seeds:
            (tmp_path / f"alone-{seed}").mkdir()
            make(tmp_path / f"alone-{seed}", seed)
        for seed in seeds:
            (tmp_path / f"parallel-{seed}").mkdir()
        filters, state = list(warnings.filters), torch.get_rng_state()
        errors: list[Exception] = []

        def work(seed: int) -> None:
            try:
                make(tmp_path / f"parallel-{seed}", seed)
            # asserted below
            except Exception as error:
                errors.append(error)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in seeds]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        assert list(warnings.filters) == filters
    assert torch.equal(torch.get_rng_state(), state)
    for seed in seeds:
        alone, parallel = (
            {n: c for n, c in contents(tmp_path / f"{how}-{seed}").items() if n.endswith(".safetensors")}
            for how in ("alone", "parallel")
        )
        assert alone == parallel


def test_the_same_picture_gives_the_same_bytes(tmp_path):
    from manyheads.forecasting.evaluation import plots
    from manyheads.lab.data.files import write_figure

    def drawn(name: str) -> bytes:
        path = tmp_path / name
        write_figure(path, plots.forecast_fan(np.arange(20.0), np.arange(5.0), title="a"))
        return path.read_bytes()

    for suffix in ("png", "svg", "pdf"):
        assert drawn(f"one.{suffix}") == drawn(f"two.{suffix}")


def test_different_experiments_have_different_hashes():
    one = toy()
    assert one.hash == toy().hash
    assert one.hash != replace(one, budget=Budget(epochs=3)).hash
