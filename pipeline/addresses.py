"""Checks the syntax of an address in a setting: scheme, host, port, path, query. Pure: opens no connection.

A driver would fail at the first connection only, with a trace, or would use a wrong value: redis-py takes database 0
for redis://host/staging. Each ..._fault function returns what is wrong, or "". No text quotes the address, because a
wrong port or path may be a part of a password.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from ipaddress import IPv6Address
from typing import NamedTuple
from urllib.parse import parse_qsl, unquote, urlencode

HOST = re.compile(r"(\[[^\[\]]+\]|[^\[\]:@]+)(?::([0-9]*))?")
BROKEN_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")
DATABASE = re.compile(r"/?|/[0-9]{1,5}")
SCHEME = re.compile(r"[a-z][a-z0-9+.-]*")
NO_PORT = "the port must be a number from 1 to 65535"
ADVICE = "in a user or password write @ : / ? # % as %40 %3A %2F %3F %23 %25"


def _is_any(text: str) -> bool:
    return bool(text)


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[0-9]{1,5}", text) is not None


def _is_seconds(text: str) -> bool:
    return re.fullmatch(r"[0-9]{1,5}(\.[0-9]{1,6})?", text) is not None and float(text) > 0


def _is_boolean(text: str) -> bool:
    return text.lower() in ("true", "false")


def _is_certificate_check(text: str) -> bool:
    return text in ("none", "optional", "required")


# The options of the query that redis-py accepts and that are useful here. Others would change how the service sets up
# its connections (protocol, socket_timeout, decode_responses), or do nothing.
REDIS_OPTIONS: Mapping[str, Callable[[str], bool]] = {
    "db": _is_number,
    "username": _is_any,
    "password": _is_any,
    "client_name": _is_any,
    "socket_connect_timeout": _is_seconds,
}
REDIS_TLS_OPTIONS: Mapping[str, Callable[[str], bool]] = {
    "ssl_ca_certs": _is_any,
    "ssl_ca_path": _is_any,
    "ssl_ca_data": _is_any,
    "ssl_certfile": _is_any,
    "ssl_keyfile": _is_any,
    "ssl_password": _is_any,
    "ssl_ciphers": _is_any,
    "ssl_min_version": _is_number,
    "ssl_cert_reqs": _is_certificate_check,
    "ssl_check_hostname": _is_boolean,
}
# The login for the Sentinels; the user and password before the hosts are for the Redis servers.
SENTINEL_OPTIONS: Mapping[str, Callable[[str], bool]] = {"sentinel_username": _is_any, "sentinel_password": _is_any}
REDIS_SCHEMES = {
    "redis": REDIS_OPTIONS,
    "rediss": {**REDIS_OPTIONS, **REDIS_TLS_OPTIONS},
    "redis+sentinel": {**REDIS_OPTIONS, **SENTINEL_OPTIONS},
    "rediss+sentinel": {**REDIS_OPTIONS, **REDIS_TLS_OPTIONS, **SENTINEL_OPTIONS},
    "unix": REDIS_OPTIONS,
}
REDIS_PORT, SENTINEL_PORT = 6379, 26379


class RedisServers(NamedTuple):
    """The servers that a Redis URL names.

    url: the address of one server, for redis-py.
    hosts: host and port of each server, or of each Sentinel; empty when the URL names one server only.
    sentinel_url: the address of a Sentinel, for redis-py; "" without Sentinels.
    master_name: the name under which the Sentinels watch the servers.
    shared_url: the address of a Sentinel with the servers' login, for Sentinels that need a login while the URL has
        none for them; "" otherwise.
    """

    url: str
    hosts: tuple[tuple[str, int], ...] = ()
    sentinel_url: str = ""
    master_name: str = ""
    shared_url: str = ""


def redis_servers(url: str) -> RedisServers:
    """Return the servers of a URL for which redis_fault returns ""."""
    scheme, rest = _split_scheme(url)
    before_query, _, query = rest.partition("?")
    authority, _, path = before_query.partition("/")
    names = _host_of(authority).split(",")
    scheme, is_watched, _ = scheme.partition("+sentinel")
    if scheme == "unix" or (len(names) == 1 and not is_watched):
        return RedisServers(url)
    user = authority[: -len(_host_of(authority))]
    default = SENTINEL_PORT if is_watched else REDIS_PORT
    hosts = tuple(_host_and_port(name, default) for name in names)
    if not is_watched:
        return RedisServers(f"{scheme}://{user}{names[0]}/{path}?{query}", hosts)
    given = parse_qsl(query, keep_blank_values=True)
    master_name, _, database = path.partition("/")
    of_servers = [(name, value) for name, value in given if name not in SENTINEL_OPTIONS]
    server_url = f"{scheme}://{user}{names[0]}/{database}?{urlencode(of_servers)}"
    # A Sentinel has no databases, and a user of its own.
    of_sentinels = [(name, value) for name, value in of_servers if name not in ("db", "username", "password")]
    of_sentinels += [(name.removeprefix("sentinel_"), value) for name, value in given if name in SENTINEL_OPTIONS]
    sentinel_url = f"{scheme}://{names[0]}?{urlencode(of_sentinels)}"
    shared = [(name, value) for name, value in of_servers if name != "db"]
    shared_url = f"{scheme}://{user}{names[0]}?{urlencode(shared)}"
    has_own_login = any(name in SENTINEL_OPTIONS for name, _ in given)
    if has_own_login or shared_url == sentinel_url:
        shared_url = ""
    return RedisServers(server_url, hosts, sentinel_url, unquote(master_name), shared_url)


def _host_and_port(name: str, default_port: int) -> tuple[str, int]:
    found = HOST.fullmatch(name)
    assert found is not None
    return unquote(found[1].strip("[]")), int(found[2] or default_port)


def redis_fault(url: str) -> str:
    """Return what is wrong with the address of one or more Redis servers: as redis-py reads it, but strictly."""
    scheme, rest = _split_scheme(url)
    if scheme not in REDIS_SCHEMES:
        return (
            "must look like redis://USER:PASSWORD@HOST:PORT/DATABASE, or redis+sentinel://HOST:PORT/NAME/DATABASE, "
            "with rediss for TLS; HOST:PORT,HOST:PORT for several"
        )
    rest, _, query = rest.partition("?")
    authority, slash, path = rest.partition("/")
    path = slash + path
    hosts = _host_of(authority).split(",")
    if scheme == "unix":
        is_good = path not in ("", "/") and hosts == [""]
        where = "" if is_good else "must look like unix:///PATH?db=DATABASE"
    else:
        where = next((fault for host in hosts if (fault := _host_fault(host))), "")
        if not where and scheme.endswith("+sentinel"):
            name, slash, database = path[1:].partition("/")
            where = "" if name else "after the Sentinels comes the name of the master they watch, as in /mymaster/0"
            path = slash + database
        where = where or _database_fault(path, query)
        if not where and len(hosts) > 1 and not scheme.endswith("+sentinel") and _database(path, query):
            where = "several servers are those of a Redis Cluster, which has only database 0"
    return _advised(_text_fault(url) or where or _query_fault(query, REDIS_SCHEMES[scheme]), url)


def mongodb_fault(uri: str) -> str:
    """Return what is wrong with a mongodb:// or mongodb+srv:// URI. Its options are left to the driver."""
    scheme, rest = _split_scheme(uri)
    # The driver accepts these schemes in small letters only.
    if not uri.startswith(("mongodb://", "mongodb+srv://")):
        return "must look like mongodb://USER:PASSWORD@HOST:PORT/DATABASE, or mongodb+srv://HOST/DATABASE"
    before_query, _, _ = rest.partition("?")
    authority, _, database = before_query.partition("/")
    hosts = _host_of(authority).split(",")
    if authority.count("@") > 1:
        where = "a user or password contains a bare @"
    elif scheme == "mongodb+srv" and (len(hosts) > 1 or ":" in hosts[0]):
        where = "mongodb+srv:// needs one host name without a port"
    else:
        where = next((fault for host in hosts if (fault := _host_fault(host))), "")
    # From photos.staging the driver would take the database photos.
    if not where and not set(unquote(database)).isdisjoint('/\\. "$*<>:|?'):
        where = "after the host comes the name of a database, without any of / \\ . \" $ * < > : | ?"
    return _advised(_text_fault(uri) or where, uri)


