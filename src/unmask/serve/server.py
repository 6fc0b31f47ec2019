"""The app on a socket: uvicorn, with connections that are not waited for for ever."""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from ..errors import ConfigError
from .guard import dumps

log = logging.getLogger(__name__)


MAX_HEAD_BYTES = 2**16


class Connection(HttpToolsProtocol):
    """A connection that knows since when the head of a request is awaited, and how long it has become.

    uvicorn waits for a request's head as long as the client likes, and for any number of bytes; its body, and the sending of an answer, are
    bounded by Guard.
    """

    def connection_made(self, transport: Any) -> None:
        """Begin to count, or hang up where there are too many."""
        super().connection_made(transport)
        self.head_bytes = 0
        app: Any = self.config.app
        self.since: float | None = self.loop.time()
        app.state.metrics.connections.set(len(self.connections))
        if len(self.connections) > app.state.limits.max_connections:
            self._end("503 Service Unavailable\r\nretry-after: 1", "too many connections are open; come back")

    def data_received(self, data: bytes) -> None:
        """Count from the first byte of a request's head to its last; the next one's may come while a request is answered."""
        before = self.cycle
        between = before is None or not before.more_body
        super().data_received(data)
        self.since = (self.since or self.loop.time()) if self.is_idle else None
        self.head_bytes = self.head_bytes + len(data) if between and self.cycle is before else 0
        if self.head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self._end("431 Request Header Fields Too Large", f"the head of the request is larger than {MAX_HEAD_BYTES:,} bytes")

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP in JSON, as everything."""
        self._end("400 Bad Request", msg)

    def _end(self, status: str, message: str) -> None:
        if self.is_idle:  # else it would fall into the answer that is being sent
            body = dumps({"error": message})
            head = f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
            self.transport.write(head.encode() + b"connection: close\r\n\r\n" + body)
        self.transport.close()

    @property
    def is_idle(self) -> bool:
        """Whether no request is being answered."""
        return self.cycle is None or self.cycle.response_complete


class Server(uvicorn.Server):
    """Uvicorn's server, which also ends connections whose client sends no request, or no end of one's head."""

    async def on_tick(self, counter: int) -> bool:
        """Be called ten times a second."""
        if counter % 10 == 0:
            app: Any = self.config.app
            latest = asyncio.get_running_loop().time() - app.state.limits.client_seconds
            for connection in list(self.server_state.connections):
                if connection.since is not None and connection.since < latest:  # type: ignore[union-attr]
                    connection.transport.close()
        return await super().on_tick(counter)


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens.

    Raises: ConfigError where the address cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((host, port))
        made.listen(2048)  # from now on who comes is kept waiting, not turned away
    except (OSError, OverflowError) as error:
        made.close()
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"--host {host} --port {port} cannot be used: {reason}; name another, or stop what uses it") from None
    return made


def make_server(app: FastAPI, *, drain_seconds: int = 60) -> Server:
    """Return a server that, told to end, answers what it has accepted for at most `drain_seconds`."""
    config = uvicorn.Config(
        app, http=Connection, ws="none", lifespan="on", log_config=None, access_log=False, proxy_headers=False, server_header=False,
        timeout_keep_alive=30, timeout_graceful_shutdown=drain_seconds,
    )  # fmt: skip
    return Server(config)


def run(app: FastAPI, sock: socket.socket) -> None:
    """Serve until a signal says to end (SIGTERM or SIGINT)."""
    server = make_server(app)
    try:
        server.run(sockets=[sock])
    except KeyboardInterrupt:  # uvicorn has ended in good order, and raises the signal again
        log.info("ended")
