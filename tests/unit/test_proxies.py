"""The client address of a request behind proxies: only headers of a trusted proxy count."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from pipeline.proxies import MAX_HOPS, TrustedProxies
from pipeline.settings import Settings

TRUSTED = ("10.0.0.0/8", "192.0.2.7", "2001:db8:1::/48")
# The columns are the peer, X-Forwarded-For, the client and a remark.
CLIENTS = [
    ("203.0.113.9", "198.51.100.1", "203.0.113.9", "a peer that is not trusted"),
    ("10.0.0.1", None, "10.0.0.1", "a proxy without the header"),
    ("10.0.0.1", "", "10.0.0.1", "an empty header"),
    ("10.0.0.1", "198.51.100.1", "198.51.100.1", "one proxy"),
    ("10.0.0.1", "6.6.6.6, 198.51.100.1", "198.51.100.1", "the client has sent a false address"),
    ("10.0.0.1", "198.51.100.1, 192.0.2.7, 10.9.9.9", "198.51.100.1", "three proxies"),
    ("10.0.0.1", "10.1.1.1, 10.2.2.2", "10.1.1.1", "a client inside the trusted network"),
    ("10.0.0.1", "198.51.100.1:4711", "198.51.100.1", "with a port"),
    ("10.0.0.1", "[2001:db8:2::1]:4711", "2001:db8:2::1", "IPv6 in brackets with a port"),
    ("10.0.0.1", "[2001:db8:2::1]", "2001:db8:2::1", "IPv6 in brackets"),
    ("10.0.0.1", "2001:0DB8:2:0::1", "2001:db8:2::1", "IPv6 has one spelling"),
    ("10.0.0.1", "::ffff:198.51.100.1", "198.51.100.1", "IPv4 in IPv6"),
    ("::ffff:10.0.0.1", "198.51.100.1", "198.51.100.1", "a proxy's IPv4 in IPv6, as a dual socket has it"),
    ("::ffff:203.0.113.9", "198.51.100.1", "203.0.113.9", "the IPv4 of an untrusted peer in IPv6"),
    ("2001:db8:1::7", "198.51.100.1", "198.51.100.1", "a proxy with IPv6"),
    ("fe80::1%eth0", "198.51.100.1", "fe80::1", "a zone is not part of the address"),
    ("10.0.0.1", "198.51.100.1, unknown", "10.0.0.1", "the proxy does not know the address"),
    ("10.0.0.1", "198.51.100.1, evil\x1b[2J, 10.2.2.2", "10.2.2.2", "an invalid entry ends the search"),
    ("10.0.0.1", "198.51.100.1,,10.2.2.2", "10.2.2.2", "an empty entry ends the search"),
    ("10.0.0.1", "300.1.1.1", "10.0.0.1", "an invalid address"),
    ("10.0.0.1", "1" * 60_000, "10.0.0.1", "a long text that is no address"),
    ("10.0.0.1", "6.6.6.6," + ",".join(["10.0.0.2"] * 9000), "10.0.0.2", "very many hops"),
    ("0.0.0.0", "198.51.100.1", "0.0.0.0", "the address that Tornado gives a Unix socket"),
    ("", "198.51.100.1", "", "a peer that has disconnected"),
]
HOSTS = [
    ("10.0.0.1", "photos.example", ("inner:8080", "photos.example"), "a proxy that changed Host"),
    ("10.0.0.1", "photos.example, mid", ("inner:8080", "photos.example", "mid"), "two such proxies"),
    ("203.0.113.9", "photos.example", ("inner:8080",), "a peer that is not trusted"),
    ("10.0.0.1", None, ("inner:8080",), "a proxy that does not change Host"),
]
NOT_TRUSTED = [
    *("*", "localhost", "10.0.0.1/8", "0.0.0.0/0", "::/0", "10.0.0.0/33", "::ffff:10.0.0.1", "Private", "10.0.0"),
]


@pytest.mark.fault("O15")
@pytest.mark.parametrize(("peer", "given", "expected"), [row[:3] for row in CLIENTS], ids=[row[3] for row in CLIENTS])
def test_client_is_the_last_address_that_is_not_a_trusted_proxy(peer: str, given: str | None, expected: str) -> None:
    """The header is read from its end; an invalid entry ends the search and raises no error."""
    headers = {} if given is None else {"X-Forwarded-For": given}
    assert TrustedProxies(TRUSTED).client_of(peer, headers) == expected


@pytest.mark.parametrize(("peer", "given", "expected"), [row[:3] for row in HOSTS], ids=[row[3] for row in HOSTS])
def test_hosts_include_those_of_a_trusted_proxy(
    peer: str, given: str | None, expected: tuple[str, ...]
) -> None:
    """The hosts are Host and, from a trusted proxy, X-Forwarded-Host; the origin of a page is compared with them."""
    headers = {"Host": "inner:8080"} | ({} if given is None else {"X-Forwarded-Host": given})
    assert TrustedProxies(TRUSTED).hosts_of(peer, headers) == expected


def test_no_proxy_is_trusted_by_default() -> None:
    """By default the client is the peer; Forwarded and X-Real-Ip never count."""
    headers = dict.fromkeys(("X-Forwarded-For", "X-Real-Ip"), "6.6.6.6") | {"Forwarded": "for=6.6.6.6"}
    assert TrustedProxies().client_of("127.0.0.1", headers) == "127.0.0.1"
    assert TrustedProxies(TRUSTED).client_of("10.0.0.1", headers | {"X-Forwarded-For": ""}) == "10.0.0.1"


def test_private_stands_for_private_networks_and_this_machine() -> None:
    """`private` contains no public address."""
    proxies = TrustedProxies(("private",))
    for peer in ("10.1.1.1", "172.31.0.9", "192.168.0.1", "127.0.0.1", "fd00::1", "::1"):
        assert proxies.client_of(peer, {"X-Forwarded-For": "6.6.6.6"}) == "6.6.6.6"
    for peer in ("172.32.0.1", "8.8.8.8", "2001:db8::1", "0.0.0.0", "169.254.1.1"):
        assert proxies.client_of(peer, {"X-Forwarded-For": "6.6.6.6"}) == peer


def test_longest_chain_of_hops_is_read_completely() -> None:
    """A chain of MAX_HOPS addresses is read up to its first address."""
    hops = ["6.6.6.6", *["10.0.0.2"] * (MAX_HOPS - 1)]
    assert TrustedProxies(TRUSTED).client_of("10.0.0.1", {"X-Forwarded-For": ",".join(hops)}) == "6.6.6.6"


@pytest.mark.parametrize("entry", NOT_TRUSTED)
def test_setting_refuses_an_entry_that_names_no_proxies(entry: str) -> None:
    """The setting refuses texts that are no network, and networks of all addresses, which would trust every client."""
    with pytest.raises(ValidationError, match="TRUSTED_PROXIES"):
        Settings(trusted_proxies=f"10.0.0.1, {entry}")  # type: ignore[arg-type]


def test_setting_accepts_addresses_and_networks() -> None:
    """The entries are separated by commas, and `private` is one of them."""
    settings = Settings(trusted_proxies="10.0.0.1, 192.168.0.0/16,private,::1")  # type: ignore[arg-type]
    assert settings.trusted_proxies == ("10.0.0.1", "192.168.0.0/16", "private", "::1")
