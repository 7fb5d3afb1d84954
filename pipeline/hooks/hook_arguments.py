"""The arguments of filters and observers: an upload before it is accepted, and an event of a job. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class UploadFacts:
    """An upload before it is accepted. The image is as it will be stored: without metadata.

    category: one of CATEGORIES.
    size_bytes: of the image.
    width, height: of the image, in pixels.
    read: returns the image's bytes, up to MAX_UPLOAD_BYTES; it reads a file, so only a plain `def` should call it.
    """

    user_id: str
    category: str
    content_type: str
    size_bytes: int
    width: int
    height: int
    read: Callable[[], bytes]


@dataclass(frozen=True, slots=True)
class JobEvent:
    """Something that happened to a job.

    at: when, UTC.
    attempt: from 1, 0 before the first.
    outcome: completed | failed | cancelled, only in job_finished.
    error: why an attempt or the job failed, in the words that its owner sees, else "".
    delay_ms: until the next attempt.
    seconds: how long the attempt took, 0 before its end.
    """

    job_id: str
    asset_id: str
    user_id: str
    category: str
    request_id: str
    at: datetime
    attempt: int = 0
    outcome: str = ""
    error: str = ""
    delay_ms: int = 0
    seconds: float = 0.0
