"""Tells whether the processed image that a plugin hands back may be kept; what a plugin says of it is not trusted.

The bytes are looked at as those of an upload are, by a function that the wiring hands in: this package knows no image
formats. A picture that is not taken costs the asset its picture and never its result. Runs on the event loop.
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

# Returns the content type that the bytes say; ValidationError when they are no image that an upload may be.
Inspect = Callable[[bytes], Awaitable[str]]
# Names that only the machine itself or its own network knows (RFC 6761, 6762 and 8375), beside those without a dot.
INTERNAL_NAMES = ("localhost", "local", "internal", "intranet", "private", "corp", "home", "lan", "home.arpa")
INTERNAL_ADDRESS = "processed_image_url is an internal address, which nobody else can reach"


class ProcessedImages:
    """What becomes of processed images."""

    def __init__(self, settings: Settings, inspect: Inspect | None = None) -> None:
        """inspect: looks at the bytes of a picture; without it they are taken as they are."""
        self._inspect = inspect
        # Who reaches the service at an internal address reaches what is there, and its AI service may be beside it.
        own_hosts = (urlsplit(url).hostname for url in (settings.public_url, settings.ai_service_url))
        self._own_hosts = {host for host in own_hosts if host}

    async def without_refused(self, plugin: BoundPlugin, method: str, analysis: Analysis) -> Analysis:
        """Return the analysis with its picture, without it when that is not taken: logged and counted as an error of
        the plugin.
        """
        try:
            return await self.checked(analysis)
        except ValueError as error:
            plugin.count_error(method)
            log.warning("processed_image_refused", plugin=plugin.name, reason=str(error))
            return replace(analysis, processed_image=None, processed_image_url=None)

    async def checked(self, analysis: Analysis) -> Analysis:
        """Return the analysis, its picture under the content type that the bytes say; ValueError says what is wrong."""
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
    take for one. A name is not looked up.
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
