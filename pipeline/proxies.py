"""The address of the client behind proxies. Pure; no function raises for a value that a client sent.

A proxy appends the address of its caller to `X-Forwarded-For`. The client can invent everything before that. So the
header is read from its end, as long as each address is that of a trusted proxy. The header `Forwarded` is not read:
a proxy that does not write it forwards what the client sent.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

IP = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

# One word for all private networks (RFC 1918, RFC 4193) and this machine: the addresses of containers are not known
# before they run.
PRIVATE = "private"
PRIVATE_NETWORKS = ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "127.0.0.0/8", "fc00::/7", "::1/128")
# More hops than any installation has; bounds the cost of a long header.
MAX_HOPS = 20
# As some proxies write them: 192.0.2.1:4711, [2001:db8::1] and [2001:db8::1]:4711.
WITH_PORT = re.compile(r"\[([^\[\]]*)\](?::[0-9]{1,5})?|([0-9.]+):[0-9]{1,5}", re.ASCII)
LONGEST_ADDRESS = 64


class TrustedProxies:
    """The proxies that TRUSTED_PROXIES names.

    entries: each one valid, see proxy_fault.
    """

    def __init__(self, entries: Sequence[str] = ()) -> None:
        names = [name for entry in entries for name in (PRIVATE_NETWORKS if entry == PRIVATE else (entry,))]
        self._networks: tuple[Network, ...] = tuple(ip_network(name) for name in names)

    def client_of(self, peer: str, headers: Mapping[str, str]) -> str:
        """Return the address of the client: the peer's own, or the one that trusted proxies wrote.

        peer: the address at the other end of the connection; a value that is no IP address is returned unchanged.
        """
        if (address := parse_address(peer)) is None:
            return peer
        if not self._networks or not self._trusts(address):
            return str(address)
        for entry in reversed(headers.get("X-Forwarded-For", "").rsplit(",", MAX_HOPS)[-MAX_HOPS:]):
            hop = parse_address(entry)
            if hop is None:
                break  # the address before this entry is the last trustworthy one
            address = hop
            if not self._trusts(address):
                break
        return str(address)

    def hosts_of(self, peer: str, headers: Mapping[str, str]) -> tuple[str, ...]:
        """Return the hosts that the client may have requested: `Host`, and `X-Forwarded-Host` of a trusted proxy."""
        own = headers.get("Host", "")
        address = parse_address(peer) if self._networks and "X-Forwarded-Host" in headers else None
        if address is None or not self._trusts(address):
            return (own,)
        return (own, *(each.strip() for each in headers["X-Forwarded-Host"].rsplit(",", MAX_HOPS)[-MAX_HOPS:]))

    def _trusts(self, address: IP) -> bool:
        return any(address in network for network in self._networks)


def parse_address(text: str) -> IP | None:
    """Return the IP address, None for any other text.

    Port, brackets and zone are dropped; an IPv4 address mapped into IPv6 is returned as IPv4.
    """
    text = text.strip()
    if len(text) > LONGEST_ADDRESS:
        return None
    if matched := WITH_PORT.fullmatch(text):
        text = matched[1] or matched[2] or ""
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address


def proxy_fault(entry: str) -> str:
    """Return why this cannot be an entry of TRUSTED_PROXIES, "" when it can."""
    if entry == PRIVATE:
        return ""
    try:
        network = ip_network(entry)
    except ValueError:
        return f"must be an address as 10.0.0.7, a network as 10.0.0.0/8 that begins where it says, or {PRIVATE}"
    if network.prefixlen == 0:
        return f"{entry} would trust every client, which may invent its address"
    if isinstance(network, IPv6Network) and network.network_address.ipv4_mapped is not None:
        return "write an IPv4 address or network without ::ffff:"
    return ""
