"""What stands before the app: who may ask, how much, for how long, and who has gone away."""

from __future__ import annotations

import asyncio
import hmac
import json
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from .limits import LOADING, Limits, Refused
from .metrics import Metrics

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

# what needs no key: the page and its files, which ask for one, what it looks like, and what a load balancer looks at
OPEN_PATHS = {"/", "/docs", "/openapi.json", "/health", "/ready", "/favicon.ico"}
OPEN_FOLDER = "/static/"
DISCARDED = 16  # times the largest body: so much of what is refused is read, so that the client gets to hear why


class Gone(Exception):
    """The client has hung up."""


def dumps(value: Any) -> bytes:
    """Return JSON in UTF-8; half a surrogate pair stays the escape that it came as."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode("utf-8", errors="backslashreplace")


class Guard:
    """Checks keys, reads bodies within bounds, counts, and ends what nobody waits for. The app behind it sees whole bodies only."""

    def __init__(self, app: App, *, limits: Limits, api_key: str | None, metrics: Metrics) -> None:
        self.app, self.limits, self.metrics = app, limits, metrics
        self.key = None if api_key is None else api_key.encode()
        self.in_flight = self.buffered = 0

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.perf_counter(), 499

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            try:
                async with asyncio.timeout(self.limits.client_seconds):
                    await send(message)
            except TimeoutError:
                raise Gone from None  # it asks and does not read

        size = 0
        try:
            headers = dict(scope["headers"])
            if b"host" not in headers and scope["http_version"] == "1.1":
                raise Refused(400, "the request has no Host, which HTTP/1.1 asks for")
            if scope["method"] in ("GET", "HEAD") and not headers.get(b"content-length") and b"transfer-encoding" not in headers:
                self._check_key(scope, headers)
                await self.app(scope, receive, counted)
                return
            refused = self._refused(scope, headers)
            body = await self._read(receive, keep=refused is None)
            size = len(body)
            if refused is not None:
                raise refused
            await self._run(scope, receive, counted, body)
        except Refused as error:
            await respond(counted, error)
        except Gone:
            pass
        except Exception:
            status = 500  # which is sent further out
            raise
        finally:
            self.buffered -= size
            route = scope.get("route")
            endpoint = getattr(route, "path", "other")
            self.metrics.requests.labels(endpoint, str(status)).inc()
            self.metrics.seconds.labels(endpoint).observe(time.perf_counter() - started)

    def _check_key(self, scope: MutableMapping[str, Any], headers: dict[bytes, bytes]) -> None:
        path = scope["path"]
        if self.key is None or (scope["method"] in ("GET", "HEAD") and (path in OPEN_PATHS or path.startswith(OPEN_FOLDER))):
            return
        scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
        given = token.strip() if scheme.lower() == b"bearer" else headers.get(b"x-api-key", b"")
        if not hmac.compare_digest(given, self.key):
            what = "the key is wrong" if given else "a key is needed"
            raise Refused(401, f"{what}; send it as 'Authorization: Bearer KEY' (InferenceClient: token=KEY)")

    def _refused(self, scope: MutableMapping[str, Any], headers: dict[bytes, bytes]) -> Refused | None:
        """Return why a request is refused before its body is read."""
        try:
            self._check_key(scope, headers)
        except Refused as refused:
            return refused
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length[:20]) > self.limits.max_body_bytes:
            return self._too_large()
        kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        empty = length == b"0" and b"transfer-encoding" not in headers
        if kind != b"application/json" and not empty:  # also what a page of another site cannot send without asking
            return Refused(415, "send JSON, with the header 'Content-Type: application/json'")
        return None

    def _too_large(self) -> Refused:
        return Refused(413, f"the request is larger than {self.limits.max_body_bytes:,} bytes; send it in parts")

    async def _read(self, receive: Receive, *, keep: bool) -> bytes:
        """Return a request's body; what is refused is read to its end, within bounds, and forgotten.

        Raises: Refused, Gone.
        """
        limit, parts, size, refused = self.limits.max_body_bytes, [], 0, None
        try:
            async with asyncio.timeout(self.limits.client_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise Gone
                    part = message.get("body", b"")
                    size += len(part)
                    if keep and refused is None:
                        if size > limit:
                            refused = self._too_large()
                        elif self.buffered + len(part) > limit * self.limits.max_concurrent:
                            refused = self._busy()
                        else:
                            self.buffered += len(part)
                            parts.append(part)
                    if not message.get("more_body") or size > DISCARDED * limit:
                        break
            if refused is not None:
                raise refused
        except TimeoutError:
            self.buffered -= sum(map(len, parts))
            raise Refused(408, f"the request did not arrive within {self.limits.client_seconds:g} s; send it again") from None
        except BaseException:
            self.buffered -= sum(map(len, parts))
            raise
        return b"".join(parts)

    def _busy(self) -> Refused:
        return Refused(429, f"{self.limits.max_concurrent} requests are being worked on, which is the most; come back", retry_after=1)

    async def _run(self, scope: MutableMapping[str, Any], receive: Receive, send: Send, body: bytes) -> None:
        """Have the app answer, for as long as its client waits and the time lasts.

        Raises: Refused, Gone.
        """
        if self.in_flight >= self.limits.max_concurrent:
            raise self._busy()
        begun = over = False

        async def replay() -> Message:
            return {"type": "http.request", "body": body, "more_body": False}

        async def watched(message: Message) -> None:
            nonlocal begun
            if not begun:
                begun = True
                limit.reschedule(None)  # each sending has its own
            await send(message)

        def gone(_: Any) -> None:
            if not (begun or over):
                limit.reschedule(0)

        self.in_flight += 1
        self.metrics.in_flight.set(self.in_flight)
        hung_up = asyncio.ensure_future(receive())  # the body is all there: what comes now is that the client has gone, or been answered
        hung_up.add_done_callback(gone)
        try:
            async with asyncio.timeout(self.limits.request_seconds) as limit:
                await self.app(scope, replay, watched)
        except TimeoutError:
            if begun:
                raise
            if hung_up.done():
                raise Gone from None
            seconds, model = self.limits.request_seconds, LOADING.get()
            if model is not None:
                raise Refused(503, f"the model '{model}' is still being loaded after {seconds:g} s; come back", retry_after=5) from None
            raise Refused(503, f"there was no answer within {seconds:g} s; ask for less, or come back", retry_after=5) from None
        finally:
            over = True
            self.in_flight -= 1
            self.metrics.in_flight.set(self.in_flight)
            hung_up.cancel()


async def respond(send: Send, error: Refused) -> None:
    """Send a refusal. A connection whose client was not heard out is closed."""
    body = dumps(error.to_dict())
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += [(name.lower().encode(), value.encode()) for name, value in error.headers.items()]
    if error.status in (400, 408, 413):
        headers.append((b"connection", b"close"))
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
