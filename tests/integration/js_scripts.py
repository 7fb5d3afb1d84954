"""Scripts that start the JavaScript client, and the events that its tests send."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from pipeline.assets.asset import to_timestamp

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)
SINCE = to_timestamp(NOON)
in_node_and_chromium = pytest.mark.parametrize("kind", ["node", "chromium"])


def make_event(number: int, after_seconds: float = 0) -> dict[str, Any]:
    """Return an event whose assetId ends in the number.

    after_seconds: how long after noon it happened.
    """
    timestamp = to_timestamp(NOON + timedelta(seconds=after_seconds))
    common = {"event": "asset_processed", "assetId": f"{number:024x}", "timestamp": timestamp}
    return common | {"status": "failed", "error": "refused"}


def start_script(url: str, token: str = '"a-token"', **options: Any) -> str:
    """Return a script that starts a client and does not wait for its promise.

    token: a JavaScript expression.
    """
    given = json.dumps({"url": url} | options)
    return f"start({{ ...{given}, token: {token} }});"


FRESH = "() => `token-${(globalThis.asked = (globalThis.asked ?? 0) + 1)}`"
