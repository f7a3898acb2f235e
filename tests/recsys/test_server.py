"""The server: answers, refusals, limits that hold whatever a header says, many at once; the load test."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from manyheads.core.errors import ArgumentError, DataError
from manyheads.lab.command import run_commands
from manyheads.recsys.cli import commands
from tests.recsys.served import shop_model, shop_visits

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("httpx")

import httpx
import uvicorn

from manyheads.recsys.serving.app import make_app, serve
from manyheads.recsys.serving.export import export
from manyheads.recsys.serving.load import as_json, load_test
from manyheads.recsys.serving.ranker import Ranker

USER = ("device", "at", "age")
LIMIT = 200_000


@pytest.fixture(scope="module")
def visits():
    return shop_visits()


@pytest.fixture(scope="module")
def fitted():
    return shop_model()


@pytest.fixture(scope="module")
def ranker(fitted, tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    export(fitted, folder, shared=USER)
    return Ranker.load(folder)


@pytest.fixture(scope="module")
def url(ranker):
    """A real server in a thread of this process."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()  # a test that is quicker than the server's start waits
    server = uvicorn.Server(
        uvicorn.Config(make_app(ranker, max_rows=500, max_bytes=LIMIT), log_level="error", lifespan="off")
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join(10)
    listener.close()


@pytest.fixture
def rows(visits):
    return as_json(visits.drop(columns="bought"))


def works(url):
    return httpx.get(f"{url}/health").json() == {"status": "ok"}


def test_http_scores_are_the_recommenders_probabilities(url, visits, fitted, rows):
    answer = httpx.post(f"{url}/score", json={"rows": rows[:300]})
    assert answer.status_code == 200
    expected = fitted.predict_proba(visits.drop(columns="bought").iloc[:300])[:, 1]
    np.testing.assert_allclose(answer.json()["scores"]["bought"], expected, atol=1e-5)
    assert np.std(expected) > 0.01


def test_a_request_and_its_candidates_score_as_whole_rows(url, fitted, rows, visits):
    request = {name: rows[0][name] for name in USER}
    candidates = [{k: v for k, v in row.items() if k not in USER} for row in rows[:200]]
    found = httpx.post(f"{url}/score", json={"request": request, "candidates": candidates}).json()
    whole = visits.drop(columns="bought").iloc[:200].assign(**{name: visits[name].iloc[0] for name in USER})
    np.testing.assert_allclose(found["scores"]["bought"], fitted.predict_proba(whole)[:, 1], atol=1e-5)


def test_values_never_seen_are_scored_and_counted(url, rows):
    changed = [{**rows[0], "device": "watch", "item_id": 5}, {**rows[1], "item_id": None}]
    found = httpx.post(f"{url}/score", json={"rows": changed}).json()
    assert found["unseen"] == {"device": 1, "item_id": 1}
    assert found["missing"]["item_id"] == 1
    assert len(found["scores"]["bought"]) == 2


def test_the_model_says_what_a_row_is(url):
    found = httpx.get(f"{url}/model").json()
    kinds = {field["name"]: (field["kind"], field["shared"]) for field in found["fields"]}
    assert kinds["device"] == ("categorical", True)
    assert kinds["price"] == ("numeric", False)
    assert found["labels"] == [{"name": "bought", "scored": 1, "other": 0}]
    assert found["limits"] == {"rows": 500, "bytes": LIMIT}


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("{", "body: found no JSON"),
        ("[1]", "body: found list, expected an object with 'rows'"),
        ('{"row": []}', "body: found keys ['row']"),
        ('{"rows": [], "request": {}}', "body: found keys ['request', 'rows']"),
        ('{"rows": []}', "rows: found an empty list"),
        ('{"rows": {}}', "rows: found dict"),
        ('{"rows": [3]}', "row 0: found a number, expected an object"),
        ('{"rows": [{"devise": "phone"}]}', "row 0: field 'device' is missing, expected a value, or null"),
        ('{"rows": [{"device": "phone"}]}', "row 0: field 'item_id' is missing"),
        ('{"rows": [{"age": NaN}]}', "NaN is no number of JSON"),
        ('{"rows": [{"age": -Infinity}]}', "-Infinity is no number of JSON"),
        ('{"request": [], "candidates": [{}]}', "request: found list"),
        ('{"request": {"age": 3}, "candidates": [{"age": 3}]}', "column 'age': found in the request and in the"),
        ("[" * 100_000, "body:"),
        ('{"rows": [' + "9" * 5000 + "]}", "body: found no JSON"),
        ("\xff", "body: found no JSON"),
    ],
)
def test_what_cannot_be_scored_is_answered_with_the_reason(url, body, says):
    answer = httpx.post(f"{url}/score", content=body.encode("latin-1"))
    assert answer.status_code == 422
    assert says in answer.json()["error"]
    assert works(url)


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("age", "old", "row 1, field 'age': found text ('old'), expected a finite number"),
        ("age", 1e999, "row 1, field 'age': found inf, expected a finite number"),
        ("age", None, "row 1, field 'age': found a missing number"),
        ("device", 3, "row 1, field 'device': found 3, expected text"),
        ("item_id", 1.5, "row 1, field 'item_id': found 1.5, expected a whole number"),
        ("at", "soon", "expected a time"),
    ],
)
def test_a_value_of_the_wrong_kind_is_named(url, rows, field, value, says):
    body = json.dumps({"rows": [rows[0], {**rows[1], field: value}]}).replace("Infinity", "1e999")
    answer = httpx.post(f"{url}/score", content=body)
    assert answer.status_code == 422
    assert says in answer.json()["error"]
    assert works(url)


