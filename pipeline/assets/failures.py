"""The kind of a failure: a fingerprint of its reason, without the parts that differ from job to job. Pure."""

from __future__ import annotations

import hashlib
import re

FINGERPRINT = re.compile(r"[0-9a-f]{12}")
# The text beyond says nothing about the kind, and a reason may be of any length.
READ_AT_MOST = 500
# In this order: a URL holds a host, a host may hold numbers.
VARYING = (
    re.compile(r"\"[^\"]*\"|'[^']*'|`[^`]*`|“[^”]*”|«[^»]*»"),
    re.compile(r"\b[a-z][a-z0-9+.-]{0,20}://\S+", re.IGNORECASE),
    re.compile(r"\[[0-9a-f:.]+\](?::\d+)?", re.IGNORECASE),
    # A host: at least one dot between letters or digits, with a port or without.
    re.compile(r"\b[a-z0-9_-]+(?:\.[a-z0-9_-]+)+(?::\d+)?", re.IGNORECASE),
    re.compile(r"\b(?=[a-z0-9_-]*\d)[a-z0-9_-]{8,}\b", re.IGNORECASE),
    re.compile(r"\d+"),
)
SPACES = re.compile(r"\s+")


def fingerprint(reason: str | None) -> str:
    """Return 12 hex digits, the same for reasons that differ only in numbers, ids, hosts and quoted texts.

    Stored documents hold it: a change of this function needs a pass over all failed ones.
    """
    kind = (reason or "Unknown")[:READ_AT_MOST].casefold()
    for varying in VARYING:
        kind = varying.sub("*", kind)
    # A text with half a surrogate pair has a fingerprint too.
    text = SPACES.sub(" ", kind).strip().encode(errors="replace")
    return hashlib.sha256(text).hexdigest()[:12]
