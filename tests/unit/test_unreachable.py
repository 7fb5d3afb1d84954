"""Whether an exception says that the other side was never reached: as real libraries raise it, bare."""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from typing import Any

import aiohttp
import httpx
import pytest
import requests
import urllib3

from pipeline.errors import is_unreachable


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port of 127.0.0.1 on which nobody listens; of ::1 neither, so `localhost` has two addresses that refuse."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


class Server:
    """Listens and answers each connection in one wrong way."""

    def __init__(self, answer: bytes | None) -> None:
        """answer: sent before the connection is cut; None: cut without a word once the request has come."""
        self._answer = answer

    async def __aenter__(self) -> int:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return int(self._server.sockets[0].getsockname()[1])

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(65_536)
        if self._answer is None:
            # Reset instead of a polite end.
            linger = b"\x01\0\0\0\0\0\0\0"
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        else:
            writer.write(self._answer)
        writer.close()


# how plugins ask


async def with_aiohttp(url: str, seconds: float = 5) -> None:
    timeout = aiohttp.ClientTimeout(total=seconds)
    async with aiohttp.ClientSession(timeout=timeout) as session, session.get(url) as response:
        await response.read()


async def with_httpx(url: str, seconds: float = 5) -> None:
    async with httpx.AsyncClient(timeout=seconds, trust_env=False) as client:
        await client.get(url)


async def with_asyncio(url: str, seconds: float = 5) -> None:
    host, port = url.split("/")[2].split(":")
    async with asyncio.timeout(seconds):
        reader, writer = await asyncio.open_connection(host, int(port))
        with closing(writer):
            writer.write(b"GET / HTTP/1.1\r\n\r\n")
            await reader.read()
            raise ConnectionResetError("whatever it sent, it was not all")


def in_thread(call: Callable[[str, float], Any]) -> Callable[..., Awaitable[None]]:
    async def ask(url: str, seconds: float = 5) -> None:
        await asyncio.to_thread(call, url, seconds)

    return ask


@in_thread
def with_requests(url: str, seconds: float) -> None:
    with requests.Session() as session:
        session.trust_env = False
        session.get(url, timeout=seconds)


@in_thread
def with_urllib3(url: str, seconds: float) -> None:
    with urllib3.PoolManager() as pool:
        pool.request("GET", url, timeout=seconds, retries=False)


@in_thread
def with_urllib(url: str, seconds: float) -> None:
    urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=seconds).read()


@in_thread
def with_httpx_in_a_thread(url: str, seconds: float) -> None:
    httpx.get(url, timeout=seconds, trust_env=False)


CLIENTS = {
    "aiohttp": with_aiohttp,
    "httpx": with_httpx,
    "httpx in a thread": with_httpx_in_a_thread,
    "asyncio": with_asyncio,
    "requests": with_requests,
    "urllib3": with_urllib3,
    "urllib": with_urllib,
}
EVERY_CLIENT = pytest.mark.parametrize("client", CLIENTS)


async def failure(client: str, url: str, seconds: float = 5) -> Exception:
    """Return what the client raises, bare, as a plugin that wraps nothing lets it through."""
    try:
        await CLIENTS[client](url, seconds)
    except Exception as error:
        return error
    raise AssertionError(f"{client} had an answer")


@EVERY_CLIENT
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
@pytest.mark.gen_test
async def test_refused_connection_was_not_reached(client: str, host: str, closed_port: int) -> None:
    """Whatever library says it, in whatever wrapping, also where a name has several addresses."""
    assert is_unreachable(await failure(client, f"http://{host}:{closed_port}"))


@EVERY_CLIENT
@pytest.mark.gen_test(timeout=20)
async def test_name_that_nobody_knows_was_not_reached(client: str) -> None:
    """DNS failed before anything was asked."""
    assert is_unreachable(await failure(client, "http://nobody.invalid:80"))


