"""Which secrets are too weak to sign tokens with, and how many may be in force.

Pure: the settings ask it, and `health` imports the settings.
"""

from __future__ import annotations

# While secrets or keys change there are two of them. Each costs a little for every token that is made up.
KEYS_AT_MOST = 5
LEAST_SECRET_BYTES = 32  # RFC 7518, section 3.2
LEAST_CHARACTERS = 8  # 32 random digits have fewer once in a thousand times, anything else that is random never


def secret_fault(secret: str) -> str:
    """Return why this is no secret for tokens, "" when it may be one. It finds only what is obviously wrong."""
    if "-BEGIN " in secret:
        return "is a PEM key: those go to JWT_PUBLIC_KEY"
    if len(secret.strip().encode(errors="replace")) < LEAST_SECRET_BYTES:
        return f"must have at least {LEAST_SECRET_BYTES} bytes, without blanks at its ends"
    if "\n" in secret or "\r" in secret:
        # A login that signs with it may well have it without, and JWT_SECRETS_OLD could never name it.
        return "holds a line end, as `echo` writes one (`echo -n`: none); secrets of before go to JWT_SECRETS_OLD"
    size = len(secret)
    is_repeated = any(secret[unit:] == secret[:-unit] for unit in range(1, min(size // 2, LEAST_SECRET_BYTES - 1) + 1))
    steps = sum(abs(ord(one) - ord(next_)) <= 1 for one, next_ in zip(secret, secret[1:], strict=False))
    if is_repeated or steps > size * 0.6 or len(set(secret)) < LEAST_CHARACTERS:
        return "is too easy to guess: it repeats or counts; take a random one, as from `openssl rand -base64 32`"
    return ""
