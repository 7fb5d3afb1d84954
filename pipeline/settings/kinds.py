"""The types of settings: words that a setting may have, lists and maps written with commas, names of categories."""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated

from pydantic_settings import NoDecode


class Role(StrEnum):
    """What this process does: answers HTTP and sockets, runs the jobs, or both."""

    ALL = "all"
    WEB = "web"
    WORKER = "worker"


class Fairness(StrEnum):
    """Which job is next: the oldest of all (none), or the oldest of the next user, one user after the other (user)."""

    NONE = "none"
    USER = "user"


class MongoDriver(StrEnum):
    """The driver of MongoDB: PyMongo itself, or Motor, which is at its end of life."""

    PYMONGO = "pymongo"
    MOTOR = "motor"


class LogFormat(StrEnum):
    """`auto` is colours on a terminal and JSON lines everywhere else."""

    AUTO = "auto"
    JSON = "json"
    CONSOLE = "console"


CommaList = Annotated[tuple[str, ...], NoDecode]
CategoryMap = Annotated[Mapping[str, tuple[str, ...]], NoDecode]
# The specification's four. Only the default of CATEGORIES: all other code asks the settings.
DEFAULT_CATEGORIES = ("sneaker", "lego", "camera", "other")
CATEGORY = re.compile(r"[a-z0-9_-]{1,40}")
# The storages that need CLOUDINARY_URL, the default one first.
CLOUDINARY = ("cloudinary_private", "cloudinary")


def split(text: str, separator: str = ",") -> tuple[str, ...]:
    """Return the parts of a list, without blanks around them and without empty ones."""
    return tuple(part.strip() for part in text.split(separator) if part.strip())