def test_too_many_rows_are_refused(url, rows):
    answer = httpx.post(f"{url}/score", json={"rows": [rows[0]] * 501})
    assert (answer.status_code, "found 501 rows, expected at most 500" in answer.text) == (422, True)


def raw(url, head, parts):
    """Sends bytes as they are; gives what comes back."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(f"POST /score HTTP/1.1\r\nHost: {host}\r\n{head}\r\n\r\n".encode())
        with contextlib.suppress(OSError):  # answered and closed before all was sent
            for part in parts:
                connection.sendall(part)
        try:
            return connection.recv(65536).decode()
        except OSError:
            return ""


def test_a_body_that_says_it_is_too_large_is_not_read(url):
    assert raw(url, f"Content-Length: {10**12}", []).startswith("HTTP/1.1 413")
    assert works(url)


def test_a_body_without_a_length_is_counted_as_it_comes(url):
    def chunks():
        while True:
            yield b"1000\r\n" + b" " * 4096 + b"\r\n"

    sent = 0

    def counted():
        nonlocal sent
        for chunk in chunks():
            sent += 4096
            yield chunk
            if sent > 40 * LIMIT:
                return

    answer = raw(url, "Transfer-Encoding: chunked", counted())
    assert answer == "" or answer.startswith("HTTP/1.1 413")
    assert sent < 40 * LIMIT  # the connection was closed long before
    assert works(url)


def test_the_limit_is_of_the_bytes_that_came(ranker):
    """Chunks that together are above the limit, under a header that says less."""
    app = make_app(ranker, max_bytes=1000)

    async def post(*chunks):
        async def content():
            for chunk in chunks:
                yield chunk

        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://here") as client:
            return await client.post("/score", content=content(), headers={"content-length": "10"})

    answer = asyncio.run(post(b" " * 600, b" " * 600))
    assert answer.status_code == 413
    assert "above 1000 bytes" in answer.json()["error"]
    assert asyncio.run(post(b"{}", b" " * 998)).status_code == 422


def test_a_client_that_leaves_does_no_harm(url):
    host, port = url.removeprefix("http://").split(":")
    for _ in range(5):
        with socket.create_connection((host, int(port)), timeout=20) as connection:
            connection.sendall(b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{")
    assert works(url)


def test_many_at_once_get_their_own_answers(url, rows):
    expected = httpx.post(f"{url}/score", json={"rows": rows[:80]}).json()["scores"]["bought"]

    def one(number):
        body = {"rows": [rows[number]]} if number % 5 else {"rows": [{**rows[number], "age": "old"}]}
        return client.post(f"{url}/score", json=body)

    with ThreadPoolExecutor(8) as pool, httpx.Client() as client:
        answers = list(pool.map(one, range(80)))
    for number, answer in enumerate(answers):
        if number % 5:
            np.testing.assert_allclose(answer.json()["scores"]["bought"], expected[number], atol=1e-6)
        else:
            assert answer.status_code == 422


def test_other_paths_and_methods_are_not_there(url):
    assert httpx.get(f"{url}/score").status_code == 405
    assert httpx.get(f"{url}/score").headers["allow"] == "POST"
    assert httpx.get(f"{url}/docs").status_code == 404
    assert httpx.get(f"{url}/docs").json()["error"].startswith("GET /docs: not found: POST /score, GET /model")


def test_the_load_test_counts_every_answer(url, visits):
    found = load_test(url, visits, candidates=70, requests=24, connections=3)
    assert found.statuses == {"200": 24}
    assert 0 < found.p50_ms <= found.p99_ms
    refused = load_test(url, visits.assign(age="old"), candidates=2, requests=6, connections=2)
    assert refused.statuses == {"422": 6}
    assert refused.answers_per_second == 0


def test_the_load_test_is_for_this_machine_only(visits):
    for bad in ("http://example.com:80", "127.0.0.1", "http://127.0.0.1:x"):
        with pytest.raises(ArgumentError, match=r"url: found .*, expected http://127\.0\.0\.1:PORT"):
            load_test(bad, visits, candidates=1, requests=1, connections=1)
    with pytest.raises(ArgumentError, match="where no server answers"):
        load_test("http://127.0.0.1:9", visits, candidates=1, requests=1, connections=1)
    with pytest.raises(ArgumentError, match="connections: found 0"):
        load_test("http://127.0.0.1:9", visits, candidates=1, requests=1, connections=0)


def test_the_load_test_names_a_field_that_the_rows_lack(url, visits):
    with pytest.raises(DataError, match="rows: column 'age' is missing"):
        load_test(url, visits.drop(columns="age"), candidates=1, requests=1, connections=1)


def test_the_command_serves_until_it_is_told_to_stop(fitted, tmp_path, rows):
    export(fitted, tmp_path)
    command = [sys.executable, "-m", "manyheads.recsys", "serve", str(tmp_path), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline()
        assert "http://127.0.0.1:" in line
        address = "http://127.0.0.1:" + line.split("http://127.0.0.1:")[1].split(";")[0]
        assert httpx.post(f"{address}/score", json={"rows": rows[:2]}).status_code == 200
    finally:
        process.send_signal(2)
        assert process.wait(20) in (0, 130)
    assert "Traceback" not in process.stderr.read()


def test_the_listening_socket_sends_small_answers_at_once(ranker, monkeypatch):
    """asyncio sets TCP_NODELAY only where the protocol is named; without it an answer waits 40 ms for the client."""
    held = []
    monkeypatch.setattr(uvicorn.Server, "run", lambda self, sockets: held.extend(one.proto for one in sockets))
    serve(ranker, 0, held.append, max_rows=1, max_bytes=1)
    assert held[1] == socket.IPPROTO_TCP
    assert held[0].startswith("http://127.0.0.1:")


def test_a_port_that_is_taken_is_named(ranker):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        for bad in (port, 70_000):
            with pytest.raises(ArgumentError, match=f"port: found {bad}, expected one that is free"):
                serve(ranker, bad, print, max_rows=1, max_bytes=1)


def test_serving_a_folder_without_a_model_fails_in_one_line(tmp_path: Path, capsys):
    assert run_commands("manyheads recsys", "", commands, ["serve", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "no such file" in said