def web_fault(url: str) -> str:
    """Return what is wrong with an http:// or https:// address."""
    scheme, rest = _split_scheme(url)
    if scheme not in ("http", "https"):
        return "must be an http:// or https:// address"
    host = _host_of(re.split("[/?#]", rest, maxsplit=1)[0])
    return _text_fault(url, "#") or ("it must name one host only" if "," in host else _host_fault(host))


def _split_scheme(url: str) -> tuple[str, str]:
    scheme, separator, rest = url.partition("://")
    scheme = scheme.lower()
    return (scheme, rest) if separator and SCHEME.fullmatch(scheme) else ("", rest)


def _host_of(authority: str) -> str:
    return authority.rpartition("@")[2]


def _text_fault(url: str, allowed: str = "") -> str:
    """Return what is wrong with the characters of an address, in any part of it."""
    if not url.isprintable() or " " in url:
        return "it contains a blank or a character that cannot be printed"
    if "#" in url and "#" not in allowed:
        return "it contains a #"
    try:
        unquote(url, errors="strict")
    except UnicodeDecodeError:
        return "what is written with % is not UTF-8"
    return "a % is not followed by two hexadecimal digits" if BROKEN_PERCENT.search(url) else ""


def _host_fault(text: str) -> str:
    found = HOST.fullmatch(text)
    if found is None:
        if text.count(":") > 1 or "[" in text:
            return "an IPv6 address stands in brackets, as in [::1]:6379"
        return NO_PORT if text.count(":") == 1 and not text.startswith(":") else "it needs a host"
    host, port = found[1], found[2]
    if host.startswith("["):
        try:
            IPv6Address(host[1:-1])
        except ValueError:
            return "what stands in brackets is no IPv6 address"
    # Check the length first: Python refuses to convert thousands of digits.
    return NO_PORT if port is not None and not (0 < len(port) <= 5 and 1 <= int(port) <= 65535) else ""


