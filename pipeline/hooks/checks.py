"""Checks that an Analysis keeps the contract: the results of plugins are not trusted. Pure."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from urllib.parse import urlsplit

from pipeline.hooks.extra import clean_extra
from pipeline.hooks.provider_protocol import CONFIDENCE_KINDS, Analysis, Attribute, ProcessedImage, Usage
from pipeline.texts import HALVES, clean

MAX_VALUE_LENGTH = 1000
MAX_URL_LENGTH = 4096
MAX_NAME_LENGTH = 200
MAX_TOKENS = 2**53
CURRENCY = re.compile("[A-Z]{3}")
# Nearly all URLs match this; urlsplit takes ten times as long.
PLAIN_URL = re.compile(r"https?://[a-zA-Z0-9-]+(\.[a-zA-Z0-9-]+)*(:([0-9]{1,4}|[1-5][0-9]{4}))?(/[a-zA-Z0-9._~/-]*)?")


def find_fault(analysis: object) -> str | None:
    """Return the fault of a provider's result, in words for its author, or None when it is valid."""
    if (fault := result_fault(analysis)) or not isinstance(analysis, Analysis):
        return fault
    return picture_fault(analysis) or provenance_fault(analysis) or extra_fault(analysis.extra)


def result_fault(analysis: object, method: str = "analyze") -> str | None:
    """Return the fault of a result's type and attributes, None when they are valid.

    method: the method that returned it.
    """
    if not isinstance(analysis, Analysis):
        return f"{method} returned {type(analysis).__name__}, not Analysis"
    for name in ("brand", "model", "colorway"):
        attribute = getattr(analysis, name)
        if attribute is None and name == "colorway":
            continue
        if fault := attribute_fault(attribute):
            return f"{name} {fault}"
    return None


def picture_fault(analysis: Analysis) -> str | None:
    """Return the fault of a result's processed image, without a look at its bytes."""
    if analysis.processed_image_url is not None and analysis.processed_image is not None:
        return "processed_image_url and processed_image are both set"
    if analysis.processed_image_url is not None and not is_web_url(analysis.processed_image_url):
        return "processed_image_url is not an http(s) URL"
    if analysis.processed_image is not None and not _is_image(analysis.processed_image):
        return "processed_image is not a ProcessedImage with bytes and an image content type"
    return None


def provenance_fault(analysis: Analysis) -> str | None:
    """Return the fault of a result's provenance: ai_model, prompt_version, confidence_kind and usage."""
    for name in ("ai_model", "prompt_version"):
        text = getattr(analysis, name)
        if not isinstance(text, str) or len(text) > MAX_NAME_LENGTH or HALVES.search(text):
            return f"{name} is not a text of at most {MAX_NAME_LENGTH} characters"
    if analysis.confidence_kind not in CONFIDENCE_KINDS:
        return f"confidence_kind is not one of {', '.join(CONFIDENCE_KINDS)}"
    return usage_fault(analysis.usage) if analysis.usage is not None else None


def usage_fault(usage: object) -> str | None:
    """Return the fault of the usage of an analysis."""
    if not isinstance(usage, Usage):
        return f"usage is {type(usage).__name__}, not Usage"
    for name in ("input_tokens", "output_tokens"):
        tokens = getattr(usage, name)
        if tokens is not None and (type(tokens) is not int or not 0 <= tokens < MAX_TOKENS):
            return f"usage.{name} is not a number from 0"
    cost = usage.cost
    if cost is not None and (isinstance(cost, bool) or not isinstance(cost, (int, float)) or not 0 <= cost < 1e12):
        return "usage.cost is not a number from 0"
    if not isinstance(usage.currency, str) or not CURRENCY.fullmatch(usage.currency):
        return "usage.currency is not three capital letters"
    return None


def cleaned(analysis: Analysis) -> Analysis:
    """Return a valid analysis without terminal escapes and control characters in its texts."""
    brand, model, colorway = (
        attribute and replace(attribute, value=clean(attribute.value).strip())
        for attribute in (analysis.brand, analysis.model, analysis.colorway)
    )
    assert brand is not None and model is not None
    return replace(
        analysis,
        brand=brand,
        model=model,
        colorway=colorway,
        extra=clean_extra(analysis.extra),
        is_cached=False,
        ai_model=clean(analysis.ai_model).strip(),
        prompt_version=clean(analysis.prompt_version).strip(),
    )


def extra_fault(extra: object) -> str | None:
    """Return the fault of the `extra` of a result."""
    try:
        clean_extra(extra)
    except ValueError as error:
        return str(error)
    return None


def is_web_url(url: object) -> bool:
    """True for an absolute http or https URL of reasonable length, without a user or a password."""
    if not isinstance(url, str) or len(url) > MAX_URL_LENGTH or not url.isprintable():
        return False
    if PLAIN_URL.fullmatch(url):
        return True
    # A browser reads a backslash as a slash, and then another part of the URL as the host.
    if " " in url or "\\" in url:
        return False
    try:
        parts = urlsplit(url)
        # Reading the port checks it. Port 0: a command beside a service that chooses its own port.
        is_complete = bool(parts.hostname) and "@" not in parts.netloc and (parts.port or 0) >= 0
        return parts.scheme in ("http", "https") and is_complete
    except ValueError:
        return False


def attribute_fault(attribute: object) -> str | None:
    """Return the fault of one attribute, in words that follow its name, or None."""
    if not isinstance(attribute, Attribute):
        return f"is {type(attribute).__name__}, not Attribute"
    if not isinstance(attribute.value, str) or len(attribute.value) > MAX_VALUE_LENGTH:
        return f"has a value that is not a text of at most {MAX_VALUE_LENGTH} characters"
    try:
        attribute.value.encode()
    except UnicodeEncodeError:
        return "has a value that is not valid Unicode"
    confidence = attribute.confidence
    if isinstance(confidence, bool) or not isinstance(confidence, (int, float)) or not math.isfinite(confidence):
        return "has a confidence that is not a number"
    return None if 0 <= confidence <= 1 else f"has a confidence of {confidence:g}, not 0 to 1"


def _is_image(image: object) -> bool:
    return (
        isinstance(image, ProcessedImage)
        and isinstance(image.content, bytes)
        and isinstance(image.content_type, str)
        and image.content_type.startswith("image/")
    )
