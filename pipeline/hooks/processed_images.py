"""Checks the processed images that plugins return; their content types and URLs are not trusted.

The bytes are checked like those of an upload, by a function that the wiring passes in: this package knows no image
formats. A refused picture is left out of the result; the result stands. Runs on the event loop.
"""

from __future__ import annotations

import ipaddress
import socket
import unicodedata
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

import structlog

from pipeline.errors import ValidationError
from pipeline.hooks.bound_plugin import BoundPlugin
from pipeline.hooks.checks import picture_fault
from pipeline.hooks.provider_protocol import Analysis, ProcessedImage

if TYPE_CHECKING:
    from pipeline.settings import Settings

log = structlog.get_logger(__name__)

# Returns the content type of the bytes; ValidationError when an upload of them would be refused.
Inspect = Callable[[bytes], Awaitable[str]]
# Names that only this machine or its own network can resolve (RFC 6761, 6762 and 8375), beside those without a dot.
INTERNAL_NAMES = ("localhost", "local", "internal", "intranet", "private", "corp", "home", "lan", "home.arpa")
INTERNAL_ADDRESS = "processed_image_url is an internal address, which clients cannot reach"


class ProcessedImages:
    """Checks the processed images of all plugins."""

    def __init__(self, settings: Settings, inspect: Inspect | None = None) -> None:
        """inspect: checks the bytes of a picture; without it they are not checked."""
        self._inspect = inspect
        # A client that reaches the service at an internal address reaches that host, perhaps the AI service's too.
        own_hosts = (urlsplit(url).hostname for url in (settings.public_url, settings.ai_service_url))
        self._own_hosts = {host for host in own_hosts if host}

    async def without_refused(self, plugin: BoundPlugin, method: str, analysis: Analysis) -> Analysis:
        """Return the analysis, without its picture if that is refused: this is logged and counts as an error of the
        plugin.
        """
        try:
            return await self.checked(analysis)
        except ValueError as error:
            plugin.count_error(method)
            log.warning("processed_image_refused", plugin=plugin.name, reason=str(error))
            return replace(analysis, processed_image=None, processed_image_url=None)

    async def checked(self, analysis: Analysis) -> Analysis:
        """Return the analysis, its picture with the content type of its bytes; ValueError with the picture's fault."""
        if fault := picture_fault(analysis):
            raise ValueError(fault)
        url, image = analysis.processed_image_url, analysis.processed_image
        if url is None and image is None:
            return analysis
        host = urlsplit(url or "").hostname or ""
        if host not in self._own_hosts and is_internal(host):
            raise ValueError(INTERNAL_ADDRESS)
        if image is None or self._inspect is None:
            return analysis
        try:
            content_type = await self._inspect(image.content)
        except ValidationError as error:
            details = [detail["message"] for detail in error.details or ()]
            raise ValueError(f"processed_image: {'; '.join(details) or error.message}") from error
        return replace(analysis, processed_image=ProcessedImage(image.content, content_type))


@lru_cache(maxsize=1000)
def is_internal(host: str) -> bool:
    """True for an address or name of this machine or of a private network, also in the odd spellings that browsers
    accept. A name is not resolved.
    """
    host = unicodedata.normalize("NFKC", unquote(host)).replace("\u3002", ".").strip("[]").rstrip(".").lower()
    if host.endswith(tuple(f".{name}" for name in INTERNAL_NAMES)):
        return True
    address: ipaddress.IPv4Address | ipaddress.IPv6Address | None = None
    with suppress(ValueError):
        address = ipaddress.ip_address(host.partition("%")[0])
    if address is None:
        with suppress(OSError, UnicodeError):  # 127.1, 2130706433 and 0x7f000001 are addresses too
            address = ipaddress.IPv4Address(socket.inet_aton(host))
    if address is None:
        return bool(host) and "." not in host
    if isinstance(address, ipaddress.IPv6Address):
        address = address.ipv4_mapped or address.sixtofour or address
    return not address.is_global
