"""Texts from outside: removed control characters, masked secrets, and the text of an error's cause."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from typing import Any

import aiohttp
import pytest
import redis.asyncio
import redis.exceptions

from pipeline.errors import DependencyUnavailable, RetryableJobError
from pipeline.texts import MAX_CAUSE_LENGTH, cause_of, clean, mask

ESC = "\x1b"


@pytest.mark.fault("P11")
@pytest.mark.parametrize(
    ("text", "expected", "remark"),
    [
        ("Air Max 90", "Air Max 90", "a text that stays unchanged"),
        ("Schöne Größe 靴 👟 שלום", "Schöne Größe 靴 👟 שלום", "other scripts are no control characters"),
        (f"{ESC}[31mred{ESC}[0m", "red", "colours"),
        (f"{ESC}[2J{ESC}[H{ESC}[?25lgone", "gone", "clearing the screen, moving and hiding the cursor"),
        (f"{ESC}[38;2;255;0;0;1 qx", "x", "with parameters and intermediates"),
        (f"{ESC}]0;owned\x07title", "title", "the window's title"),
        (f"{ESC}]0;owned{ESC}\\title", "title", "the same with the other end"),
        (f"{ESC}]8;;https://evil.example{ESC}\\link{ESC}]8;;{ESC}\\", "link", "a link under another text"),
        (f"{ESC}]52;c;cm0gLXJm\x07clip", "clip", "the clipboard"),
        (f"{ESC}P$q\"p{ESC}\\dcs", "dcs", "a device control string"),
        (f"{ESC}c{ESC}7{ESC}(0reset", "reset", "commands of one letter"),
        ("\x9b31mred \x9d0;owned\x9cx", "red x", "the 8-bit forms"),
        (f"{ESC}]0;never ended", "0;never ended", "a command without an end is text without its beginning"),
        (ESC, "", "an escape character alone"),
        ("a\x00b\x08c\x7fd\x0e", "abcd", "control characters"),
        ("over\rwritten", "over written", "a carriage return would overwrite the first half"),
        ("one\ntwo\r\nthree\n\nfour\tfive", "one two three four five", "one line"),
        ("one\x0btwo\x0cthree\x85four\u2028five\u2029six", "one two three four five six", "all line breaks"),
        ("exe\u202egpj.doc", "exegpj.doc", "an override of the direction"),
        ("\u2066a\u2069 \u200eb\u200f \u061cc", "a b c", "isolates and marks"),
        ("half \ud83d of one", "half ? of one", "no database accepts half a surrogate pair"),
        ("pair 😀", "pair 😀", "a pair is one character"),
        ("", "", ""),
    ],
)
def test_clean_leaves_only_readable_text(text: str, expected: str, remark: str) -> None:
    """A clean text controls no terminal, breaks no line, changes no direction and can be encoded."""
    cleaned = clean(text)
    assert cleaned == expected, remark
    cleaned.encode()
    assert clean(cleaned) == cleaned


@pytest.mark.parametrize("unit", [ESC, f"{ESC}]", f"{ESC}[", f"{ESC}P", "\x9d", "\u202e", "\ud800", f"{ESC}[0;0"])
def test_clean_is_fast_for_hostile_texts(unit: str) -> None:
    """A megabyte of unfinished commands is cleaned in linear time: no part of the text is read many times."""
    text = unit * (1_000_000 // len(unit))
    started = time.process_time()
    clean(text)
    assert time.process_time() - started < 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("redis://:hidden@redis:6379/0 is unavailable", "redis://:***@redis:6379/0 is unavailable"),
        ("rediss://app:hidden@a:1,b:2", "rediss://app:***@a:1,b:2"),
        ("https://u:hid:den@ai.example/a?token=hidden&x=1", "https://u:***@ai.example/a?token=***&x=1"),
        ("Authorization: Bearer abcdefghijkl", "Authorization: Bearer ***"),
        ("api_key=hidden, model=x", "api_key=***, model=x"),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln", "eyJ***"),
        ("http://ai.example:8080/analyze", "http://ai.example:8080/analyze"),
        ("no secret here", "no secret here"),
    ],
)
def test_mask_hides_texts_that_look_like_a_secret(text: str, expected: str) -> None:
    """mask hides secrets and leaves the rest of the text, which an operator needs. test_logs.py has more rows."""
    assert mask(text) == expected


def caused(error: Any, cause: BaseException) -> Any:
    """Return the error with this cause."""
    error.__cause__ = cause
    return error


class Silent(Exception):
    """An exception whose text raises an error."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


class Falsy(Exception):
    """An exception that is false in a condition."""

    def __bool__(self) -> bool:
        return False