def _database_fault(path: str, query: str) -> str:
    if not DATABASE.fullmatch(path):
        return "after the host comes the number of a database, as in /0, or nothing"
    is_twice = path not in ("", "/") and re.search(r"(^|&)db=", query)
    return "the database is named twice, after the host and as db" if is_twice else ""


def _database(path: str, query: str) -> int:
    found = re.search(r"(?:^|&)db=([0-9]{1,5})(?:&|$)", query)
    return int(path[1:] or (found[1] if found else 0))


def _advised(fault: str, url: str) -> str:
    """Return the fault; for an address with a user or password also how to write these."""
    return f"{fault}; {ADVICE}" if fault and "@" in url else fault


def _query_fault(query: str, options: Mapping[str, Callable[[str], bool]]) -> str:
    if not query:
        return ""
    try:
        given = parse_qsl(query, keep_blank_values=True, strict_parsing=True)
    except ValueError:
        return "what follows ? must look like NAME=VALUE&NAME=VALUE"
    names = [name for name, _ in given]
    if any(name not in options for name in names):
        return f"what follows ? may be {', '.join(options)}"
    if twice := next((name for name in names if names.count(name) > 1), ""):
        return f"{twice} is given twice"
    wrong = next((name for name, value in given if not options[name](value)), "")
    return f"{wrong} has no valid value" if wrong else ""
