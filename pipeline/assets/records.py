"""What both stores do with records. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from pipeline.assets.reading import Reader
from pipeline.assets.store import Record


def record_reader(read: Callable[[Any], Record], id_name: str) -> Reader[Record]:
    """Return the Reader of records. read, id_name: see Reader."""
    return Reader(read, id_name, what="record")


def as_data(text: str) -> Mapping[str, Any]:
    """Return the object in the text; ValueError or TypeError when it is damaged."""
    data = json.loads(text)
    if not isinstance(data, dict):
        raise TypeError(f"a {type(data).__name__} where a dict should be")
    return data


def damaged(kind: str, id: str, row: Any) -> Record:
    """Return the readable fields of a damaged record, so that it is removed with the user whom it concerns."""
    return Record(kind, id, datetime.fromtimestamp(0, UTC), {}, row["userId"], row["assetId"])
