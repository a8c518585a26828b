"""What stands between the network and the service: who may ask, how much, and for how long.

Written against ASGI itself: nothing of a request is read or kept before it has passed.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from gpucheck.tools.serve.service_options import LOOPBACK, ServiceOptions

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]

BODY_SECONDS = 30.0  # a body may take to come
HEAD_SECONDS = 10.0  # a head may take, from the connection or from the answer before
CONNECTIONS = 4000  # at one time
BUSY = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 5\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class Refused(Exception):
    """A request that is answered at once."""

    def __init__(self, status: int, detail: str, **headers: str) -> None:
        super().__init__(detail)
        self.status, self.detail, self.headers = status, detail, headers


class Access:
    """Lets through what may pass."""

    def __init__(self, application: Application, options: ServiceOptions) -> None:
        self._application, self._options = application, options

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._application(scope, receive, send)
            return
        try:
            self._admit(scope)
            body = await asyncio.wait_for(self._body(scope, receive), BODY_SECONDS)
        except Refused as refused:
            await _answer(send, refused.status, refused.detail, refused.headers)
            return
        except asyncio.TimeoutError:
            await _answer(send, 408, f"the body did not come within {BODY_SECONDS:g} s", {"Connection": "close"})
            return
        if body is not None:
            await self._application(scope, _replayed(body, receive), send)

    def _admit(self, scope: Message) -> None:
        """Raises Refused for who may not ask."""
        headers = {name.lower(): value for name, value in scope["headers"]}
        if self._options.token:
            given = headers.get(b"authorization", b"").removeprefix(b"Bearer ").strip()
            if not hmac.compare_digest(given, self._options.token.encode()):
                words = "no token, or a wrong one: send the header Authorization: Bearer TOKEN"
                raise Refused(401, words, **{"WWW-Authenticate": "Bearer"})
            return
        client = scope.get("client")
        if not client or not _loopback(client[0]):
            raise Refused(403, "without --token-file this service answers its own machine alone")
        host = headers.get(b"host", b"").decode("latin-1")
        if b"origin" in headers or not _loopback(_name(host)):  # a page in a browser of this machine
            raise Refused(403, f"the request is for host {host[:100]!r} or from a web page; expected localhost")

    async def _body(self, scope: Message, receive: Receive) -> bytes | None:
        """The whole body; None where the client has gone."""
        most = self._options.body
        words = f"the body is larger than {most} bytes, the limit of this service"
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if length.isdigit() and int(length) > most:
            raise Refused(413, words, Connection="close")
        parts, size = [], 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            part = message.get("body", b"")
            size += len(part)
            if size > most:
                raise Refused(413, words, Connection="close")
            parts.append(part)
            if not message.get("more_body"):
                return b"".join(parts)


def _replayed(body: bytes, receive: Receive) -> Receive:
    """A body that has come, as the application reads it."""
    left = [body]

    async def again() -> Message:
        if left:
            return {"type": "http.request", "body": left.pop(), "more_body": False}
        return await receive()

    return again


async def _answer(send: Send, status: int, detail: str, headers: dict[str, str]) -> None:
    body = json.dumps({"detail": detail}).encode()
    listed = {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}
    pairs = [(name.lower().encode(), value.encode()) for name, value in listed.items()]
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": body})


def _name(host: str) -> str:
    """The name in a Host header, without its port."""
    return host[1:].partition("]")[0] if host.startswith("[") else host.rpartition(":")[0] or host


def _loopback(name: str) -> bool:
    if name in LOOPBACK:
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


class PatientProtocol(H11Protocol):
    """HTTP/1.1 that closes a connection whose head does not come in time, and takes no more than there are files for.

    uvicorn itself waits for a head as long as a client likes.
    """

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """A client has connected."""
        super().connection_made(transport)
        if len(self.connections) > CONNECTIONS:
            transport.write(BUSY)
            transport.close()
            return
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        """A part of a request has come."""
        super().data_received(data)
        if self._in_request():
            self._forget_head()
        elif self._deadline is None:
            self._expect_head()

    def on_response_complete(self) -> None:
        """An answer is out; what comes next begins with a head."""
        super().on_response_complete()
        if not self._in_request():
            self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is closed."""
        self._forget_head()
        super().connection_lost(exc)

    def _in_request(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _expect_head(self) -> None:
        self._forget_head()
        self._deadline = self.loop.call_later(HEAD_SECONDS, self._give_up)

    def _forget_head(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _give_up(self) -> None:
        if not self._in_request() and not self.transport.is_closing():
            self.transport.close()
