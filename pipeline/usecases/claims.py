"""What a token says of its user beyond the user id, as it is kept with an asset: for notifiers and for nobody else.

It is about a person: no answer, event, webhook or log line has it, and it goes with the asset.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import structlog

from pipeline.hooks.extra import clean_extra

MAX_BYTES = 2048
log = structlog.get_logger(__name__)


def kept_claims(claims: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of the claims that can be kept and have at most MAX_BYTES together, the first ones first."""
    kept: dict[str, Any] = {}
    for name, value in claims.items():
        try:
            with_it = kept | clean_extra({name: value})
        except ValueError:
            with_it = kept
        if with_it is kept or len(json.dumps(with_it, ensure_ascii=False).encode()) > MAX_BYTES:
            log.info("claim_left_out", claim=name)
        else:
            kept = with_it
    return kept