@pytest.mark.parametrize("client", ["aiohttp", "httpx", "httpx in a thread", "requests", "urllib3", "urllib"])
@pytest.mark.gen_test
async def test_tls_that_cannot_be_agreed_on_was_not_reached(client: str) -> None:
    """A server that speaks plain HTTP behind https:// has heard no question."""
    async with Server(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n") as port:
        assert is_unreachable(await failure(client, f"https://127.0.0.1:{port}"))


HALF = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc"


@EVERY_CLIENT
@pytest.mark.parametrize("answer", [None, b"", HALF], ids=["reset", "cut", "half an answer"])
@pytest.mark.gen_test
async def test_connection_that_is_lost_after_the_question_was_reached(client: str, answer: bytes | None) -> None:
    """The photo itself may have killed the one who answers: that is no reason to ask with it for ever."""
    async with Server(answer) as port:
        assert not is_unreachable(await failure(client, f"http://127.0.0.1:{port}"))


@EVERY_CLIENT
@pytest.mark.gen_test
async def test_answer_that_does_not_come_in_time_was_reached(client: str) -> None:
    """It took the question and works, or hangs, at it."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert not is_unreachable(await failure(client, f"http://127.0.0.1:{silent.getsockname()[1]}", 0.2))


@pytest.mark.parametrize("client", ["aiohttp", "httpx", "requests", "urllib3"])
@pytest.mark.gen_test(timeout=20)
async def test_connection_that_is_not_made_in_time_was_not_reached(client: str) -> None:
    """A host that drops everything, such as a firewall does: the libraries have an exception of its own for that."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        address = full.getsockname()
        waiting = []
        # Until nobody is let in any more.
        for _ in range(64):
            each = socket.socket()
            each.setblocking(False)
            waiting.append(each)
            each.connect_ex(address)
        try:
            url = f"http://127.0.0.1:{address[1]}"
            if client == "aiohttp":
                timeout = aiohttp.ClientTimeout(sock_connect=0.3)
                async with aiohttp.ClientSession(timeout=timeout) as session:
                    with pytest.raises(aiohttp.ClientError) as caught:
                        await session.get(url)
                error: BaseException = caught.value
            else:
                error = await failure(client, url, 0.3)
        finally:
            for each in waiting:
                each.close()
    assert is_unreachable(error)


def chained(*errors: BaseException, explicit: bool = True) -> BaseException:
    """Return the first of the errors, raised from the second, that from the third and so on."""
    for outer, inner in zip(errors, errors[1:], strict=False):
        if explicit:
            outer.__cause__ = inner
        else:
            outer.__context__ = inner
    return errors[0]


def suppressed(outer: Exception, inner: Exception) -> Exception:
    try:
        try:
            raise inner
        except Exception:
            raise outer from None
    except Exception as error:
        return error


REFUSED = ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")


@pytest.mark.parametrize(
    ("error", "expected", "remark"),
    [
        (OSError(errno.EHOSTUNREACH, "No route to host"), True, "the network says so"),
        (OSError(errno.ENETUNREACH, "Network is unreachable"), True, ""),
        (OSError(errno.ECONNREFUSED, "[Errno 111]"), True, "whatever its class"),
        (OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address"), True, "we have no port left"),
        (OSError(errno.EMFILE, "Too many open files"), True, "we have no file left"),
        (socket.gaierror(-2, "Name or service not known"), True, "DNS"),
        (ssl.SSLCertVerificationError(1, "certificate verify failed"), True, "TLS: not who it should be"),
        (ssl.SSLError(1, "WRONG_VERSION_NUMBER"), True, "TLS: not even that"),
        (ssl.SSLEOFError(8, "EOF occurred in violation of protocol"), False, "the same words mean a lost answer"),
        (ssl.SSLZeroReturnError(6, "TLS/SSL connection has been closed"), False, "it hung up"),
        (ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), False, "it was there"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), False, "it was there"),
        (TimeoutError(errno.ETIMEDOUT, "Connection timed out"), False, "also said of an answer that does not come"),
        (TimeoutError(), False, "it may be at work"),
        (FileNotFoundError(errno.ENOENT, "model.onnx"), False, "an OSError of something else"),
        (OSError("Multiple exceptions: [Errno 111] a, [Errno 111] b"), True, "asyncio, of a host with two addresses"),
        (OSError(errno.EIO, "Multiple exceptions: a disk"), False, "not asyncio's"),
        (ValueError("Connection refused"), False, "words alone are no evidence"),
        (chained(RuntimeError("SDK error"), KeyError("x"), REFUSED), True, "three levels down"),
        (chained(RuntimeError("SDK error"), REFUSED, explicit=False), True, "raised while that was handled"),
        (suppressed(ValueError("bad JSON"), REFUSED), False, "`from None`: its author says it is something else"),
        (ExceptionGroup("tasks", [REFUSED, OSError(errno.EHOSTUNREACH, "")]), True, "each of a task group"),
        (ExceptionGroup("tasks", [REFUSED, ValueError("a bug")]), False, "one of them says otherwise"),
        (ExceptionGroup("a", [ExceptionGroup("b", [REFUSED])]), True, "groups in groups"),
        (chained(OSError("All connection attempts failed"), ExceptionGroup("", [REFUSED])), True, "anyio"),
    ],
    ids=lambda each: repr(each)[:60],
)
def test_unreachable_is_what_was_not_asked(error: BaseException, expected: bool, remark: str) -> None:
    """In doubt it was: a job that is never tried for good ends, one that is given back may go on for a day."""
    assert is_unreachable(error) is expected, remark


def test_chain_without_end_is_looked_at_only_so_far() -> None:
    """Exceptions may name each other, and groups themselves, in a circle."""
    one, other = ValueError("one"), ValueError("other")
    one.__cause__, other.__cause__ = other, one
    assert not is_unreachable(one)
    inner = ValueError("inner")
    inner.__cause__ = ExceptionGroup("outer", [inner])
    assert not is_unreachable(inner)
