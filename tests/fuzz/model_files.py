"""Damaged files of every kind that the library keeps, and what has to hold for each.

    stores = Stores(folder)          # makes one whole file or folder of each kind, once
    outcome = stores.check(seed)     # "refused: …", "read" or "resealed"; AssertionError if a property does not hold

Three kinds of harm: the bytes of a file are damaged, a file is taken from another store, and a file is written again
with a right digest over a wrong content (tensors missing, swapped, of another shape or type, not finite; other types in
the JSON header). The properties: what is refused is refused by one ManyheadsError of one line that names a path of the
store; what is read after damage answers as the whole store does; what is read after resealing answers with finite
numbers. A damaged run folder is trained to its end again, with the metrics of an unbroken run to the last bit.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from manyheads.core.errors import ManyheadsError
from manyheads.lab.data.storage import ENTRY, packed, packed_document

Rng = np.random.Generator
Answer = Callable[[Path], Any]  # numbers, or a text of them


@dataclass(frozen=True)
class Store:
    """A whole file or folder, how it is used, and what it answers."""

    path: Path
    answer: Answer
    expected: Any
    run: bool = False  # a run folder, which heals


class Stores:
    """One store of each kind below ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        makers = {"forecaster": forecaster, "spotter": spotter, "recommender": recommender, "spec": spec, "run": run}
        with suppress(ImportError):
            import onnxruntime  # noqa: F401

            makers["served"] = served
        self.stores: dict[str, Store] = {}
        for name, maker in makers.items():
            path, answer = maker(folder / "whole" / name)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.stores[name] = Store(path, answer, answer(path), run=name == "run")

    def check(self, seed: int) -> tuple[str, str]:
        """What was done, and the outcome. See the module."""
        rng = np.random.default_rng(seed)
        name = str(rng.choice(list(self.stores)))
        store = self.stores[name]
        target = self.folder / "harmed" / store.path.name
        shutil.rmtree(target.parent, ignore_errors=True)
        target.parent.mkdir(parents=True)
        if store.path.is_dir():
            shutil.copytree(store.path, target)
        else:
            shutil.copy(store.path, target)
        files = sorted(path for path in (target.rglob("*") if target.is_dir() else [target]) if path.is_file())
        victim = files[rng.integers(0, len(files))]
        how = str(rng.choice(["damage", "damage", "reseal", "other"]))
        if how == "reseal" and (store.run or not resealed(rng, victim)):
            how = "damage"
        if how == "other":
            other = self.stores[str(rng.choice(list(self.stores)))].path
            theirs = [path for path in (other.rglob("*") if other.is_dir() else [other]) if path.is_file()]
            shutil.copy(theirs[rng.integers(0, len(theirs))], victim)
        if how == "damage":
            damage(rng, victim)
        what = f"{name}, {how} of {victim.name}"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found, said = None, ""
            try:
                found = store.answer(target)
            except ManyheadsError as error:
                said = str(error)
            except IsADirectoryError as error:  # of which the command line prints the path and the reason
                return what, f"refused: {error.filename}: {error.strerror}"
        if said:
            assert len(said.splitlines()) == 1, f"{what}: not one line: {said!r}"
            assert str(self.folder) in said, f"{what}: names no path: {said}"
            assert not store.run, f"{what}: the run does not go on: {said}"
            return what, f"refused: {said}"
        if how == "reseal":
            assert np.isfinite(np.asarray(found, np.float64)).all(), f"{what}: answers {found}"
            return what, "resealed"
        assert np.array_equal(np.asarray(found), np.asarray(store.expected)), f"{what}: answers {found}"
        return what, "read"


