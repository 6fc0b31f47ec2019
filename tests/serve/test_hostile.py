"""Bad requests get an answer that says what is wrong, hostile clients get no more than their share, and nobody gets what is another's."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("fastapi", reason="the service needs the extra `serve`")

from unmask.serve.limits import Limits

TEXT = "The nurse watches the [MASK] in the garden."
LIMITS = Limits(max_concurrent=16, max_connections=300, max_body_bytes=2**18, max_inputs=64, max_text_tokens=200)


@pytest.fixture(scope="module")
def service(tiny_bert, serving):
    with serving({"tiny": tiny_bert}, limits=LIMITS) as running:
        assert running.post("/models/tiny", {"inputs": TEXT})[0] == 200
        yield running
        # whatever was done to it, it still answers
        assert running.post("/models/tiny", {"inputs": TEXT})[0] == 200


def masks(number: int) -> str:
    return " ".join(["[MASK]"] * number)


BAD = {
    "no mask": (422, {"inputs": "The nurse."}, "there is no mask"),
    "an empty text": (422, {"inputs": ""}, "there is no mask"),
    "no text": (422, {"inputs": []}, "at least 1 item"),
    "no inputs": (422, {}, "inputs: Field required"),
    "a number": (422, {"inputs": 3}, "inputs"),
    "null": (422, {"inputs": None}, "inputs"),
    "a list of lists": (422, {"inputs": [[TEXT]]}, "inputs"),
    "an object": (422, {"inputs": {"text": TEXT}}, "inputs"),
    "a list as the body": (422, [TEXT], "the body"),
    "a text as the body": (422, TEXT, "the body"),
    "an unknown field": (422, {"inputs": TEXT, "top_k": 3}, "top_k"),
    "an unknown parameter": (422, {"inputs": TEXT, "parameters": {"topk": 3}}, "parameters.topk"),
    "a number as text": (422, {"inputs": TEXT, "parameters": {"top_k": "3"}}, "top_k"),
    "a fraction": (422, {"inputs": TEXT, "parameters": {"top_k": 2.5}}, "top_k"),
    "no candidates": (422, {"inputs": TEXT, "parameters": {"top_k": 0}}, "top_k"),
    "a negative number": (422, {"inputs": TEXT, "parameters": {"top_k": -1}}, "top_k"),
    "a huge number": (422, {"inputs": TEXT, "parameters": {"top_k": 10**30}}, "top_k"),
    "no targets": (422, {"inputs": TEXT, "parameters": {"targets": []}}, "targets"),
    "targets that do not exist": (422, {"inputs": TEXT, "parameters": {"targets": ["☃☃"]}}, "cannot be written"),
    "an empty target": (422, {"inputs": TEXT, "parameters": {"targets": [""]}}, "empty"),
    "a special target": (422, {"inputs": TEXT, "parameters": {"targets": ["[SEP]"]}}, "special token"),
    "targets for other masks": (422, {"inputs": TEXT, "parameters": {"targets": [["a"], ["b"]]}}, "targets for 2 masks"),
    "options that exclude each other": (422, {"inputs": TEXT, "parameters": {"whole_words": True, "targets": ["nurse"]}}, "targets say"),
    "targets together": (422, {"inputs": TEXT, "parameters": {"joint": True, "targets": ["nurse"]}}, "joint: targets are scored"),
    "blanks together": (422, {"inputs": TEXT, "parameters": {"joint": True, "max_pieces": 2}}, "leave out one"),
    "a beam for nothing": (422, {"inputs": TEXT, "parameters": {"beam": 9}}, "beam is the width"),
    "too wide a search": (413, {"inputs": masks(10), "parameters": {"joint": True}}, "up to 6,000 times; at most 4,096"),
    "too many pieces": (413, {"inputs": ["___"] * 9, "parameters": {"max_pieces": 4}}, "the search would ask"),
    "targets of too many pieces": (413, {"inputs": "a [MASK] b", "parameters": {"targets": ["nurse" * 12] * 2000}}, "shorter targets"),
    "too many masks": (413, {"inputs": masks(65)}, "65 masks"),
    "too many texts": (413, {"inputs": ["[MASK]"] * 10_000}, "10,000 inputs"),
    "too large an answer": (413, {"inputs": [TEXT * 50] * 64, "parameters": {"top_k": 300}}, "characters of filled texts"),
    "5 MB of text": (413, {"inputs": TEXT + " nurse" * 900_000}, "larger than"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_request_is_told_what_is_wrong(service, what):
    status, body, said = BAD[what]
    found_status, found = service.post("/models/tiny", body)
    assert (found_status, said in found["error"]) == (status, True), found


RAW = {
    "nothing": (422, b""),
    "no JSON": (422, b"{'inputs': 'x'}"),
    "half of JSON": (422, b'{"inputs": "x'),
    "invalid UTF-8": (422, b'{"inputs": "The \xff\xfe [MASK]."}'),
    "UTF-16": (422, json.dumps({"inputs": TEXT}).encode("utf-16")),
    "half a surrogate pair": (422, b'{"inputs": "The \\ud800 [MASK]."}'),
    "no number": (422, b'{"inputs": "[MASK]", "parameters": {"top_k": NaN}}'),
    "deep brackets": (422, b"[" * 200_000),
    "deep inputs": (422, b'{"inputs": ' + b"[" * 50_000 + b"]" * 50_000 + b"}"),
    "digits": (422, b'{"inputs": "[MASK]", "parameters": {"top_k": ' + b"9" * 100_000 + b"}}"),
    "bytes": (422, bytes(range(256)) * 100),
}


@pytest.mark.parametrize("what", RAW)
def test_bytes_that_are_no_request(service, what):
    status, body = RAW[what]
    found_status, found = service.post("/models/tiny", body)
    assert found_status == status and found["error"]


ODD = ["[MASK]", "\x00 [MASK] \x07", "\u202e[MASK]\u202c \u2603 \U0001f600", "<script>alert(1)</script> [MASK]", "[CLS] [SEP] [MASK] [PAD]",
       masks(50)]  # fmt: skip


def test_what_is_odd_and_right_is_answered(service):
    for text in ODD:
        status, found = service.post("/models/tiny", {"inputs": text, "parameters": {"top_k": 2}})
        assert status == 200, (text, found)
    assert len(found) == 50 and all(len(mask) == 2 for mask in found)
    assert service.post("/models/tiny", {"inputs": TEXT, "parameters": None, "options": {"wait_for_model": True}})[0] == 200
    assert service.post("/models/tiny", {"inputs": TEXT, "parameters": {"top_k": None, "targets": None}})[0] == 200


def test_script_in_a_text_comes_back_as_json(service):
    status, headers, found = service.ask_all("POST", "/models/tiny", {"inputs": "<script>alert(1)</script>"})
    assert status == 422 and headers["content-type"] == "application/json" and "<script>" in found["error"]


def test_a_text_is_scored_up_to_a_size(service):
    status, found = service.post("/score", {"inputs": "nurse " * 500})
    assert status == 413 and "500 tokens of a text; at most 200" in found["error"]
    assert service.post("/score", {"inputs": "nurse " * 500, "parameters": {"method": "sampled"}})[0] == 200
    assert service.post("/score", {"inputs": "nurse " * 12_000})[0] == 413
    assert service.post("/tokenize", {"inputs": "x" * 70_000})[0] == 413
    status, found = service.post("/score", {"inputs": ["", "The nurse."]})
    assert status == 200 and "nothing to score" in found[0]["error"] and found[1]["num_tokens"] == 3
    assert service.post("/api/score", {"text": "\x01"})[0] == 422


PATHS = [
    "/models/none", "/models/../../etc/passwd", "/models/..%2f..%2fetc%2fpasswd", "/models/%2e%2e", "/models/tiny%00", "/models/tiny/",
    "/models/", "/models/" + "a" * 5000, "/models/tiny/../tiny", "/models/tiny/config.json", "/models/tiny/score/", "/models/T%C3%AFny",
    "/static/../app.py", "/static/..%2fapp.py", "/etc/passwd", "//models/tiny",
]  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
def test_names_are_not_paths(service, path):
    for method, body in (("POST", {"inputs": TEXT}), ("GET", None)):
        status, found = service.ask(method, path, body)
        assert status in (404, 405) and found["error"], found


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "TRACE", "BREW"])
def test_other_methods(service, method):
    status = service.ask(method, "/score", {"inputs": TEXT} if method in ("PUT", "PATCH") else None)[0]
    assert status == (400 if method == "BREW" else 405)  # what HTTP does not know is no request


def test_another_kind_of_body(service):
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
        status, found = service.ask("POST", "/models/tiny", json.dumps({"inputs": TEXT}).encode(), **{"Content-Type": kind})
        assert status == 415 and "application/json" in found["error"]
    assert service.ask("POST", "/models/tiny", {"inputs": TEXT}, **{"Content-Type": "application/json; charset=utf-8"})[0] == 200


# connections

HEAD = b"POST /models/tiny HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


def test_bytes_that_are_no_http(service):
    lengths = [HEAD + b"Content-Length: " + value + b"\r\n\r\n" for value in (b"-5", b"x", b"5, 6", b"9" * 99)]
    for data in (b"\x16\x03\x01\x02\x00\r\n\r\n", b"hello\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", *lengths):
        found = service.raw(data)
        assert found.startswith(b"HTTP/1.1 4") and b'{"error":' in found, (data, found)
    with contextlib.suppress(ConnectionResetError):  # hung up on before it has sent all
        assert service.raw(b"GET /health HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 200_000 + b"\r\n\r\n").startswith(b"HTTP/1.1 4")


def test_an_endless_head_while_a_request_is_answered(service):
    gate, body = _held(service), json.dumps({"inputs": TEXT}).encode()
    try:
        with socket.create_connection(("127.0.0.1", service.port), timeout=20) as client, contextlib.suppress(ConnectionError):
            client.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            _until(lambda: _flying(service) == 1)
            for _ in range(20):
                client.sendall(b"GET / HTTP/1.1\r\nX: " + b"a" * 2**15)
            assert client.recv(1) == b""  # hung up on
        _until(lambda: _flying(service) == 0)
    finally:
        gate.set()
        gate.undo()


def test_a_body_in_pieces_and_one_without_a_length(service):
    body = json.dumps({"inputs": TEXT}).encode()
    pieces = b"".join(b"1\r\n" + body[place : place + 1] + b"\r\n" for place in range(len(body))) + b"0\r\n\r\n"
    assert b"200 OK" in service.raw(HEAD + b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n" + pieces)
    endless = b"%x\r\n" % 2**16 + b"x" * 2**16 + b"\r\n"
    found = service.raw(HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + endless * 20 + b"0\r\n\r\n")
    assert b"413" in found.partition(b"\r\n")[0] and b"larger than 262,144 bytes" in found


@pytest.fixture(scope="module")
def impatient(tiny_bert, serving):
    with serving({"tiny": tiny_bert}, limits=Limits(client_seconds=0.7)) as running:
        yield running


def test_a_slow_client_is_not_waited_for(impatient):
    service, started = impatient, time.monotonic()
    found = service.raw(HEAD + b"Content-Length: 100\r\n\r\n" + b'{"inputs"')  # and nothing more
    assert b"408" in found.partition(b"\r\n")[0] and b"did not arrive" in found
    assert service.raw(HEAD[:40]) == b""  # not even a head
    assert service.raw(b"") == b""
    # one that goes on with a head after a good answer
    assert b"200 OK" in service.raw(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n", HEAD[:30])
    assert time.monotonic() - started < 40


def test_a_client_that_does_not_read_is_hung_up_on(impatient):
    service = impatient
    assert service.post("/models/tiny", {"inputs": TEXT})[0] == 200
    body = json.dumps({"inputs": [TEXT * 40] * 32, "parameters": {"top_k": 20}}).encode()
    request = HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", service.port))
        client.sendall(request * 3)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and _flying(service):
            time.sleep(0.1)
    assert service.post("/models/tiny", {"inputs": TEXT})[0] == 200


def _flying(service) -> float:
    text = service.ask("GET", "/metrics")[1].decode()
    return next(float(line.split()[1]) for line in text.splitlines() if line.startswith("unmask_requests_in_flight "))


def _held(service) -> threading.Event:
    """Make the model wait before each turn until the event is set."""
    lane = service.app.state.models.all["tiny"].current.lane
    gate, run = threading.Event(), lane.run

    def held(works):
        assert gate.wait(30)
        return run(works)

    lane.run = held
    gate.undo = lambda: setattr(lane, "run", run)  # type: ignore[attr-defined]
    return gate


def test_a_client_that_goes_away_is_forgotten(service):
    gate = _held(service)
    lane = service.app.state.models.all["tiny"].current.lane
    body = json.dumps({"inputs": TEXT}).encode()
    clients = []
    try:
        for _ in range(8):
            client = socket.create_connection(("127.0.0.1", service.port))
            client.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            clients.append(client)
        _until(lambda: _flying(service) == 8)
        with ThreadPoolExecutor(1) as pool:
            stays = pool.submit(service.post, "/models/tiny", {"inputs": TEXT})
            _until(lambda: len(lane) >= 1)
            for client in clients:
                client.close()
            _until(lambda: _flying(service) == 1)
            gate.set()
            assert stays.result()[0] == 200
    finally:
        gate.set()
        gate.undo()
    assert _flying(service) == 0


def _until(true) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_200_clients_at_once(service):
    """Of 200 that come while the model is held, 16 are taken on, and the others told to come back; nobody waits, nobody is mixed up."""
    gate = _held(service)
    words = [f"The nurse {number}" for number in range(200)]
    refused = threading.Semaphore(0)

    def ask(number: int):
        status, headers, found = service.ask_all("POST", "/models/tiny", {"inputs": f"{words[number]} watches the [MASK]."})
        if status == 429:
            refused.release()
        return number, status, headers, found

    try:
        with ThreadPoolExecutor(200) as pool:
            futures = [pool.submit(ask, number) for number in range(200)]
            for _ in range(184):
                assert refused.acquire(timeout=60)
            gate.set()
            answers = [future.result() for future in futures]
    finally:
        gate.set()
        gate.undo()
    taken = [(number, found) for number, status, _, found in answers if status == 200]
    assert len(taken) == 16 and all(found[0]["sequence"].startswith(f"{words[number]} watches") for number, found in taken)
    assert all(headers["retry-after"] == "1" and "come back" in found["error"] for _, status, headers, found in answers if status == 429)


def test_too_many_connections(service):
    connections = [socket.create_connection(("127.0.0.1", service.port)) for _ in range(LIMITS.max_connections)]
    try:
        assert service.raw(b"").startswith(b"HTTP/1.1 503")
    finally:
        for connection in connections:
            connection.close()
    _until(lambda: service.ask("GET", "/health")[0] == 200)


def test_an_answer_that_takes_too_long(tiny_bert, serving):
    with serving({"tiny": tiny_bert}, limits=Limits(request_seconds=1.0)) as service:
        _until(lambda: service.post("/models/tiny", {"inputs": TEXT})[0] == 200)  # the first one loads
        gate = _held(service)
        status, headers, found = service.ask_all("POST", "/models/tiny", {"inputs": TEXT})
        assert status == 503 and "retry-after" in headers and "no answer within 1 s" in found["error"]
        gate.set()
        gate.undo()
        assert service.post("/models/tiny", {"inputs": TEXT})[0] == 200


def test_a_model_that_is_not_loaded_in_time_says_so(tiny_bert, serving):
    """One is loaded at a time: this one waits for its turn, which is as good as a large one."""
    with serving({"tiny": tiny_bert}, limits=Limits(request_seconds=0.5), api_key="secret") as service:
        key, turn = {"Authorization": "Bearer secret"}, threading.Event()
        service.app.state.models.pool.submit(turn.wait, 60)
        try:
            for path in ("/models/tiny", "/score", "/models/tiny/reload"):
                status, headers, found = service.ask_all("POST", path, {"inputs": TEXT}, **key)
                assert status == 503 and headers["retry-after"] == "5"
                assert found["error"] == "the model 'tiny' is still being loaded after 0.5 s; come back"
            assert service.ask("GET", "/ready")[1]["models"] == {"tiny": "loading"}
        finally:
            turn.set()
        _until(lambda: service.post("/models/tiny", {"inputs": TEXT}, **key)[0] == 200)
        assert service.ask("GET", "/models/tiny", **key)[1]["num_loads"] == 1  # what was given up went on


def test_a_fault_of_ours_is_told_without_its_inside_and_counted(service, monkeypatch):
    def fails(works):
        raise RuntimeError("/secret/path")

    monkeypatch.setattr(service.app.state.models.all["tiny"].current.lane, "run", fails)
    status, found = service.post("/models/tiny", {"inputs": TEXT})
    assert status == 500 and "secret" not in json.dumps(found) and "server's log" in found["error"]
    assert 'unmask_requests_total{endpoint="/models/{name}",status="500"} 1.0' in service.ask("GET", "/metrics")[1].decode()


# keys


@pytest.fixture(scope="module")
def keyed(tiny_bert, serving):
    with serving({"tiny": tiny_bert}, api_key="correct horse ☃") as running:
        yield running


def test_a_key_is_asked_for(keyed):
    right = {"Authorization": "Bearer correct horse ☃".encode().decode("latin-1")}
    wrong = [{}, {"X-API-Key": "no"}, *({"Authorization": value} for value in ("Bearer wrong", "correct horse", "Bearer "))]
    asked = [
        ("POST", "/models/tiny", {"inputs": TEXT}), ("POST", "/api/fill", {"text": TEXT}), ("POST", "/models/tiny/reload", {}),
        ("GET", "/models", None), ("GET", "/metrics", None), ("GET", "/nothing", None),
    ]  # fmt: skip
    for headers in wrong:
        for method, path, body in asked:
            status, found_headers, found = keyed.ask_all(method, path, body, **headers)
            assert status == 401 and found_headers["www-authenticate"] == "Bearer" and "key" in found["error"], path
    assert keyed.ask("POST", "/models/tiny", {"inputs": TEXT}, **right)[0] == 200
    assert keyed.ask("POST", "/models/tiny", {"inputs": TEXT}, **{"X-API-Key": right["Authorization"][7:]})[0] == 200
    for path in ("/health", "/ready", "/docs", "/openapi.json", "/"):
        assert keyed.ask("GET", path)[0] == 200
    assert keyed.ask("GET", "/static/../models")[0] in (401, 404)


def test_who_has_no_key_is_not_listened_to(keyed):
    """A body of megabytes without a key is read to its end, to be told, and kept nowhere."""
    assert keyed.post("/models/tiny", b"x" * 3_000_000)[0] == 401
