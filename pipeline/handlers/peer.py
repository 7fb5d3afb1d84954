"""The other end of a connection, and the client address of each request on it.

A proxy sends requests of many clients over one connection, so the address is read from the headers of each request.
Tornado's `xheaders` are not used: they trust every sender, and X-Real-Ip before all other headers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tornado.httpserver import _HTTPRequestContext
from tornado.httputil import HTTPServerRequest
from tornado.iostream import IOStream

from pipeline.proxies import TrustedProxies


class Peer(_HTTPRequestContext):
    """The other end of a connection.

    remote_ip: the client address of the current request.
    """

    def __init__(self, stream: IOStream, address: Any, proxies: TrustedProxies) -> None:
        super().__init__(stream, address, None)
        self._proxies = proxies
        self._peer_ip = self.remote_ip
        self.settle({})

    def settle(self, headers: Mapping[str, str]) -> None:
        """Set remote_ip for the next request, from its headers."""
        self.remote_ip = self._proxies.client_of(self._peer_ip, headers)

    def hosts(self, headers: Mapping[str, str]) -> tuple[str, ...]:
        """Return the hosts that the client may have requested."""
        return self._proxies.hosts_of(self._peer_ip, headers)


def client_address(request: HTTPServerRequest) -> str:
    """Return the IP address of the client, behind the proxies that TRUSTED_PROXIES names."""
    return request.remote_ip or ""


def asked_hosts(request: HTTPServerRequest) -> tuple[str, ...]:
    """Return the hosts, with ports, that the client may have requested."""
    context = getattr(request.connection, "context", None)
    return context.hosts(request.headers) if isinstance(context, Peer) else (request.headers.get("Host", ""),)
