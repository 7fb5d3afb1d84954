"""The issuer's key set over real sockets: rotation, outages, and harmful replies."""

from __future__ import annotations

import asyncio
import gzip
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from pipeline import keys
from pipeline.auth import TokenVerifier
from pipeline.errors import DependencyUnavailable, Unauthorized
from pipeline.settings import Settings
from tests.faults.chaos.world import resident_mib
from tests.slowdown import slowdown
from tests.service import Service

RSA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
EC_KEY = ec.generate_private_key(ec.SECP256R1())
WEAK_RSA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=1024)
P384_KEY = ec.generate_private_key(ec.SECP384R1())
NEVER = b"never ends"
DRIP = b"a byte at a time"
FLOOD = b"without end"
WAIT_SECONDS = 10.0


def sign(key: Any, algorithm: str, kid: str | None) -> str:
    headers = {"kid": kid} if kid else None
    return jwt.encode({"sub": "user-1", "exp": int(time.time()) + 60}, key, algorithm=algorithm, headers=headers)


def jwk(kid: str, key: Any, **more: Any) -> dict[str, Any]:
    algorithm = jwt.get_algorithm_by_name("RS256" if isinstance(key, rsa.RSAPrivateKey) else "ES256")
    return json.loads(algorithm.to_jwk(key.public_key())) | {"kid": kid, "use": "sig"} | more


def reply(body: bytes, *headers: str, status: str = "200 OK") -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def key_set(*jwks: dict[str, Any]) -> bytes:
    return reply(json.dumps({"keys": jwks}).encode())


