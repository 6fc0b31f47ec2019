"""The service in a thread, on a free port of the loopback, and what asks it: nothing but the standard library."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


class Service:
    """A service in a thread, on a free port of the loopback; `ask` opens a connection a call, so that threads may share it."""

    def __init__(self, app: Any) -> None:
        from unmask.serve.server import listen, make_server

        self.app = app
        self.sock = listen("127.0.0.1", 0)
        self.port: int = self.sock.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.server = make_server(app, drain_seconds=20)
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.sock]}, daemon=True)
        self.thread.start()

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        """Return status and answer, from JSON where it is JSON; a body is JSON unless it is bytes."""
        status, _, answer = self.ask_all(method, path, body, **headers)
        return status, answer

    def ask_all(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, dict[str, str], Any]:
        """Return status, headers and answer."""
        return ask(self.port, method, path, body, **headers)

    def post(self, path: str, body: Any, **headers: str) -> tuple[int, Any]:
        """Return status and answer."""
        return self.ask("POST", path, body, **headers)

    def raw(self, *data: bytes, seconds: float = 20.0) -> bytes:
        """Return everything that comes back for bytes until the service hangs up; each but the first are sent when something came back."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=seconds) as connection:
            connection.sendall(data[0])
            parts, rest = [], list(data[1:])
            while part := connection.recv(65536):
                parts.append(part)
                if rest:
                    connection.sendall(rest.pop(0))
        return b"".join(parts)

    def stop(self) -> None:
        """End in good order."""
        self.server.should_exit = True
        self.thread.join(30)
        assert not self.thread.is_alive()


def ask(port: int, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, dict[str, str], Any]:
    """Ask what listens at a port; return status, headers and answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    if body is not None:
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", **headers}
    try:
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        raw = answer.read()
        found = {name.lower(): value for name, value in answer.getheaders()}
        return answer.status, found, json.loads(raw) if raw and found.get("content-type") == "application/json" else raw
    finally:
        connection.close()


@contextlib.contextmanager
def _serving(paths: dict[str, str | Path], **options: Any) -> Iterator[Service]:
    """Yield a service of models, in fp32 on the CPU; `options` are those of create_app."""
    from unmask.serve.app import create_app

    named = {name: str(path) for name, path in paths.items()}
    service = Service(create_app(named, **{"precision": "fp32", "device": "cpu", **options}))
    try:
        yield service
    finally:
        service.stop()


@pytest.fixture(scope="session")
def serving():
    """`with serving({NAME: PATH}, **options) as service`."""
    return _serving


@pytest.fixture(scope="session")
def ask_port():
    """`ask_port(port, method, path, body, **headers)` asks a service of another process."""
    return ask