@pytest.mark.fault("E26")
@pytest.mark.parametrize(
    ("error", "expected", "remark"),
    [
        (ValueError("a bug"), "ValueError: a bug", "the text of the error itself"),
        (caused(RetryableJobError("No"), OSError(5, "a disk")), "OSError: [Errno 5] a disk", "the text of the cause"),
        (TimeoutError(), "TimeoutError", "only the type, if there is no text"),
        (caused(RetryableJobError("No"), TimeoutError()), "TimeoutError", "also for a cause without a text"),
        (
            caused(RetryableJobError("No"), caused(TimeoutError(), ConnectionResetError("cut"))),
            "ConnectionResetError: cut",
            "the cause of a cause without a text",
        ),
        (
            caused(RetryableJobError("No"), caused(TimeoutError(), asyncio.CancelledError())),
            "TimeoutError",
            "the form in which asyncio raises a timeout",
        ),
        (caused(TimeoutError(), asyncio.CancelledError()), "TimeoutError", "also without another error"),
        (KeyError("brand"), "KeyError: 'brand'", ""),
        (ValueError("one\n\n  two\tthree  "), "ValueError: one two three", "one line"),
        (ValueError("\x1b[31mred\x07 \u202e\ud800"), "ValueError: red ?", "clean"),
        (OSError("mongodb://app:hidden@db closed"), "OSError: mongodb://app:***@db closed", "masked"),
        (Silent(), "Silent", "a class of a plugin may raise in __str__"),
        (caused(RetryableJobError("No"), Falsy("x")), "Falsy: x", "a class of a plugin may be false"),
        (redis.exceptions.AuthenticationError("invalid username-password pair or user is disabled."),
         "AuthenticationError: invalid username-password pair or user is disabled.", "redis-py's repr has no text"),
        (ssl.SSLCertVerificationError(1, "[SSL: CERTIFICATE_VERIFY_FAILED] self-signed certificate"),
         "SSLCertVerificationError: [SSL: CERTIFICATE_VERIFY_FAILED] self-signed certificate", ""),
    ],
    ids=lambda each: repr(each)[:40] if not isinstance(each, str) else each[:30],
)  # fmt: skip
def test_cause_is_type_and_text(error: Exception, expected: str, remark: str) -> None:
    """The cause is one line with the type and the text of the error, which may be shown to an operator."""
    assert cause_of(error) == expected, remark


def test_cause_has_a_bounded_length() -> None:
    """The length is bounded for long texts and for a circle of errors; a secret is masked before the text is cut."""
    assert len(cause_of(ValueError("x" * 50_000_000))) == MAX_CAUSE_LENGTH
    secret = " redis://u:hidden" + "y" * 200 + "@host"
    assert "hidden" not in cause_of(ValueError("x" * (MAX_CAUSE_LENGTH - 30) + secret))
    one, other = Silent(), Silent()
    one.__cause__, other.__cause__ = other, one
    assert cause_of(one) == "Silent"


async def failure_of(url: str) -> Exception:
    """Return the error of a Redis with this address, as the queue raises it."""
    client = redis.asyncio.Redis.from_url(url, socket_connect_timeout=2)
    try:
        await client.ping()
    except redis.exceptions.RedisError as error:
        return caused(DependencyUnavailable("The queue cannot be reached"), error)
    finally:
        await client.aclose()
    raise AssertionError("Redis replied")


@pytest.mark.fault("E26")
@pytest.mark.gen_test(timeout=20)
async def test_causes_of_an_unreachable_redis_differ(redis_url: str) -> None:
    """For a wrong port, name or password the cause names the fault and the address."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        refused = cause_of(await failure_of(f"redis://:hidden@{address}/0"))
    unknown = cause_of(await failure_of("redis://unknown.invalid:6379/0"))
    password = cause_of(await failure_of(redis_url.replace("redis://", "redis://app:hidden@")))
    assert refused.startswith("ConnectionError: Error 111") and address in refused
    assert unknown.startswith("ConnectionError: Error -") and "unknown.invalid:6379" in unknown
    assert password.startswith("AuthenticationError: ") and "invalid" in password.lower()
    assert "hidden" not in refused + unknown + password


@pytest.mark.fault("E26")
@pytest.mark.gen_test
async def test_causes_of_an_unreachable_ai_service_differ() -> None:
    """The causes of aiohttp differ for a refused connection, for plain HTTP on an https port and for a timeout."""
    causes = []
    with socket.create_server(("127.0.0.1", 0)) as silent, socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        plain = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
        ports = unused.getsockname()[1], plain.sockets[0].getsockname()[1], silent.getsockname()[1]
        for scheme, port in zip(("http", "https", "http"), ports, strict=True):
            async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=0.5)) as session:
                try:
                    await session.get(f"{scheme}://127.0.0.1:{port}/analyze?token=hidden")
                except (aiohttp.ClientError, TimeoutError) as error:
                    causes.append(cause_of(caused(RetryableJobError("AI service unavailable"), error)))
        plain.close()
    assert causes[0].startswith(f"ClientConnectorError: Cannot connect to host 127.0.0.1:{ports[0]}")
    assert f"127.0.0.1:{ports[1]} ssl:" in causes[1]
    assert "Timeout" in causes[2] and len(set(causes)) == 3
    assert "hidden" not in "".join(causes)
