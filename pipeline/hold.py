"""A provider that is not asked for now, as plugins, queue and processes tell each other. Pure."""

from __future__ import annotations

from typing import NamedTuple


class Hold(NamedTuple):
    """Keeps everybody from asking one provider or durable notifier.

    left_seconds: for how long; 0 in a change ends the hold. wait_seconds: how far single jobs that try the provider are
    apart, because it could not be asked; 0 where it said itself how long it is busy. reason: why, for the owner of a
    photo; cause: the same for operators, type and text of the error.
    """

    provider: str
    left_seconds: float
    wait_seconds: float = 0
    reason: str = ""
    cause: str = ""
