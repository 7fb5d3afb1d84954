"""What a check finds, and how it is told without secrets. Pure."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from typing import Any
from urllib.parse import unquote

from pydantic import BaseModel, SecretStr

from pipeline.errors import PipelineError, plugin_error_text
from pipeline.texts import MASK, clean, mask

LIMIT_SECONDS = 10.0
REASON_LENGTH = 300
# Users as our own documents call them and Redis its first one: no secrets, but words of nearly every finding.
KNOWN_USERS = ("pipeline", "default")


class Mark(StrEnum):
    """How a check ended; only `failed` makes the command fail."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found. mend: what to change, "" when nothing has to be."""

    mark: Mark
    what: str
    detail: str
    remedy: str = ""

    @property
    def line(self) -> str:
        """All of it but the mark, in one line."""
        return f"{self.what}: {self.detail}" + (f"; {self.remedy}" if self.remedy else "")

    def as_json(self) -> dict[str, Any]:
        """Return it for programs."""
        found = asdict(self)
        # The name that the lines have had since version 0.1.
        found["mend"] = found.pop("remedy")
        return found


@dataclass(frozen=True, slots=True)
class Check:
    """One thing to try. run: yields findings, and raises when the thing does not work; mend: what to change then."""

    what: str
    run: Callable[[], AsyncIterator[Finding]]
    remedy: str
    seconds: float = LIMIT_SECONDS


class Masker:
    """Takes secrets out of what is printed: what looks like one, and each one that the settings hold."""

    def __init__(self, settings: BaseModel) -> None:
        self._secrets: set[str] = set()
        self.learn(settings)

    def learn(self, settings: BaseModel) -> None:
        """Mask the secrets of these settings as well, whole and, of an address, its user and password."""
        for value in (getattr(settings, name) for name in type(settings).model_fields):
            if isinstance(value, SecretStr) and (secret := value.get_secret_value()):
                if "://" not in secret or _userinfo(secret) or "?" in secret:
                    # An address alone is no secret, and says where to look.
                    self._secrets |= {secret, *filter(None, secret.split("\n"))}
                user, _, password = _userinfo(secret).partition(":")
                hidden = (password,) if user in KNOWN_USERS else (user, password)
                self._secrets |= {part for text in hidden for part in (text, unquote(text)) if len(part) > 3}

    def masked(self, finding: Finding) -> Finding:
        """Return the finding without secrets, and without what steers a terminal."""
        return Finding(finding.mark, *(self._mask(getattr(finding, each.name)) for each in fields(finding)[1:]))

    def _mask(self, text: str) -> str:
        text = clean(text)
        for secret in sorted(self._secrets, key=len, reverse=True):
            text = text.replace(secret, MASK)
        return mask(text)


def reason(error: BaseException) -> str:
    """Return why it failed, in one line: the error and, when that hides it, its cause."""
    texts = [error.message if isinstance(error, PipelineError) else plugin_error_text(error)]
    if isinstance(error, PipelineError) and (cause := error.__cause__) is not None:
        text = str(cause)
        # One without a text, such as TimeoutError, says what it is by its name.
        if not text or text not in texts[0]:
            texts.append(f"{type(cause).__name__}: {text}")
    return " ".join("; ".join(texts).split())[:REASON_LENGTH].rstrip(": ")


def shown_address(url: str) -> str:
    """Return the address without user, password and query."""
    return re.sub(r"://\S*@", "://", url).partition("?")[0]


def _userinfo(url: str) -> str:
    found = re.search(r"://(\S*)@", url)
    return found[1] if found else ""
