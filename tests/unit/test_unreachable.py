"""is_unreachable for the exceptions of real HTTP libraries: was the server reached before the call failed?"""

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
    """A port without a server on 127.0.0.1 and on ::1, so that both addresses of `localhost` refuse."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


class Server:
    """A server that replies to each connection in one faulty way."""

    def __init__(self, answer: bytes | None) -> None:
        """answer: the bytes sent before the close; None: reset the connection after the request."""
        self._answer = answer

    async def __aenter__(self) -> int:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return int(self._server.sockets[0].getsockname()[1])

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(65_536)
        if self._answer is None:
            # With this option the close is a reset.
            linger = b"\x01\0\0\0\0\0\0\0"
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        else:
            writer.write(self._answer)
        writer.close()


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
            raise ConnectionResetError("the reply is incomplete")


def in_thread(call: Callable[[str, float], Any]) -> Callable[..., Awaitable[None]]:
    """Return an async function that makes this call in a thread."""

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
    """Return the exception of the client, unwrapped, as a plugin may raise it."""
    try:
        await CLIENTS[client](url, seconds)
    except Exception as error:
        return error
    raise AssertionError(f"{client} got a reply")


@EVERY_CLIENT
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
@pytest.mark.gen_test
async def test_refused_connection_was_not_reached(client: str, host: str, closed_port: int) -> None:
    """The exception of each library for a refused connection is unreachable, also for a name with several addresses."""
    assert is_unreachable(await failure(client, f"http://{host}:{closed_port}"))


@EVERY_CLIENT
@pytest.mark.gen_test(timeout=20)
async def test_unknown_name_was_not_reached(client: str) -> None:
    """A name that DNS does not find is unreachable, because no request was sent."""
    assert is_unreachable(await failure(client, "http://unknown.invalid:80"))


@pytest.mark.parametrize("client", ["aiohttp", "httpx", "httpx in a thread", "requests", "urllib3", "urllib"])
@pytest.mark.gen_test
async def test_failed_tls_handshake_was_not_reached(client: str) -> None:
    """A server that speaks plain HTTP on an https:// address is unreachable, because it has received no request."""
    async with Server(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n") as port:
        assert is_unreachable(await failure(client, f"https://127.0.0.1:{port}"))


HALF = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc"


@EVERY_CLIENT
@pytest.mark.parametrize("answer", [None, b"", HALF], ids=["reset", "cut", "half a reply"])
@pytest.mark.gen_test
async def test_connection_lost_after_the_request_was_reached(client: str, answer: bytes | None) -> None:
    """A connection lost after the request is not unreachable: the photo itself may have crashed the server."""
    async with Server(answer) as port:
        assert not is_unreachable(await failure(client, f"http://127.0.0.1:{port}"))


@EVERY_CLIENT
@pytest.mark.gen_test
async def test_timeout_of_the_reply_was_reached(client: str) -> None:
    """A timeout of the reply is not unreachable: the server has accepted the request and works on it, or hangs."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert not is_unreachable(await failure(client, f"http://127.0.0.1:{silent.getsockname()[1]}", 0.2))


@pytest.mark.parametrize("client", ["aiohttp", "httpx", "requests", "urllib3"])
@pytest.mark.gen_test(timeout=20)
async def test_timeout_of_the_connection_was_not_reached(client: str) -> None:
    """A timeout of the connection is unreachable: the libraries have a separate exception for it."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        address = full.getsockname()
        waiting = []
        # Fill the backlog until no connection is accepted.
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
    """Return the outer error, raised `from None` while the inner one was handled."""
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
        (OSError(errno.EHOSTUNREACH, "No route to host"), True, "reported by the network"),
        (OSError(errno.ENETUNREACH, "Network is unreachable"), True, ""),
        (OSError(errno.ECONNREFUSED, "[Errno 111]"), True, "the error number counts, not the class"),
        (OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address"), True, "we have no port left"),
        (OSError(errno.EMFILE, "Too many open files"), True, "we have no file left"),
        (socket.gaierror(-2, "Name or service not known"), True, "DNS"),
        (ssl.SSLCertVerificationError(1, "certificate verify failed"), True, "TLS: the certificate is invalid"),
        (ssl.SSLError(1, "WRONG_VERSION_NUMBER"), True, "TLS: no handshake"),
        (ssl.SSLEOFError(8, "EOF occurred in violation of protocol"), False, "the same text also means a lost reply"),
        (ssl.SSLZeroReturnError(6, "TLS/SSL connection has been closed"), False, "the server closed the connection"),
        (ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), False, "the server was reached"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), False, "the server was reached"),
        (TimeoutError(errno.ETIMEDOUT, "Connection timed out"), False, "the same error also means a missing reply"),
        (TimeoutError(), False, "the server may be working"),
        (FileNotFoundError(errno.ENOENT, "model.onnx"), False, "an OSError of another kind"),
        (OSError("Multiple exceptions: [Errno 111] a, [Errno 111] b"), True, "asyncio, of a host with two addresses"),
        (OSError(errno.EIO, "Multiple exceptions: a disk"), False, "not an error of asyncio"),
        (ValueError("Connection refused"), False, "a text alone does not count"),
        (chained(RuntimeError("SDK error"), KeyError("x"), REFUSED), True, "three levels down"),
        (chained(RuntimeError("SDK error"), REFUSED, explicit=False), True, "raised while the other was handled"),
        (suppressed(ValueError("bad JSON"), REFUSED), False, "`from None`: its author excludes the inner error"),
        (ExceptionGroup("tasks", [REFUSED, OSError(errno.EHOSTUNREACH, "")]), True, "all errors of a task group"),
        (ExceptionGroup("tasks", [REFUSED, ValueError("a bug")]), False, "one of them is another error"),
        (ExceptionGroup("a", [ExceptionGroup("b", [REFUSED])]), True, "groups in groups"),
        (chained(OSError("All connection attempts failed"), ExceptionGroup("", [REFUSED])), True, "anyio"),
    ],
    ids=lambda each: repr(each)[:60],
)
def test_error_before_the_request_is_unreachable(error: BaseException, expected: bool, remark: str) -> None:
    """In doubt the server was reached: a failed attempt ends after some retries, a postponed job may wait a day."""
    assert is_unreachable(error) is expected, remark


def test_circular_chain_of_errors_ends() -> None:
    """A circle of causes, also through an exception group, is read only up to a limit."""
    one, other = ValueError("one"), ValueError("other")
    one.__cause__, other.__cause__ = other, one
    assert not is_unreachable(one)
    inner = ValueError("inner")
    inner.__cause__ = ExceptionGroup("outer", [inner])
    assert not is_unreachable(inner)
