"""Fingerprints of failures: which reasons belong to the same kind, and the filter of the command `jobs`."""

from __future__ import annotations

import time

import click
import pytest

from pipeline.assets.failures import FINGERPRINT, fingerprint
from pipeline.commands.jobs import read_where


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("timed out after 90 s", "timed out after 5 s"),
        ("Timed  out", "timed out "),
        ("Host ai-1.example.com: refused", "Host 10.0.0.7:8080: refused"),
        ("cannot reach http://ai-1/x?y=1", "cannot reach https://[::1]:80/"),
        ("no asset 65b9f0a4c2d1e3f4a5b6c7d8", "no asset 00000000-0000-4000-8000-000000000000"),
        ('cannot read "a b.jpg"', "cannot read 'x'"),
        (None, "Unknown"),
        ("x" * 500 + "a", "x" * 500 + "b"),
    ],
)
def test_reasons_that_differ_in_names_and_numbers_are_of_one_kind(one: str | None, other: str) -> None:
    """Numbers, hosts, ids, quoted names, letter case, blanks and long ends do not change the fingerprint."""
    assert fingerprint(one) == fingerprint(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("timed out", "refused"),
        ("The disk is full", "The disk is fast"),
        ("answered with an error", "answered with a refusal"),
        ("", "x"),
        ("Cancelled", "Unknown"),
    ],
)
def test_reasons_of_other_words_are_of_other_kinds(one: str, other: str) -> None:
    """Reasons with different words have different fingerprints."""
    assert fingerprint(one) != fingerprint(other)


@pytest.mark.parametrize("reason", ["\ud83d", '"' * 100_000, "a." * 50_000, "[:" * 50_000, "1a-" * 50_000, "a" * 10**6])
def test_any_text_has_a_fingerprint_within_a_second(reason: str) -> None:
    """A reason comes from an AI service and may be any text, also one that makes regular expressions slow."""
    started_at = time.process_time()
    assert FINGERPRINT.fullmatch(fingerprint(reason))
    assert time.process_time() - started_at < 1


def test_where_is_split_into_filters() -> None:
    """A value with blanks has quotes; a part that is no filter is refused and not ignored."""
    assert read_where("") == read_where("   ") == {}
    assert read_where("""state=failed  q="timed out" user=a|b from=2026-01-31T00:00Z""") == {
        "state": "failed",
        "q": "timed out",
        "user": "a|b",
        "from": "2026-01-31T00:00Z",
    }
    for text in ("state", "state failed", "colour=red", "state=failed or", "=x", "state==failed x"):
        with pytest.raises(click.BadParameter):
            read_where(text)
