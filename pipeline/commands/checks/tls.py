"""Whether the scheme of a Redis URL, redis or rediss, fits the server: the driver's errors do not name this cause."""

from __future__ import annotations

import asyncio
import ssl
from contextlib import suppress
from urllib.parse import urlsplit

from pipeline.addresses import redis_servers

HINT_SECONDS = 2.0


async def tls_hint(url: str) -> str:
    """Return a hint when the server uses TLS and the URL does not, or the other way round; "" otherwise."""
    servers = redis_servers(url)
    parts = urlsplit(servers.url)
    if parts.scheme == "unix" or not parts.hostname:
        return ""
    host, port = parts.hostname, parts.port or 6379
    if parts.scheme == "rediss":
        is_wrong, hint = await _is_plain(host, port), "the server speaks no TLS: set redis:// instead of rediss://"
    else:
        is_wrong, hint = await _is_tls(host, port), "the server speaks TLS: set rediss:// instead of redis://"
    return hint if is_wrong else ""


async def _is_tls(host: str, port: int) -> bool:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        async with asyncio.timeout(HINT_SECONDS):
            _, writer = await asyncio.open_connection(host, port, ssl=context)
    except (OSError, TimeoutError) as error:
        # The server demands a client certificate, so it uses TLS.
        return isinstance(error, ssl.SSLError) and "CERTIFICATE" in str(error)
    writer.transport.abort()
    return True


async def _is_plain(host: str, port: int) -> bool:
    writer = None
    with suppress(OSError, TimeoutError):
        try:
            async with asyncio.timeout(HINT_SECONDS):
                reader, writer = await asyncio.open_connection(host, port)
                writer.write(b"PING\r\n")
                return (await reader.read(1)) in (b"+", b"-")
        finally:
            if writer is not None:
                writer.transport.abort()
    return False
