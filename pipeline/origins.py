"""Origins of web pages, as browsers send them in `Origin` and as settings name them. Pure.

The normal spelling is that of browsers: scheme, host and port in small letters, without a default port and without a
slash at the end (RFC 6454, section 6.2). No function raises for a value that a client sent.
"""

from __future__ import annotations

import re
from ipaddress import IPv6Address
from urllib.parse import urlsplit

DEFAULT_PORTS = {"http": "80", "https": "443"}
# The origins of browser extensions, and of apps that show a web page, have these schemes.
APP_SCHEMES = ("chrome-extension", "moz-extension", "safari-web-extension", "capacitor", "ionic", "tauri")
HOST = r"[a-z0-9_](?:[a-z0-9_.-]{0,252}[a-z0-9_])?|\[[0-9a-f:.]{2,45}\]"
HOST_PORT = re.compile(rf"({HOST})(?::([0-9]{{1,5}}))?", re.IGNORECASE | re.ASCII)
ORIGIN = re.compile(rf"([a-z][a-z-]{{1,30}})://({HOST})(?::([0-9]{{1,5}}))?", re.IGNORECASE | re.ASCII)


def normal_origin(text: str) -> str:
    """Return the origin in its normal spelling; "" for any other text, such as `null` or an address with a path."""
    matched = ORIGIN.fullmatch(text)
    if matched is None:
        return ""
    scheme, host, port = matched[1].lower(), _normal_host(matched[2]), _normal_port(matched[3])
    if scheme not in (*DEFAULT_PORTS, *APP_SCHEMES) or not host or port is None:
        return ""
    return f"{scheme}://{host}" + (f":{port}" if port not in ("", DEFAULT_PORTS.get(scheme)) else "")


def origin_of(url: str) -> str:
    """Return the origin of an http:// or https:// address in a setting, "" when it has none."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        host = f"[{host}]" if ":" in host else host if host.isascii() else host.encode("idna").decode("ascii")
        return normal_origin(f"{parts.scheme}://{host}" + (f":{parts.port}" if parts.port else ""))
    except ValueError:  # UnicodeError is one
        return ""


def allowed_origin(text: str) -> str:
    """Return the origin of an entry of ALLOWED_ORIGINS, "" when it is none. A slash at its end is accepted."""
    text = text.removesuffix("/")
    if text.isascii():
        return normal_origin(text)
    return origin_of(text) if text.count("/") == 2 and not any(sign in text for sign in "?#@*") else ""


def origin_fault(text: str) -> str:
    """Return why this cannot be an entry of ALLOWED_ORIGINS, "" when it can. Does not quote the entry."""
    if text == "*":
        return "must name origins, * is not accepted"
    if text.lower() == "null":
        return "null stands for every page without an origin, files and hostile frames among them: it is not accepted"
    if allowed_origin(text):
        return ""
    scheme, separator, rest = text.partition("://")
    if not separator or scheme.lower() not in (*DEFAULT_PORTS, *APP_SCHEMES):
        return "must look like https://HOST or https://HOST:PORT"
    if any(sign in rest for sign in "/?#@"):
        return "an origin has no path, query, fragment or user: only scheme, host and port"
    if "*" in rest:
        return "each host must be named, * is not accepted"
    return "it has no valid host or port"


def is_same_host(origin: str, host: str) -> bool:
    """True when the origin has the host and port of a Host header.

    origin: in its normal spelling.
    The scheme is not compared, because a proxy may have removed the TLS.
    """
    own, page = HOST_PORT.fullmatch(host), ORIGIN.fullmatch(origin)
    if own is None or page is None:
        return False
    default, port = DEFAULT_PORTS.get(page[1], ""), _normal_port(own[2])
    # A proxy may write the default port, which browsers leave out.
    return _normal_host(own[1]) == page[2] and port is not None and (port or default) == (page[3] or default)


def _normal_host(host: str) -> str:
    if not host.startswith("["):
        return "" if ".." in host else host.lower()
    try:
        return f"[{IPv6Address(host[1:-1]).compressed}]"
    except ValueError:
        return ""


def _normal_port(port: str | None) -> str | None:
    """Return the port without leading zeros, "" when none is given, None when there is no such port."""
    if port is None:
        return ""
    return str(int(port)) if 1 <= int(port) <= 65535 else None
