"""Texts from outside, made fit to be stored, shown and logged. Pure: knows no error, log or setting of ours.

An AI service's message, a plugin's exception or a server's greeting may hold what steers a terminal, half a surrogate
pair, which no database takes, or a password.
"""

from __future__ import annotations

import re

MASK = "***"
MAX_CAUSE_LENGTH = 300
# What is looked at of an error's text, and how many errors one after the other.
MAX_TEXT_LENGTH = 10_000
MAX_CHAIN = 12
# Control characters, which begin a terminal's commands, and those that turn the direction of what follows.
UNFIT = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
HALVES = re.compile(r"[\ud800-\udfff]")
# A terminal's commands: ESC and what follows it, or one of the characters that stand for ESC and a letter.
ESCAPES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"
    r"|(?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f])[^\x07\x1b\x90\x98\x9c-\x9f]*(?:\x07|\x1b\\|\x9c)"
    r"|\x1b[ -/]*[0-~]"
)
BREAKS = re.compile(r"[\t\n\x0b\x0c\x85\u2028\u2029]+")
# Values end before quotes and backslashes, so a masked JSON line stays JSON.
# A search for these first: most lines hold none, and the expression below costs as much as the rest of the line.
HINTS = ("://", "eyj", "bearer", "basic", "authorization", "password", "secret", "token", "key", "?", "&")
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
    """Return the text without terminal escapes and control characters; line breaks are blanks, half surrogates "?"."""
    if text.isascii() and text.isprintable():
        return text
    text = ESCAPES.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))
    return HALVES.sub("?", UNFIT.sub("", BREAKS.sub(" ", text)))


def mask(text: str) -> str:
    """Return the text with MASK for whatever looks like a secret."""
    lowered = text.lower()
    if not any(hint in lowered for hint in HINTS):
        return text
    return SECRETS.sub(lambda found: found[found.lastgroup or 0] + MASK, text)


def mask_address(text: str) -> str:
    """Return a setting's text with MASK for the user, the password and the query of every address in it.

    Stricter than `mask`: who reads settings knows what stands there, so nothing need be left to recognize it by.
    """
    return re.sub(r"\?\S+", "?" + MASK, re.sub(r"://\S*@", f"://{MASK}@", text)) if "://" in text else mask(text)


def cause_of(error: BaseException) -> str:
    """Return type and text of what made the error, in one line: masked, clean and of bounded length.

    That is what it was raised from, and what that was raised from where it has no text of its own; else the error
    itself. Not `repr`: redis-py's has no text.
    """
    behind = _behind(error)
    first = told = error if behind is None else behind
    for _ in range(MAX_CHAIN):
        behind = _behind(told)
        if _text_of(told) or behind is None:
            break
        told = behind
    # Where none of them has a text the first says the most.
    return line_of(told if _text_of(told) else first)


def line_of(error: BaseException) -> str:
    """Return type and text of the error itself as `cause_of` does."""
    text = " ".join(clean(_text_of(error)).split())
    return mask(f"{type(error).__name__}: {text}" if text else type(error).__name__)[:MAX_CAUSE_LENGTH]


def _behind(error: BaseException) -> BaseException | None:
    # What is behind a timeout of asyncio's is only that something was cancelled.
    return error.__cause__ if isinstance(error.__cause__, Exception) else None


def _text_of(error: BaseException) -> str:
    try:
        return str(error)[:MAX_TEXT_LENGTH]
    except Exception:  # a plugin's class may do anything here
        return ""
