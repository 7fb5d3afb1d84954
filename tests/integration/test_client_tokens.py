"""The tokens of the Python client: a new token after a refusal or before the expiry; a token that is not valid yet."""

from __future__ import annotations

import time
from typing import Any

import aiohttp
import jwt
import pytest
from aiohttp import web

from pipeline.client import Client, ClientError, Operator, Unavailable
from tests.factories import SECRET, make_token
from tests.integration.scripted_service import (
    Peer,
    ScriptedService,
    accept_and_wait,
    make_accepted,
    make_event,
    next_events,
)
from tests.integration.scripted_service import reconnects_at_once  # noqa: F811

__all__ = ["reconnects_at_once"]


@pytest.mark.usefixtures("reconnects_at_once")
@pytest.mark.gen_test(timeout=60)
async def test_client_requests_a_token_after_expiry() -> None:
    """After 4419 the client calls its token function once. The next connection and request use the new token."""
    calls = 0

    async def token() -> str:
        nonlocal calls
        calls += 1
        return f"token-{calls}"

    async def expire(peer: Peer) -> None:
        await peer.accept()
        await peer.end(4419, "Token expired")

    async with ScriptedService(expire, accept_and_wait) as fake, Client(fake.url, token) as client:
        await client.listen()
        await fake.handshake(2)
        fake.replies.append(web.json_response({"success": True, "data": {}}))
        await client.queue_status()
        sent = [request.headers["Authorization"] for request in fake.requests + fake.api_requests]
        assert sent == ["Bearer token-1", "Bearer token-2", "Bearer token-2"]
        assert calls == 2


@pytest.mark.gen_test(timeout=60)
async def test_client_renews_its_token_before_the_end() -> None:
    """Before its token expires, the client sends a new token over the open connection."""
    old = jwt.encode({"sub": "user-1", "exp": time.time() + 1.2}, SECRET)
    tokens = [old, make_token()]
    new = tokens[1]
    received: list[Any] = []

    async def script(peer: Peer) -> None:
        await peer.accept()
        received.append(await peer.socket.receive_json())
        await peer.send(make_event(1))
        await peer.wait_until_closed()

    async with ScriptedService(script) as fake, Client(fake.url, lambda: tokens.pop(0)) as client:
        await client.listen()
        await next_events(client, 1)
        assert received == [{"auth": {"token": new}}]
        fake.replies.append(web.json_response({"success": True, "data": {}}))
        await client.queue_status()
        assert fake.api_requests[0].headers["Authorization"] == f"Bearer {new}"


@pytest.mark.gen_test(timeout=60)
async def test_client_requests_a_token_once_after_refusals() -> None:
    """After a second 4403 in a row the client gives up."""
    calls = []

    def token() -> str:
        calls.append(None)
        return "a token"

    async with ScriptedService(lambda peer: peer.end(4403, "Invalid token")) as fake, Client(fake.url, token) as client:
        with pytest.raises(ClientError, match=r"Invalid token \(4403\)"):
            await client.listen()
        assert (len(calls), len(fake.requests)) == (2, 2)


@pytest.mark.gen_test(timeout=60)
async def test_ids_and_tokens_cannot_change_the_request() -> None:
    """An id with slashes is one part of the path. An empty id, ".", ".." and a token with a line break are refused."""
    async with ScriptedService(accept_and_wait) as fake, Operator(fake.url, "a token") as operator:
        for number, ask in enumerate((operator.delete, operator.asset, operator.erase_user, operator.retry_failed), 1):
            fake.replies.append(web.json_response({"success": True, "data": {}}))
            await ask("../users/ada")
            assert fake.api_requests[-1].raw_path.count("/") == 3 + (ask == operator.retry_failed) * 2, number
            for none in ("", ".", ".."):
                with pytest.raises(ClientError, match="is not an id"):
                    await ask(none)
            assert len(fake.api_requests) == number
    async with ScriptedService(accept_and_wait) as fake, Operator(fake.url, "a\r\ntoken") as operator:
        for ask_with in (operator.queue_status, operator.listen):
            with pytest.raises(ClientError, match="line break"):
                await ask_with()


@pytest.mark.usefixtures("reconnects_at_once")
@pytest.mark.gen_test(timeout=60)
async def test_client_retries_when_its_token_function_fails() -> None:
    """A token service that cannot be reached delays the client; another error of the function ends it."""
    away = [OSError("away"), aiohttp.ClientError("away")]
    results: list[str | Exception] = ["1", *away, "2", ZeroDivisionError("a fault")]

    def token() -> str:
        result = results.pop(0)
        if isinstance(result, Exception):
            raise result
        return result

    async def expire(peer: Peer) -> None:
        await peer.accept()
        await peer.end(4419, "Token expired")

    async with ScriptedService(expire) as fake, Client(fake.url, token) as client:
        await client.listen()
        with pytest.raises(ZeroDivisionError):
            await next_events(client, 1)
        assert [request.headers["Authorization"] for request in fake.requests] == ["Bearer 1", "Bearer 2"]


@pytest.mark.gen_test(timeout=60)
async def test_request_requests_a_token_once() -> None:
    """After 401 a request is repeated once with a new token. A fixed token is not tried twice."""
    tokens = ["1", "2", "3"]
    refusal = {"success": False, "error": {"code": "UNAUTHORIZED", "message": "Invalid token"}}
    async with ScriptedService(accept_and_wait) as fake:
        async with Client(fake.url, lambda: tokens.pop(0)) as client:
            fake.replies += [web.json_response(refusal, status=401), make_accepted()]
            await client.asset("1")
            fake.replies += [web.json_response(refusal, status=401) for _ in range(2)]
            with pytest.raises(ClientError, match="Invalid token"):
                await client.asset("1")
        async with Client(fake.url, "fixed") as client:
            fake.replies.append(web.json_response(refusal, status=401))
            with pytest.raises(ClientError, match="Invalid token"):
                await client.asset("1")
    sent = [request.headers["Authorization"] for request in fake.api_requests]
    assert sent == ["Bearer 1", "Bearer 2", "Bearer 2", "Bearer 3", "Bearer fixed"]


@pytest.mark.fault("R9")
@pytest.mark.usefixtures("reconnects_at_once")
@pytest.mark.gen_test(timeout=60)
async def test_client_waits_for_a_token_to_become_valid() -> None:
    """After 4403 the client requests one new token.

    While the service replies that this token is not valid yet, the client retries with it, by the same transport.
    """
    tokens = ["old", "early", "never used"]
    transports: list[str] = []

    async def not_yet(peer: Peer) -> None:
        await peer.end(1013, "Token not valid yet")

    async def refuse(peer: Peer) -> None:
        await peer.accept()
        await peer.end(4403, "Invalid token")

    async with ScriptedService(refuse, not_yet, not_yet, not_yet, accept_and_wait) as fake:
        async with Client(fake.url, lambda: tokens.pop(0), on_transport=transports.append) as client:
            await client.listen()
            await fake.handshake(5)
            refusal = {"success": False, "error": {"code": "UNAUTHORIZED", "message": "Token not valid yet"}}
            fake.replies.append(web.json_response(refusal, status=401, headers={"Retry-After": "3"}))
            with pytest.raises(Unavailable) as caught:
                await client.asset("1")
            assert caught.value.retry_seconds == 3
    sent = [request.headers["Authorization"] for request in fake.requests]
    assert sent == ["Bearer old"] + ["Bearer early"] * 4
    assert (tokens, transports) == (["never used"], ["socket"])
