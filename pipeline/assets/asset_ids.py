"""Ids of assets, and the names of the images that are made for them. Pure."""

from __future__ import annotations

import re
import secrets

from pipeline.clock import utc_now
from pipeline.instants import milliseconds_of

ASSET_ID = re.compile(r"[0-9a-fA-F]{24}")
_last_id = 0


def new_asset_id() -> str:
    """Return a new id of 24 hex digits that sorts after every earlier one of this process.

    Laid out like an ObjectId's (4 bytes of seconds first), then 10 bits of milliseconds and 54 random bits, so ids of
    different processes sort by time too and none can be guessed.
    """
    global _last_id
    milliseconds = milliseconds_of(utc_now())
    candidate = (milliseconds // 1000) << 64 | (milliseconds % 1000) << 54 | secrets.randbits(54)
    _last_id = candidate if candidate > _last_id else _last_id + 1 + secrets.randbits(32)
    return f"{_last_id:024x}"


def created_at_ms(name: str) -> int:
    """Return when the id at the end of a name was made, in milliseconds since 1970; 0 for a name without an id."""
    digits = name[-24:]
    return int(digits[:8], 16) * 1000 + (int(digits[8:11], 16) >> 2) if ASSET_ID.fullmatch(digits) else 0


def processed_public_id(asset_id: str, fence: int) -> str:
    """Return the name of a run's processed image; each fence has its own, so a stale run overwrites nothing."""
    return f"{asset_id}/processed-{fence}"


def preview_public_id(asset_id: str, side: int) -> str:
    """Return the name of the preview of that long side. Each run makes the same preview of the same original.

    In a folder of its own: the sweeper of version 0.1 would remove `<asset_id>/<name>` as an image that no asset names,
    but it looks at nothing deeper.
    """
    return f"{asset_id}/preview/{side}"