def damage(rng: Rng, path: Path) -> None:
    """Bits flipped, bytes cut, put in, taken out or set to zero; the whole file gone, empty, or a folder."""
    content, size = bytearray(path.read_bytes()), path.stat().st_size
    how = int(rng.integers(0, 9))
    at = int(rng.integers(0, max(1, min(size, 400) if rng.random() < 0.5 else size)))
    some = int(rng.integers(1, 40))
    if how <= 2 and size:
        for _ in range(int(rng.integers(1, 4))):
            content[int(rng.integers(0, size))] ^= 1 << int(rng.integers(0, 8))
    elif how == 3:
        content = content[:at]
    elif how == 4:
        content[at:at] = rng.bytes(some)
    elif how == 5:
        del content[at : at + some]
    elif how == 6:
        content[at : at + some] = bytes(min(some, max(size - at, 0)))
    elif how == 7:
        content = bytearray(rng.choice([b"", b"{}", b"null", b"[]", b"\x00" * 16, b"\xff\xfe", b"{" * 9000, b"1e999"]))
    elif how == 8:
        path.unlink()
        if rng.random() < 0.3:
            path.mkdir()
        return
    path.write_bytes(bytes(content))


VALUES: list[Any] = [None, True, 0, -1, 3, 2.5, 1e300, 10**30, "", "a", "NaN", [], [1], ["a", "b"], {}, {"a": 1}]


def resealed(rng: Rng, path: Path) -> bool:
    """Write a file again with a right digest and one thing in it changed; whether it is such a file."""
    raw = path.read_bytes()
    try:
        if path.suffix == ".json":
            document = json.loads(raw)
            if "digest" not in document:
                return False
            document.pop("digest")
            kind = document.pop("kind")
            changed(rng, document)
            path.write_bytes(packed_document(document, kind=kind))
            return True
        if path.suffix != ".safetensors":
            return False
        from safetensors.numpy import load

        length = int.from_bytes(raw[:8], "little")
        header = json.loads(json.loads(json.loads(raw[8 : 8 + length])["__metadata__"][ENTRY])["header"])
        tensors, kind = load(raw), header.pop("kind")
        if tensors and rng.random() < 0.6:
            change_tensors(rng, tensors)
        else:
            changed(rng, header)
        path.write_bytes(packed(tensors, header, kind=kind))
    except (ValueError, OverflowError):  # what JSON cannot hold
        return False
    return True


def change_tensors(rng: Rng, tensors: dict[str, np.ndarray]) -> None:
    """One tensor gone, renamed, swapped with another, of another shape or type, or with a number that is none."""
    names = sorted(tensors)
    name, other = (str(rng.choice(names)) for _ in range(2))
    one = tensors[name]
    how = int(rng.integers(0, 9))
    if how == 0:
        del tensors[name]
    elif how == 1:
        tensors[f"{name}2"] = tensors.pop(name)
    elif how == 2:
        tensors[name], tensors[other] = tensors[other], one
    elif how == 3:
        tensors[name] = one.reshape(-1)[: max(0, one.size - 1)]
    elif how == 4:
        tensors[name] = one[None]
    elif how == 5:
        tensors[name] = one.astype(rng.choice(["int64", "float16", "float64", "uint8", "bool"]))
    elif how == 6:
        tensors[name] = np.zeros((0, *one.shape[1:]), one.dtype)
    elif one.dtype.kind == "f" and one.size:
        spoilt = one.copy()
        spoilt.reshape(-1)[int(rng.integers(0, one.size))] = rng.choice([np.nan, np.inf, -np.inf])
        tensors[name] = spoilt
    else:
        tensors["more"] = np.ones(3, np.float32)


def changed(rng: Rng, document: dict[str, Any]) -> None:
    """One value somewhere in a JSON object replaced, taken out, or put in."""
    places: list[tuple[Any, Any]] = []

    def collect(inner: Any) -> None:
        pairs = inner.items() if isinstance(inner, dict) else enumerate(inner)
        for key, value in pairs:
            places.append((inner, key))
            if isinstance(value, dict | list):
                collect(value)

    collect(document)
    if not places or rng.random() < 0.05:
        document["more"] = 1
        return
    holder, key = places[int(rng.integers(0, len(places)))]
    if rng.random() < 0.2 and isinstance(holder, dict):
        del holder[key]
    elif rng.random() < 0.2 and isinstance(holder, dict):
        holder[f"{key}2"] = holder.pop(key)
    else:
        holder[key] = VALUES[int(rng.integers(0, len(VALUES)))]


