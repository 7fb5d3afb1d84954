"""A provider that is not asked for now, as plugins, queue and processes tell each other. Pure."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple


class Hold(NamedTuple):
    """Keeps everybody from asking one provider or durable notifier.

    left_seconds: for how long. wait_seconds: how far single jobs that try the provider are apart, because it could not
    be asked; 0 where it said itself how long it is busy. reason: why, for the owner of a photo; cause: the same for
    operators, type and text of the error.
    """

    provider: str
    left_seconds: float
    wait_seconds: float = 0
    reason: str = ""
    cause: str = ""


class Found(StrEnum):
    """What one call has shown of a provider. TRIED: it was held, this call tried it, and it is still AWAY."""

    AWAY = "away"
    TRIED = "tried"
    BUSY = "busy"
    ANSWERED = "answered"


class Finding(NamedTuple):
    """What one process tells the others of a provider.

    seconds: of BUSY how long, of AWAY and TRIED the longest wait between two jobs that try it. reason, cause: see Hold.
    """

    provider: str
    found: Found
    seconds: float = 0
    reason: str = ""
    cause: str = ""
