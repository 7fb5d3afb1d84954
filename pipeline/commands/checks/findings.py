"""The findings of a check, and how they are printed without secrets. Pure."""

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
# User names of our documentation, and Redis' default user. They are no secrets: masking them would spoil most findings.
KNOWN_USERS = ("pipeline", "default")


class Mark(StrEnum):
    """How a check ended; only `failed` makes the command fail."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Finding:
    """One finding of a check.

    what: the subject of the check.
    remedy: what to change, "" when nothing must be changed.
    """

    mark: Mark
    what: str
    detail: str
    remedy: str = ""

    @property
    def line(self) -> str:
        """The finding without its mark, in one line."""
        return f"{self.what}: {self.detail}" + (f"; {self.remedy}" if self.remedy else "")

    def as_json(self) -> dict[str, Any]:
        """Return the finding as JSON data."""
        data = asdict(self)
        # The name of this key since version 0.1.
        data["mend"] = data.pop("remedy")
        return data


@dataclass(frozen=True, slots=True)
class Check:
    """One check.

    run: yields findings; raises when the thing that it checks does not work.
    remedy: what to change when it raises.
    """

    what: str
    run: Callable[[], AsyncIterator[Finding]]
    remedy: str
    seconds: float = LIMIT_SECONDS


class Masker:
    """Takes secrets out of printed texts: the secrets of the settings, and everything that looks like one."""

    def __init__(self, settings: BaseModel) -> None:
        self._secrets: set[str] = set()
        self.learn(settings)

    def learn(self, settings: BaseModel) -> None:
        """Mask the secrets of these settings too; of an address also its user and its password alone."""
        for value in (getattr(settings, name) for name in type(settings).model_fields):
            if isinstance(value, SecretStr) and (secret := value.get_secret_value()):
                if "://" not in secret or _userinfo(secret) or "?" in secret:
                    # An address without user and query is no secret, and helps to find the fault.
                    self._secrets |= {secret, *filter(None, secret.split("\n"))}
                user, _, password = _userinfo(secret).partition(":")
                hidden = (password,) if user in KNOWN_USERS else (user, password)
                self._secrets |= {part for text in hidden for part in (text, unquote(text)) if len(part) > 3}

    def masked(self, finding: Finding) -> Finding:
        """Return the finding without secrets and without control characters of terminals."""
        return Finding(finding.mark, *(self._mask(getattr(finding, each.name)) for each in fields(finding)[1:]))

    def _mask(self, text: str) -> str:
        text = clean(text)
        for secret in sorted(self._secrets, key=len, reverse=True):
            text = text.replace(secret, MASK)
        return mask(text)


def reason(error: BaseException) -> str:
    """Return in one line why something failed: the error and its cause."""
    texts = [error.message if isinstance(error, PipelineError) else plugin_error_text(error)]
    if isinstance(error, PipelineError) and (cause := error.__cause__) is not None:
        text = str(cause)
        # An error without a text, such as TimeoutError, has only its name.
        if not text or text not in texts[0]:
            texts.append(f"{type(cause).__name__}: {text}")
    return " ".join("; ".join(texts).split())[:REASON_LENGTH].rstrip(": ")


def shown_address(url: str) -> str:
    """Return the address without user, password and query."""
    return re.sub(r"://\S*@", "://", url).partition("?")[0]


def _userinfo(url: str) -> str:
    match = re.search(r"://(\S*)@", url)
    return match[1] if match else ""
