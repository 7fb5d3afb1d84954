"""Checks secrets that sign tokens: which are too weak, and how many may be valid at the same time.

Pure and light: the settings use it, and the command `health` imports the settings.
"""

from __future__ import annotations

# Two are enough while a secret or key is replaced. Each one makes every invalid token cost a little more.
KEYS_AT_MOST = 5
LEAST_SECRET_BYTES = 32  # RFC 7518, section 3.2
LEAST_CHARACTERS = 8  # of 32 random digits one in a thousand has fewer; other random texts never have


def secret_fault(secret: str) -> str:
    """Return why this cannot be a secret for tokens, "" when it can. Finds obvious faults only."""
    if "-BEGIN " in secret:
        return "is a PEM key: those go to JWT_PUBLIC_KEY"
    if len(secret.strip().encode(errors="replace")) < LEAST_SECRET_BYTES:
        return f"must have at least {LEAST_SECRET_BYTES} bytes, without blanks at its ends"
    if "\n" in secret or "\r" in secret:
        # A login service may have the same secret without the line end, and JWT_SECRETS_OLD cannot contain one.
        return "contains a line end, as `echo` writes one (`echo -n`: none); earlier secrets go to JWT_SECRETS_OLD"
    size = len(secret)
    is_repeated = any(secret[unit:] == secret[:-unit] for unit in range(1, min(size // 2, LEAST_SECRET_BYTES - 1) + 1))
    steps = sum(abs(ord(one) - ord(next_)) <= 1 for one, next_ in zip(secret, secret[1:], strict=False))
    if is_repeated or steps > size * 0.6 or len(set(secret)) < LEAST_CHARACTERS:
        return "is too easy to guess: it repeats or counts; take a random one, as from `openssl rand -base64 32`"
    return ""