def forecaster(folder: Path) -> tuple[Path, Answer]:
    from manyheads.forecasting import Forecaster

    rng, stamps = np.random.default_rng(0), pd.date_range("2024-01-01", periods=120, freq="h", tz="Europe/Berlin")
    table = pd.DataFrame({"ds": stamps, "a": rng.normal(size=120).cumsum(), "b": rng.normal(size=120)})
    path = folder / "forecaster.safetensors"
    Forecaster(4, model="rlinear-cf", look_back=12).fit(table).save(path)

    def answer(path: Path) -> np.ndarray:
        loaded = Forecaster.load(path)
        return loaded.predict().drop(columns=["unique_id", "ds"]).to_numpy(np.float64)

    return path, answer


def spotter(folder: Path) -> tuple[Path, Answer]:
    from manyheads.kws import KeywordSpotter
    from tests.kws.spotters import babble, small_spotter

    path, sound = folder / "spotter.safetensors", babble(1.0)
    small_spotter().save(path)

    def answer(path: Path) -> np.ndarray:
        loaded = KeywordSpotter.load(path)
        return loaded.clip_logits(sound[None]).double().numpy()

    return path, answer


def recommender(folder: Path) -> tuple[Path, Answer]:
    from manyheads.recsys import Recommender
    from tests.recsys.served import shop_model, shop_visits

    shop_model().save(folder)
    rows = shop_visits().head(5)
    return folder, lambda path: Recommender.load(path).predict_proba(rows)


def served(folder: Path) -> tuple[Path, Answer]:
    from manyheads.recsys.serving.export import export
    from manyheads.recsys.serving.load import as_json
    from manyheads.recsys.serving.ranker import Ranker
    from tests.recsys.served import shop_model, shop_visits

    folder.mkdir(parents=True)
    export(shop_model(), folder)
    rows = as_json(shop_visits().drop(columns="bought").head(5))
    return folder, lambda path: Ranker.load(path).score_rows(rows).probabilities


def spec(folder: Path) -> tuple[Path, Answer]:
    """A file that people write by hand, without a digest: damage that keeps it a spec is a spec."""
    from manyheads.recsys.features.encoder import Encoder
    from manyheads.recsys.features.spec import FeatureSpec, infer_spec
    from tests.recsys.served import shop_visits

    visits = shop_visits().drop(columns="bought").head(60)
    path = folder / "spec.json"
    folder.mkdir(parents=True)
    infer_spec(visits).save(path)

    def answer(path: Path) -> np.ndarray:
        found = FeatureSpec.load(path)
        with suppress(ManyheadsError):
            Encoder.fit(visits, found).arrays(visits)
        return np.zeros(1)  # which spec was meant, nobody knows

    return path, answer


def run(folder: Path) -> tuple[Path, Answer]:
    """A run that was stopped between two epochs: its folder is trained to the end."""
    from manyheads.lab.training.experiment import Budget
    from manyheads.lab.training.run import run as train
    from tests.lab.toy import toy

    experiment = toy(budget=Budget(epochs=2, batch_size=8, checkpoint_every=2), seeds=(1, 2))
    train(experiment, root=folder, progress=False)
    for path in folder.rglob("seed-2/*"):
        if path.name in ("result.json", "model.safetensors"):
            path.unlink()

    def answer(path: Path) -> np.ndarray:
        report = train(experiment, root=path, progress=False)
        return np.array([list(metrics.values()) for metrics in report.metrics.values()])

    return folder, answer
