"""Who may ask, how much, and for how long: the application behind is not asked otherwise."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from gpucheck.tools.serve import access
from gpucheck.tools.serve.access import Access, PatientProtocol
from gpucheck.tools.serve.service_options import ServiceOptions

TOKEN = "a-token-that-nobody-guesses"
Scope = dict[str, Any]


async def application(scope: Scope, receive: Callable[[], Any], send: Callable[[Any], Any]) -> None:
    body = (await receive())["body"]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"%d" % len(body)})


def asked(
    headers: Iterable[tuple[str, str]] = (), parts: Iterable[bytes] = (b"",), client: str = "127.0.0.1", token: str = ""
) -> tuple[int, bytes]:
    """Status and body of the answer to a request whose body comes in parts."""
    options = ServiceOptions(Path("state"), token=token, body=1000)
    pairs = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers]
    scope = {"type": "http", "method": "POST", "path": "/eval", "headers": pairs, "client": (client, 1)}
    left, sent = list(parts), []

    async def receive() -> Any:
        return {"type": "http.request", "body": left.pop(0), "more_body": bool(left)}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(Access(application, options)(scope, receive, send))
    return sent[0]["status"], sent[1]["body"]


LOCAL = ("Host", "localhost:18188")


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:18188", "[::1]:18188", "127.8.8.8"])
def test_without_a_token_this_machine_is_answered(host: str) -> None:
    assert asked([("Host", host)], [b"ab", b"c"]) == (200, b"3")


@pytest.mark.parametrize(
    ("headers", "client"),
    [
        ([LOCAL], "192.0.2.7"),
        ([LOCAL], "2001:db8::7"),
        ([("Host", "attacker.example")], "127.0.0.1"),
        ([], "127.0.0.1"),
        ([LOCAL, ("Origin", "null")], "127.0.0.1"),
        ([LOCAL, ("X-Forwarded-For", "127.0.0.1")], "192.0.2.7"),
    ],
)
def test_without_a_token_nobody_else_is_answered(headers: list[tuple[str, str]], client: str) -> None:
    status, body = asked(headers, client=client)
    assert status == 403 and json.loads(body)["detail"]


@pytest.mark.parametrize("given", [None, "", "Bearer", "Bearer wrong", TOKEN[:-1], f"Basic {TOKEN}", "Bearer \xff"])
def test_with_a_token_no_one_is_answered_without_it(given: str | None) -> None:
    headers = [LOCAL] + ([("Authorization", given)] if given is not None else [])
    status, body = asked(headers, token=TOKEN)
    assert status == 401 and "Authorization: Bearer TOKEN" in json.loads(body)["detail"]


def test_with_the_token_any_address_is_answered() -> None:
    assert asked([("Authorization", f"Bearer {TOKEN}")], client="192.0.2.7", token=TOKEN)[0] == 200


@pytest.mark.parametrize(
    ("headers", "parts"),
    [
        ([("Content-Length", "1001")], []),
        ([], [b"x" * 600, b"x" * 600]),
        ([("Content-Length", "10")], [b"x" * 1001]),
        ([("Content-Length", "99999999999999999999")], []),
    ],
)
def test_a_body_above_the_limit_is_refused_as_soon_as_that_is_known(
    headers: list[tuple[str, str]], parts: list[bytes]
) -> None:
    assert asked([LOCAL, *headers], parts)[0] == 413


def test_a_body_that_does_not_come_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "BODY_SECONDS", 0.01)
    sent: list[Any] = []

    async def never() -> Any:
        await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "headers": [(b"host", b"localhost")], "client": ("127.0.0.1", 1)}
    asyncio.run(Access(application, ServiceOptions(Path("state")))(scope, never, send))
    assert sent[0]["status"] == 408


async def serving() -> AsyncIterator[int]:
    """The port of a server in this process."""
    config = uvicorn.Config(application, port=0, http=PatientProtocol, ws="none", lifespan="off", log_level="critical")
    server = uvicorn.Server(config)
    task = asyncio.create_task(server._serve())
    while not server.started:
        await asyncio.sleep(0.01)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    await task


@pytest.mark.parametrize(
    ("said", "answers"),
    [
        (b"", 0),
        (b"POST / HTTP/1.1\r\nHost:", 0),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", 1),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\nGET / HT", 1),
    ],
)
def test_a_connection_whose_head_does_not_come_is_closed(
    said: bytes, answers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access, "HEAD_SECONDS", 0.1)

    async def talk() -> bytes:
        async for port in serving():
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(said)
            heard = await reader.read()  # until the server closes
            writer.close()
        return heard

    assert asyncio.run(talk()).count(b"200 OK") == answers


def test_more_connections_than_there_is_room_for_are_told_to_come_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "CONNECTIONS", 2)

    async def talk() -> bytes:
        async for port in serving():
            held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
            for _, writer in held:
                writer.write(b"GET")
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            heard = await reader.read()
            for _, each in [*held, (reader, writer)]:
                each.close()
        return heard

    heard = asyncio.run(talk())
    assert heard.startswith(b"HTTP/1.1 503") and b"Retry-After" in heard
