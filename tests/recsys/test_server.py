"""The server: answers, refusals, limits whatever the headers say, concurrency; the load test."""

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
import pandas as pd
import pytest

from manyheads.core.errors import ArgumentError, DataError, ManyheadsError
from manyheads.lab.cli.command import run_commands
from manyheads.recsys.commands import commands
from tests.recsys.served import shop_model, shop_visits

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("httpx")

import httpx
import uvicorn

from manyheads.recsys.serving.app import make_app, serve
from manyheads.recsys.serving.connections import patient
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


@contextlib.contextmanager
def running(app, **settings):
    """Run a real server in a thread of this process; return its address."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(512)  # a test that is quicker than the server's start waits
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off", **settings))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
        listener.close()


@pytest.fixture(scope="module")
def url(ranker):
    with running(make_app(ranker, max_rows=500, max_bytes=LIMIT), http=patient(30.0), ws="none") as address:
        yield address


@pytest.fixture
def rows(visits):
    return as_json(visits.drop(columns="bought"))


def works(url):
    return httpx.get(f"{url}/health").json() == {"status": "ok"}


def test_http_scores_equal_the_probabilities_of_the_recommender(url, visits, fitted, rows):
    answer = httpx.post(f"{url}/score", json={"rows": rows[:300]})
    assert answer.status_code == 200
    expected = fitted.predict_proba(visits.drop(columns="bought").iloc[:300])[:, 1]
    np.testing.assert_allclose(answer.json()["scores"]["bought"], expected, atol=1e-5)
    assert np.std(expected) > 0.01


def test_a_request_with_candidates_scores_like_whole_rows(url, fitted, rows, visits):
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


def test_get_model_describes_a_row(url):
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
def test_rows_that_cannot_be_scored_get_422_with_the_reason(url, body, says):
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
    """Send raw bytes; return the received bytes."""
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


def test_a_body_too_large_by_its_header_is_not_read(url):
    assert raw(url, f"Content-Length: {10**12}", []).startswith("HTTP/1.1 413")
    assert works(url)


def test_a_body_without_a_length_is_counted_while_it_arrives(url):
    def chunks():
        while True:
            yield b"1000\r\n" + b" " * 4096 + b"\r\n"

    sent = 0

    def counted():
        nonlocal sent
        for chunk in chunks():
            sent += 4096
            yield chunk
            if sent > 400 * LIMIT:
                return

    answer = raw(url, "Transfer-Encoding: chunked", counted())
    assert answer == "" or answer.startswith("HTTP/1.1 413")
    assert sent < 400 * LIMIT  # the connection was closed long before
    assert works(url)


def test_the_size_limit_counts_received_bytes(ranker):
    """Chunks with a sum above the limit, under a header below it."""
    app = make_app(ranker, max_bytes=1000)

    async def post(*chunks):
        async def content():
            for chunk in chunks:
                yield chunk

        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
            return await client.post("/score", content=content(), headers={"content-length": "10"})

    answer = asyncio.run(post(b" " * 600, b" " * 600))
    assert answer.status_code == 413
    assert "above 1000 bytes" in answer.json()["error"]
    assert asyncio.run(post(b"{}", b" " * 998)).status_code == 422


@pytest.mark.parametrize("times", [1.5, 8])
def test_a_body_over_the_limit_gets_its_413_and_no_reset(url, times):
    """Also if the client sends the whole body before it reads."""
    with httpx.Client() as client:
        for _ in range(3):
            answer = client.post(f"{url}/score", content=b" " * int(times * LIMIT), headers=JSON)
            assert (answer.status_code, answer.headers["connection"]) == (413, "close")
            assert answer.json()["error"] == f"body: above {LIMIT} bytes, expected less: send the rows in parts"
    assert works(url)


JSON = {"content-type": "application/json"}


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b'{"rows": [{"age": 1, "age": 2}]}', "body: found no JSON (the key 'age' is there twice)"),
        (b'{"rows": [], "rows": []}', "body: found no JSON (the key 'rows' is there twice)"),
        (b'\xef\xbb\xbf{"rows": []}', "body: found no JSON (Unexpected UTF-8 BOM"),
        ('{"rows": []}'.encode("utf-16"), "body: found no JSON"),
        (b'{"rows": [{"device": "\xff"}]}', "body: found no JSON"),
        (b"", "body: found no JSON"),
        (b'{"rows": [' + b'{"a":' * 400 + b"1" + b"}" * 400 + b"]}", "row 0: field 'device' is missing"),
        (b'{"\\ud800": 1}', "body: found keys"),
        (b'{"rows": [{"' + b"k" * 60_000 + b'": 1}]}', "row 0: field 'device' is missing"),
    ],
)
def test_bad_bodies_are_answered_in_one_short_line(url, body, says):
    answer = httpx.post(f"{url}/score", content=body, headers=JSON)
    assert answer.status_code == 422
    assert says in answer.json()["error"]
    assert len(answer.json()["error"]) <= 500
    assert "\n" not in answer.json()["error"]


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("age", "9" * 400, "found a whole number of 1329 bits, expected a finite number"),
        ("item_id", "9" * 400, "found a whole number of 1329 bits, expected a whole number"),
        ("at", "9" * 400, "expected seconds since 1970"),
        ("age", "[" * 300 + "]" * 300, "found a list"),
        ("at", '"today"', "found text ('today'), expected a time such as"),
        ("at", '"now"', "found text ('now'), expected a time such as"),
        ("at", '"tomorrow"', "expected a time such as"),
        ("at", "1e300", "expected seconds since 1970"),
        ("age", "1e300", "expected a number near those that were fitted"),
        ("device", '{"a": "\\ud800"}', "found dict"),
    ],
)
def test_unreadable_values_are_refused_as_in_predict(url, rows, fitted, visits, field, value, says):
    body = json.dumps({"rows": [{**rows[0], field: "@"}]}).replace('"@"', value)
    answer = httpx.post(f"{url}/score", content=body, headers=JSON)
    assert answer.status_code == 422
    assert says in answer.json()["error"]
    table = visits.drop(columns="bought").iloc[[0]].astype({field: object})
    table[field] = pd.Series([json.loads(value)], index=table.index, dtype=object)
    with pytest.raises(ManyheadsError):
        fitted.predict_proba(table)


def test_halves_of_surrogate_pairs_are_out_of_vocabulary(url, rows):
    body = json.dumps({"rows": [{**rows[0], "device": "\ud800", "tags": "new|\udfff"}]})
    answer = httpx.post(f"{url}/score", content=body, headers=JSON)
    assert (answer.status_code, answer.json()["unseen"]) == (200, {"device": 1, "tags": 1})


def test_unknown_columns_are_ignored_as_in_predict(url, rows):
    plain = httpx.post(f"{url}/score", json={"rows": rows[:2]}).json()
    more = [{**row, "note": [{"any": None}], "bought": 1} for row in rows[:2]]
    assert httpx.post(f"{url}/score", json={"rows": more}).json() == plain


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("application/json", 200),
        ("application/json; charset=UTF-8", 200),
        (None, 200),
        ("text/plain", 415),
        ("application/x-www-form-urlencoded", 415),
        ("multipart/form-data; boundary=x", 415),
        ("application/json; charset=latin-1", 415),
        ("", 415),
    ],
)
def test_the_content_type_is_checked(url, rows, kind, status):
    """A web page of another site may send only the content types of forms without a CORS preflight."""
    headers = {} if kind is None else {"content-type": kind}
    answer = httpx.post(f"{url}/score", content=json.dumps({"rows": rows[:1]}), headers=headers)
    assert answer.status_code == status
    assert status == 200 or answer.json()["error"].startswith("content-type: found")


def test_a_compressed_body_is_refused(url, rows):
    headers = {**JSON, "content-encoding": "gzip"}
    answer = httpx.post(f"{url}/score", content=b"x", headers=headers)
    assert (answer.status_code, answer.json()["error"]) == (415, "content-encoding: found gzip, expected none")


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200),
        ("127.0.0.1:80", 200),
        ("LocalHost:8000", 200),
        ("[::1]:8000", 200),
        ("[::1]", 200),
        ("evil.example", 400),
        ("127.0.0.1.evil.example", 400),
        ("localhost.evil.example:8000", 400),
        ("[::2]:80", 400),
        ("127.0.0.1:80:80", 400),
        ("", 400),
    ],
)
def test_a_request_for_another_host_is_refused(url, host, status):
    """Protection against DNS rebinding."""
    answer = httpx.get(f"{url}/health", headers={"host": host})
    assert answer.status_code == status
    assert status == 200 or answer.json()["error"].startswith("host: found")


def test_other_hosts_can_be_allowed(ranker):
    async def status(host, *hosts):
        transport = httpx.ASGITransport(make_app(ranker, hosts=hosts))
        async with httpx.AsyncClient(transport=transport, base_url=f"http://{host}") as client:
            return (await client.get("/health")).status_code

    assert asyncio.run(status("ranker.internal", "ranker.internal")) == 200
    assert asyncio.run(status("localhost", "ranker.internal")) == 400
    assert asyncio.run(status("anything", "*")) == 200


def connect(url):
    host, port = url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=20)


def test_idle_connections_do_not_block_other_clients(ranker):
    """No timeout closes them here: there are more than the maximum number of connections."""
    with running(make_app(ranker), http=patient(1000.0, most=40)) as url, contextlib.ExitStack() as idle:
        held = [idle.enter_context(connect(url)) for _ in range(120)]
        for connection in held[::2]:
            with contextlib.suppress(OSError):  # closed already
                connection.sendall(b"GET /health HTTP/1.1\r\nHost: local")
        for _ in range(5):
            assert works(url)


@pytest.mark.parametrize(
    "sent",
    [
        [b""],
        [b"GET /health HTTP/1.1\r\n"],
        [b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n", b"GET"],
        [b"G", b"E", b"T"],
    ],
    ids=["nothing", "half a head", "half a second request", "a byte at a time"],
)
def test_a_connection_without_a_complete_request_is_closed(ranker, sent):
    with running(make_app(ranker), http=patient(0.5)) as url, connect(url) as connection:
        for part in sent:
            connection.sendall(part)
            connection.settimeout(0.1)
            with contextlib.suppress(TimeoutError):
                connection.recv(4096)
        connection.settimeout(20)
        with contextlib.suppress(ConnectionResetError):
            assert connection.recv(4096) == b""


def test_a_body_that_does_not_arrive_gets_408(ranker):
    with running(make_app(ranker, seconds=0.2), http=patient(30.0)) as url, connect(url) as connection:
        connection.sendall(b"POST /score HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n{")
        answer = b"".join(iter(lambda: connection.recv(4096), b""))
        assert answer.startswith(b"HTTP/1.1 408")
        assert b"body: found a part of it after 0.2 s" in answer


def test_pipelined_requests_are_all_answered(url):
    one = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with connect(url) as connection:
        connection.sendall(one * 3)
        found = b""
        while found.count(b'{"status":"ok"}') < 3:
            found += connection.recv(4096)


def test_bytes_that_are_no_http_get_400_as_json(url):
    with connect(url) as connection:
        connection.sendall(b"\x00\x01\r\n\r\n")
        head, _, body = b"".join(iter(lambda: connection.recv(4096), b"")).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400")
    assert json.loads(body)["error"].startswith("request: found no HTTP")
    assert works(url)


def test_a_client_that_disconnects_does_no_harm(url):
    host, port = url.removeprefix("http://").split(":")
    for _ in range(5):
        with socket.create_connection((host, int(port)), timeout=20) as connection:
            connection.sendall(b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{")
    assert works(url)


def test_concurrent_requests_get_their_own_answers(url, rows):
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


def test_other_paths_and_methods_are_refused(url):
    assert httpx.get(f"{url}/score").status_code == 405
    assert httpx.get(f"{url}/score").headers["allow"] == "POST"
    assert httpx.get(f"{url}/docs").status_code == httpx.post(f"{url}/score/").status_code == 404
    assert httpx.get(f"{url}/docs").json()["error"].startswith("GET /docs: not found: POST /score, GET /model")


def test_the_load_test_counts_every_response(url, visits):
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


def test_the_load_test_names_a_missing_field(url, visits):
    with pytest.raises(DataError, match="rows: column 'age' is missing"):
        load_test(url, visits.drop(columns="age"), candidates=1, requests=1, connections=1)


def test_the_command_serves_until_interrupted(fitted, tmp_path, rows):
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


def test_the_listening_socket_sends_small_responses_at_once(ranker, monkeypatch):
    """asyncio sets TCP_NODELAY only if the protocol is named; without it a response waits 40 ms for the client."""
    held = []
    monkeypatch.setattr(uvicorn.Server, "run", lambda self, sockets: held.extend(one.proto for one in sockets))
    serve(ranker, 0, held.append, max_rows=1, max_bytes=1)
    assert held[1] == socket.IPPROTO_TCP
    assert held[0].startswith("http://127.0.0.1:")


def test_a_port_in_use_is_named(ranker):
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
