"""What is fuzzed: each area prepares once and then tries one input a seed.

    try_one = AREAS["audio"](folder)
    what, outcome = try_one(seed)    # the description of the input, and one of REFUSED, RIGHT, UNCHECKED

A trial raises :class:`AssertionError` for an answer that its oracle, or a property, shows to be wrong, or for an error
that is not one line; any other exception is a traceback that a user would see.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

REFUSED, RIGHT, UNCHECKED = "one-line error", "right answer", "unchecked answer"

Trial = Callable[[int], tuple[str, str]]


def refusal(call: Callable[[], object]) -> str | None:
    """The one line in which ``call`` refuses; None where it does not."""
    from manyheads.core.errors import ManyheadsError

    said = None
    try:
        call()
    except ManyheadsError as error:
        said = str(error)
    assert said is None or len(said.splitlines()) == 1, f"not one line: {said!r}"
    return said


def forecasting_tables(folder: Path) -> Trial:
    """Tables in memory and files; the generator knows the right series of most of them."""
    from tests.fuzz.forecasting_tables import check, odd_table

    def try_one(seed: int) -> tuple[str, str]:
        table = odd_table(seed)
        if check(table).startswith("refused"):
            return table.description, REFUSED
        return table.description, UNCHECKED if table.oracle is None else RIGHT

    return try_one


def audio(folder: Path) -> Trial:
    """Sound files: what is read has finite samples, and no more of them than its bytes can hold."""
    import numpy as np

    from manyheads.kws.audio.reading import Sound, read_sound
    from tests.fuzz.audio import damaged

    def try_one(seed: int) -> tuple[str, str]:
        description, content, suffix = damaged(7, seed)
        path = folder / f"sound{suffix}"
        path.write_bytes(content)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            sounds: list[Sound] = []
            said = refusal(lambda: sounds.append(read_sound(path, 16000)))
        if said is not None:
            assert said.startswith(str(path)), f"names no file: {said}"
            return description, REFUSED
        (sound,) = sounds
        assert np.isfinite(sound.samples).all(), "a sample that is no number"
        assert 0 < len(sound.samples) <= 16 * 64 * len(content), f"{len(sound.samples)} samples of {len(content)} bytes"
        return description, UNCHECKED

    return try_one


def recommender_tables(folder: Path) -> Trial:
    """Tables and specs: a row is encoded as it would be alone, in any order, from a file, and by the server."""
    from tests.fuzz.recommender_tables import check, make

    def try_one(seed: int) -> tuple[str, str]:
        case = make(seed)
        fitted = check(case) == "fitted"
        return f"columns {', '.join(map(str, case.train.columns))}", RIGHT if fitted else REFUSED

    return try_one


def model_files(folder: Path) -> Trial:
    """Stored files and run folders: refused by name, or they answer as the whole ones do."""
    from tests.fuzz.model_files import Stores

    stores = Stores(folder)

    def try_one(seed: int) -> tuple[str, str]:
        what, outcome = stores.check(seed)
        return what, {"read": RIGHT, "resealed": UNCHECKED}.get(outcome, REFUSED)

    return try_one


def http_bodies(folder: Path) -> Trial:
    """Bodies for the server: never 500; scores equal those of the ranker for the same rows."""
    import asyncio

    import httpx

    from manyheads.recsys.serving.app import make_app
    from manyheads.recsys.serving.export import export
    from manyheads.recsys.serving.load import as_json
    from manyheads.recsys.serving.ranker import Ranker
    from tests.fuzz.http_bodies import check, make
    from tests.recsys.served import shop_model, shop_visits

    export(shop_model(), folder / "served")
    ranker = Ranker.load(folder / "served")
    rows = as_json(shop_visits().drop(columns="bought").head(50))
    app = make_app(ranker, max_bytes=200_000)

    async def ask(body: bytes, headers: dict[str, str]) -> httpx.Response:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.post("/score", content=body, headers=headers)

    loop = asyncio.new_event_loop()

    def try_one(seed: int) -> tuple[str, str]:
        body, headers = make(seed, rows)
        answer = loop.run_until_complete(ask(body, headers))
        check(answer.status_code, answer.content, body, ranker)
        return f"{body[:60]!r}", RIGHT if answer.status_code == 200 else REFUSED

    return try_one


def layer_calls(folder: Path) -> Trial:
    """Wrong constructor and forward calls of layers: every one must be refused."""
    from tests.fuzz.layers import wrong_constructor_calls, wrong_forward_calls

    wrong_forward = wrong_forward_calls(0, 1 << 40)  # it keeps the layers that it has built

    def try_one(seed: int) -> tuple[str, str]:
        calls = wrong_forward if seed % 2 else wrong_constructor_calls(seed, 4)
        what, call = next(iter(calls))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            said = refusal(call)
        assert said is not None, f"{what}: accepted"
        return what, REFUSED

    return try_one


AREAS: dict[str, Callable[[Path], Trial]] = {
    "forecasting tables": forecasting_tables,
    "audio files": audio,
    "recommender tables and specs": recommender_tables,
    "model files and run folders": model_files,
    "HTTP bodies": http_bodies,
    "layer calls": layer_calls,
}
