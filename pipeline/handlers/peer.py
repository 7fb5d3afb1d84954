"""Who is at the other end of a connection, and which client a request on it is from.

One connection of a proxy carries requests of many clients, so the address is settled for each request, from its
headers. Tornado's `xheaders` are not used: they believe everybody, and X-Real-Ip more than anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tornado.httpserver import _HTTPRequestContext
from tornado.httputil import HTTPServerRequest
from tornado.iostream import IOStream

from pipeline.proxies import TrustedProxies


class Peer(_HTTPRequestContext):
    """The other end of a connection. remote_ip: of the client whose request is read or answered now."""

    def __init__(self, stream: IOStream, address: Any, proxies: TrustedProxies) -> None:
        super().__init__(stream, address, None)
        self._proxies = proxies
        self._peer_ip = self.remote_ip
        self.settle({})

    def settle(self, headers: Mapping[str, str]) -> None:
        """Take the next request's headers."""
        self.remote_ip = self._proxies.client_of(self._peer_ip, headers)

    def hosts(self, headers: Mapping[str, str]) -> tuple[str, ...]:
        """Return the hosts that the client may have asked for."""
        return self._proxies.hosts_of(self._peer_ip, headers)


def client_address(request: HTTPServerRequest) -> str:
    """Return the IP address of the client, behind the proxies that TRUSTED_PROXIES names."""
    return request.remote_ip or ""


def asked_hosts(request: HTTPServerRequest) -> tuple[str, ...]:
    """Return the hosts, with ports, that the client may have asked for."""
    context = getattr(request.connection, "context", None)
    return context.hosts(request.headers) if isinstance(context, Peer) else (request.headers.get("Host", ""),)
