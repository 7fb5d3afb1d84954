"""Rows of the SQLite store's table `assets`, and assets: the one from the other. Pure.

Instants are whole milliseconds since 1970; images, metadata and lists are JSON texts.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from pipeline.assets.asset import AiMetadata, Asset
from pipeline.assets.asset_parts import ai_metadata_document
from pipeline.errors import NotStorable
from pipeline.instants import instant_of, milliseconds_of

MAX_INTEGER_BITS = 63
CREATED_AS_JSON = ("attempts", "provenance", "corrections", "history", "claims")
COLUMNS = (
    *("id", "userId", "category", "status", "original", "processed", "previews", "processingJobId", "fence", "excused"),
    *("aiMetadata", "attempts", "provenance", "corrections", "history", "claims", "finishedAt", "createdAt"),
    *("updatedAt", "originalGone", "failure", "schema"),
)


def asset_of(row: sqlite3.Row) -> Asset:
    meta = json.loads(row["aiMetadata"])
    document = dict(row) | {
        "_id": row["id"],
        "images": {
            "original": json.loads(row["original"]),
            **{name: from_json(row[name]) for name in ("processed", "previews")},
        },
        **{name: from_json(row[name]) for name in CREATED_AS_JSON},
        "aiMetadata": meta | {"processedAt": optional_instant(meta["processedAt"])},
        "finishedAt": optional_instant(row["finishedAt"]),
        "createdAt": optional_instant(row["createdAt"]),
        "updatedAt": optional_instant(row["updatedAt"]),
    }
    return Asset.from_document(document)


def row_of(asset: Asset) -> dict[str, Any]:
    """Return the values of the columns, by their names."""
    document = asset.to_document()
    return document | {
        "id": asset.id,
        **{role: json_text(image) for role, image in document["images"].items()},
        **{name: json_text(document[name]) for name in CREATED_AS_JSON},
        "aiMetadata": metadata_json(asset.ai_metadata),
        **{name: optional_milliseconds(document[name]) for name in ("finishedAt", "createdAt", "updatedAt")},
    }


def from_json(text: str | None) -> Any:
    return json.loads(text) if text else None


def metadata_json(meta: AiMetadata) -> str | None:
    return json_text(ai_metadata_document(meta) | {"processedAt": optional_milliseconds(meta.processed_at)})


def json_text(value: Mapping[str, Any] | Sequence[Any] | None) -> str | None:
    if value is None:
        return None
    try:
        _check_integers(value)
        # Not escaped: half a surrogate pair is refused when it is bound, as in every other text.
        return json.dumps(value, ensure_ascii=False)
    except TypeError as error:
        raise NotStorable("a value is of no type it knows") from error


def _check_integers(value: Any) -> None:
    if isinstance(value, int) and value.bit_length() > MAX_INTEGER_BITS:
        raise NotStorable("a number is too large")
    for inner in value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ():
        _check_integers(inner)


def optional_milliseconds(instant: datetime | None) -> int | None:
    return milliseconds_of(instant) if instant is not None else None


def optional_instant(milliseconds: int | None) -> datetime | None:
    return instant_of(milliseconds) if milliseconds is not None else None
