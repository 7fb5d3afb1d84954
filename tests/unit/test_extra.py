"""What else a provider has to say is kept as it is, when it is JSON of bounded size."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.assets.asset import AiMetadata, ai_metadata_document
from pipeline.hooks import Analysis
from pipeline.hooks.checks import cleaned, find_fault

UNKEEPABLE = "extra holds a name that is no text, an integer of more than 64 bits, or too many levels"
DEEP: list[Any] = []
for _ in range(5000):
    DEEP = [DEEP]


@pytest.mark.fault("U24")
def test_extra_is_cleaned_like_other_texts() -> None:
    """Terminal escapes and control characters are gone from names and texts, however deep; numbers stay."""
    analysis = Analysis(extra={"te\x1b[31mxt": ["AC\x00ME", {"size": 1.5, "is new": None}]})

    assert find_fault(analysis) is None
    assert cleaned(analysis).extra == {"text": ["ACME", {"size": 1.5, "is new": None}]}
    assert ai_metadata_document(AiMetadata(extra=cleaned(analysis).extra))["extra"] == cleaned(analysis).extra


@pytest.mark.fault("U24")
@pytest.mark.parametrize(
    ("extra", "fault"),
    [
        ([], "extra is list, not a mapping"),
        ({"text": "x" * 8192}, "extra has more than 8192 bytes"),
        ({"share": float("nan")}, "extra holds what JSON cannot"),
        ({"photo": b"bytes"}, "extra holds what JSON cannot"),
        ({"half": "\ud800"}, "extra holds what JSON cannot"),
        ({"deep": DEEP}, UNKEEPABLE),
        ({"names": {1: "one"}}, UNKEEPABLE),
        ({"large": 2**63}, UNKEEPABLE),
    ],
    ids=[
        *("no mapping", "too large", "no number", "bytes", "half a character", "too deep"),
        *("a number as a name", "large number"),
    ],
)
def test_extra_that_cannot_be_kept_is_the_providers_fault(extra: Any, fault: str) -> None:
    """What no store could keep is refused in words for the provider's author."""
    assert find_fault(Analysis(extra=extra)) == fault
