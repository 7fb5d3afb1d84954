"""Cleans foreign texts, so that they can be stored, shown and logged. Pure: knows no error, log or setting.

A message of an AI service, of a plugin or of a server may contain terminal escapes, half a surrogate pair, which
databases refuse, or a password.
"""

from __future__ import annotations

import re

MASK = "***"
MAX_CAUSE_LENGTH = 300
# How much of an error's text is read, and how many errors of a chain.
MAX_TEXT_LENGTH = 10_000
MAX_CHAIN = 12
# Control characters, and characters that change the writing direction.
UNFIT = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
HALVES = re.compile(r"[\ud800-\udfff]")
# Terminal escape sequences: ESC and what belongs to it, or a character that stands for ESC and a letter.
ESCAPES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"
    r"|(?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f])[^\x07\x1b\x90\x98\x9c-\x9f]*(?:\x07|\x1b\\|\x9c)"
    r"|\x1b[ -/]*[0-~]"
)
BREAKS = re.compile(r"[\t\n\x0b\x0c\x85\u2028\u2029]+")
# Searched first, because SECRETS is slow and most lines contain none of these.
HINTS = ("://", "eyj", "bearer", "basic", "authorization", "password", "secret", "token", "key", "?", "&")
# Values end before quotes and backslashes, so that a masked JSON line stays JSON.
SECRETS = re.compile(
    r"(?P<url>://[^\s/:@\"'\\]*:)[^\s/\"'\\]+(?=@)"
    r"|(?P<user>://)[^\s/:@?#\"'\\]+:?(?=@)"  # a token often stands where a user does, without a password
    r"|(?P<query>[?&][\w.-]*(?:key|sig|signature|code|auth|credentials?|pass|pwd|token|secret)=)[^\s\"'\\&#]+"
    r"|(?P<jwt>(?-i:eyJ))[\w-]{8,}(?:\.[\w-]*){0,4}"
    r"|(?P<scheme>\b(?:bearer|basic)[ .])[\w.~+/=|-]{8,}"
    r"|(?P<name>(?:authorization|password|secret|token|api[_-]?key)\\?[\"']?\s*[:=]\s*\\?[\"']?)"
    r"(?!(?:bearer|basic) )[^\s\"'\\&,;)}]+",
    re.IGNORECASE,
)


def clean(text: str) -> str:
    """Return the text without terminal escapes and control characters; a line break is " ", half a surrogate "?"."""
    if text.isascii() and text.isprintable():
        return text
    text = ESCAPES.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))
    return HALVES.sub("?", UNFIT.sub("", BREAKS.sub(" ", text)))


def mask(text: str) -> str:
    """Return the text with MASK in place of everything that looks like a secret."""
    lowered = text.lower()
    if not any(hint in lowered for hint in HINTS):
        return text
    return SECRETS.sub(lambda matched: matched[matched.lastgroup or 0] + MASK, text)


def mask_address(text: str) -> str:
    """Return a setting's value with MASK for the user, the password and the query of every address in it.

    Stricter than `mask`: a reader of settings needs no rest by which to recognize the value.
    """
    return re.sub(r"\?\S+", "?" + MASK, re.sub(r"://\S*@", f"://{MASK}@", text)) if "://" in text else mask(text)


def cause_of(error: BaseException) -> str:
    """Return type and text of an error's cause, else of the error itself, in one masked line of bounded length.

    The cause is `__cause__`, or its own cause where it has no text. Not `repr`: that of redis-py has no text.
    """
    behind = _cause(error)
    first = cause = error if behind is None else behind
    for _ in range(MAX_CHAIN):
        behind = _cause(cause)
        if _text_of(cause) or behind is None:
            break
        cause = behind
    # If none of them has a text, the first type says the most.
    return line_of(cause if _text_of(cause) else first)


def line_of(error: BaseException) -> str:
    """Return type and text of the error itself, as `cause_of` does for its cause."""
    text = " ".join(clean(_text_of(error)).split())
    return mask(f"{type(error).__name__}: {text}" if text else type(error).__name__)[:MAX_CAUSE_LENGTH]


def _cause(error: BaseException) -> BaseException | None:
    # Only an Exception: the cause of asyncio's TimeoutError is just a CancelledError.
    return error.__cause__ if isinstance(error.__cause__, Exception) else None


def _text_of(error: BaseException) -> str:
    try:
        return str(error)[:MAX_TEXT_LENGTH]
    except Exception:  # a plugin's class may do anything here
        return ""