class Issuer:
    """A server that publishes keys, or does what `answer` says; `asked` is set at each request."""

    def __init__(self) -> None:
        self.answer = key_set(jwk("one", RSA_KEY))
        self.requests = 0
        self.sent_bytes = 0
        self.asked = asyncio.Event()
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            self.requests += 1
            self.asked.set()
            await self._send(reader, writer)
        writer.close()

    async def _send(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.answer == NEVER:
            await reader.read()
        elif self.answer == DRIP:
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
            while not reader.at_eof():
                writer.write(b" ")
                await writer.drain()
                with suppress(TimeoutError):
                    await asyncio.wait_for(reader.read(1), 0.05)
        elif self.answer == FLOOD:
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
            while True:
                writer.write(b" " * 65536)
                await writer.drain()
                self.sent_bytes += 65536
        else:
            writer.write(self.answer)
            await writer.drain()


@asynccontextmanager
async def running_issuer() -> AsyncIterator[Issuer]:
    issuer = Issuer()
    server = await asyncio.start_server(issuer.serve, "127.0.0.1", 0)
    issuer.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/jwks.json"
    async with server:
        yield issuer


def verifier(issuer: Issuer) -> TokenVerifier:
    return TokenVerifier(Settings(jwt_jwks_url=issuer.url))


async def until_refused(verify: Callable[[], Awaitable[object]]) -> None:
    """Return when the token is refused."""
    async with asyncio.timeout(WAIT_SECONDS):
        while True:
            try:
                await verify()
            except Unauthorized:
                return
            await asyncio.sleep(0.01)


@pytest.fixture
def short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """The key set is refreshed at once, and a fetch may take half a second."""
    monkeypatch.setattr(keys, "KEY_SET_SECONDS", 0.05)
    monkeypatch.setattr(keys, "KEY_SET_RETRY_SECONDS", 0)
    monkeypatch.setattr(keys, "KEY_SET_TIMEOUT_SECONDS", 0.5)


@pytest.mark.gen_test(timeout=30)
async def test_key_set_is_fetched_once_for_many_tokens() -> None:
    """RSA and EC keys of a key set both verify tokens, and a hundred tokens at once cost one download."""
    async with running_issuer() as issuer:
        issuer.answer = key_set(jwk("one", RSA_KEY), jwk("two", EC_KEY))
        tokens = [sign(RSA_KEY, "RS256", "one"), sign(EC_KEY, "ES256", "two")] * 50
        verify = verifier(issuer).verify
        principals = await asyncio.gather(*(verify(token) for token in tokens))
        assert {each.user_id for each in principals} == {"user-1"}
        assert issuer.requests == 1


@pytest.mark.fault("R16")
@pytest.mark.gen_test(timeout=30)
async def test_many_unknown_key_ids_cost_one_download(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens of unknown keys are refused, sequentially or at once. After the retry wait a rotated key is found."""
    async with running_issuer() as issuer:
        verify = verifier(issuer).verify
        tokens = [sign(EC_KEY, "ES256", f"made-up-{number}") for number in range(20)]
        for token in tokens:
            with pytest.raises(Unauthorized):
                await verify(token)
        answers = await asyncio.gather(*map(verify, tokens), return_exceptions=True)
        assert {type(each) for each in answers} == {Unauthorized}
        assert issuer.requests == 1
        issuer.answer = key_set(jwk("rotated", EC_KEY))
        monkeypatch.setattr(keys, "KEY_SET_RETRY_SECONDS", 0)
        assert (await verify(sign(EC_KEY, "ES256", "rotated"))).user_id == "user-1"


@pytest.mark.gen_test(timeout=30)
async def test_withdrawn_key_is_refused(short_times: None) -> None:
    """A key that the issuer no longer publishes is refused after the next refresh, which runs in the background."""
    async with running_issuer() as issuer:
        verify = verifier(issuer).verify
        token = sign(RSA_KEY, "RS256", "one")
        await verify(token)
        issuer.answer = key_set(jwk("two", EC_KEY))
        await until_refused(lambda: verify(token))


@pytest.mark.gen_test(timeout=30)
async def test_unreachable_issuer_is_a_dependency_failure() -> None:
    """While the key set cannot be read no token is called invalid, and the issuer is asked once, not per token."""
    async with running_issuer() as issuer:
        issuer.answer = reply(b"", status="500 Oops")
        verify = verifier(issuer).verify
        for _ in range(5):
            with pytest.raises(DependencyUnavailable) as caught:
                await verify(sign(RSA_KEY, "RS256", "one"))
            assert str(caught.value.__cause__) == "the key set's address answers 500"
        assert issuer.requests == 1


BAD_ANSWERS = {
    "no answer": NEVER,
    "a byte at a time": DRIP,
    "without end": FLOOD,
    "over the limit": reply(b" " * (keys.KEY_SET_BYTES + 1)),
    "an error": reply(b"", status="500 Oops"),
    "a redirect": reply(b"", "Location: http://192.0.2.1/keys", status="302 Found"),
    "compressed": reply(gzip.compress(b" " * 100_000_000), "Content-Encoding: gzip"),
    "cut off": b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{",
    "no HTTP": b"hello\r\n\r\n",
    "no JSON": reply(b"<html>"),
    "not UTF-8": reply(b'{"keys": "\xff"}'),
    "nested": reply(b"[" * 100_000),
    "a huge number": reply(b'{"keys": ' + b"9" * 100_000 + b"}"),
    "no set": reply(b"[]"),
    "keys of no list": reply(b'{"keys": {"kid": "one"}}'),
    "no key": key_set(),
    "no key of a known kind": reply(b'{"keys": [null, 1, {"kid": 1}, {"kid": "a", "kty": "RSA", "n": 3, "e": "?"}]}'),
}


@pytest.mark.fault("R16")
@pytest.mark.parametrize("answer", BAD_ANSWERS.values(), ids=BAD_ANSWERS.keys())
@pytest.mark.gen_test(timeout=30)
async def test_bad_answer_costs_bounded_time_and_no_known_key(short_times: None, answer: bytes) -> None:
    """Tokens of known keys are checked at once, during the fetch and after it; an unknown key waits for the fetch."""
    async with running_issuer() as issuer:
        verify = verifier(issuer).verify
        token = sign(RSA_KEY, "RS256", "one")
        await verify(token)
        issuer.answer = answer
        issuer.asked.clear()
        await asyncio.wait_for(issuer.asked.wait(), WAIT_SECONDS)
        started_at = time.monotonic()
        for _ in range(100):
            await verify(token)
        assert time.monotonic() - started_at < 0.24 * slowdown(), "known keys do not wait for the fetch under way"
        with pytest.raises(DependencyUnavailable):
            await verify(sign(EC_KEY, "ES256", "two"))
        assert time.monotonic() - started_at < 3 * slowdown()
        assert (await verify(token)).user_id == "user-1"
        issuer.answer = key_set(jwk("one", RSA_KEY), jwk("two", EC_KEY))
        async with asyncio.timeout(WAIT_SECONDS):
            while True:
                with suppress(DependencyUnavailable):
                    await verify(sign(EC_KEY, "ES256", "two"))
                    break


UNFIT_KEYS = {
    "RSA of 1024 bits": (jwk("bad", WEAK_RSA_KEY), WEAK_RSA_KEY, "RS256"),
    "P-384": (jwk("bad", P384_KEY), P384_KEY, "ES384"),
    "a shared secret": ({"kid": "bad", "kty": "oct", "k": "c2VjcmV0" * 8}, "secret" * 8, "HS256"),
    "a key to encrypt with": (jwk("bad", RSA_KEY, use="enc"), RSA_KEY, "RS256"),
    "no key id": (jwk("bad", RSA_KEY) | {"kid": None}, RSA_KEY, "RS256"),
}


@pytest.mark.fault("R17")
@pytest.mark.filterwarnings("ignore:The RSA key is 1024 bits long")
@pytest.mark.parametrize(("published", "key", "algorithm"), UNFIT_KEYS.values(), ids=UNFIT_KEYS.keys())
@pytest.mark.gen_test(timeout=30)
async def test_unfit_key_of_a_set_is_left_out(published: dict[str, Any], key: Any, algorithm: str) -> None:
    """The good keys of the set are used; tokens signed with the unfit key are invalid."""
    async with running_issuer() as issuer:
        issuer.answer = key_set(published, jwk("one", RSA_KEY))
        verify = verifier(issuer).verify
        assert (await verify(sign(RSA_KEY, "RS256", "one"))).user_id == "user-1"
        with pytest.raises(Unauthorized):
            await verify(sign(key, algorithm, "bad"))


@pytest.mark.gen_test(timeout=30)
async def test_token_without_key_id_is_invalid() -> None:
    """A token that names no key is refused."""
    async with running_issuer() as issuer:
        with pytest.raises(Unauthorized):
            await verifier(issuer).verify(sign(RSA_KEY, "RS256", None))


@pytest.mark.fault("R16")
@pytest.mark.gen_test(timeout=60)
async def test_process_survives_an_endless_key_set_and_reads_the_good_one_later(tmp_path: Path) -> None:
    """Requests get 503 with Retry-After and memory stays flat; after the issuer recovers requests succeed."""
    async with running_issuer() as issuer, aiohttp.ClientSession() as session:
        issuer.answer = FLOOD
        service = Service(tmp_path, "http://127.0.0.1:1", JWT_SECRET="", JWT_JWKS_URL=issuer.url)
        await asyncio.to_thread(service.start)
        headers = {"Authorization": f"Bearer {sign(RSA_KEY, 'RS256', 'one')}"}
        before = resident_mib(service.pid)
        try:
            async with session.get(f"{service.url}/api/assets", headers=headers) as reply:
                assert reply.status == 503 and int(reply.headers["Retry-After"]) > 0
            assert issuer.sent_bytes < 20_000_000 and resident_mib(service.pid) - before < 30
            issuer.answer = key_set(jwk("one", RSA_KEY))
            issuer.asked.clear()
            await asyncio.wait_for(issuer.asked.wait(), 2 * keys.KEY_SET_RETRY_SECONDS)
            async with asyncio.timeout(WAIT_SECONDS):
                while (await session.get(f"{service.url}/api/assets", headers=headers)).status != 200:
                    pass
            assert [line["error"] for line in service.find("key_set_unreadable")] == [
                f"ValueError: the key set is larger than {keys.KEY_SET_BYTES} bytes"
            ]
            assert len(service.find("key_set_readable")) == 1 and service.errors() == []
        finally:
            await asyncio.to_thread(service.stop)
