"""The routes of assets at the HTTP border: pages, filters, parameters, owners and tokens."""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from pipeline.assets.asset import Asset, AssetStatus, ImageRef
from pipeline.errors import Conflict, NotFound
from tests.integration.border_stand_ins import ASSET_ID, RECEIPT
from tests.integration.http_border import Border, border, error, settings

__all__ = ["border", "settings"]  # fixtures


def make_asset(number: int, **changes: Any) -> Asset:
    instant = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=number // 2)
    original = ImageRef("memory", "1/original", "https://img.example/1", "0" * 64, 10, 4, 3, "image/png")
    values: dict[str, Any] = {
        "id": f"{number:024x}",
        "user_id": "user-1",
        "category": "lego",
        "status": AssetStatus.ACTIVE,
        "original": original,
        "processing_job_id": f"ai-processing:{number:024x}",
        "created_at": instant,
        "updated_at": instant - timedelta(days=number),
        "finished_at": instant,
    }
    return Asset(**values | changes)


@pytest.mark.parametrize(("query", "is_newest_first"), [("", True), ("finishedSince=2026-01-01T00:00:02Z&", False)])
def test_assets_pages_have_each_asset_once(border: Border, query: str, is_newest_first: bool) -> None:
    """Following nextCursor gives every asset once, in order, also when two assets have the same instant."""
    border.store.assets = [make_asset(number) for number in range(25)] + [make_asset(99, user_id="user-2")]
    seen, cursor = [], ""
    while True:
        data = border.call("GET", f"/api/assets?{query}limit=10{cursor}").json["data"]
        seen += [int(item["id"], 16) for item in data["items"]]
        if data["nextCursor"] is None:
            break
        cursor = f"&cursor={data['nextCursor']}"

    assert seen == (list(range(24, -1, -1)) if is_newest_first else list(range(4, 25)))


def test_assets_filters_reach_the_store(border: Border) -> None:
    """Status and category narrow the list."""
    border.store.assets = [make_asset(1), make_asset(2, status=AssetStatus.FAILED), make_asset(3, category="camera")]
    answer = border.call("GET", "/api/assets?status=active&category=lego")
    assert [item["id"] for item in answer.json["data"]["items"]] == [f"{1:024x}"]


def test_assets_faults_are_all_named(border: Border) -> None:
    """Every bad parameter is named in one reply."""
    answer = border.call("GET", "/api/assets?status=done&category=shoe&limit=101&cursor=!&finishedSince=yesterday")
    assert answer.status == 400
    names = [detail["field"] for detail in answer.json["error"]["details"]]
    assert names == ["status", "category", "limit", "cursor", "finishedSince"]


def encode(text: bytes) -> str:
    return base64.urlsafe_b64encode(text).decode()


START = encode(b"1." + b"0" * 24)
FAR_FUTURE = encode(b"9" * 15 + b"." + b"0" * 24)
BAD_VALUES = [
    *(("limit", value) for value in ("0", "-1", "1.5", "", "1e2", "\u0661")),
    *(("cursor", value) for value in ("", "AAAA", "!" + START, FAR_FUTURE, "%00", "a%20b", "AA==")),
    *(("finishedSince", value) for value in ("2026-01-01", "2026-01-01T00:00:00", "0001-01-01T00:00:00%2B14:00", "5")),
]


@pytest.mark.parametrize(("name", "value"), BAD_VALUES)
def test_assets_bad_parameter_is_a_400(border: Border, name: str, value: str) -> None:
    """A parameter that cannot be parsed is refused, never guessed."""
    answer = border.call("GET", "/api/assets?" + http_quote(name, value))
    assert answer.status == 400
    assert [detail["field"] for detail in answer.json["error"]["details"]] == [name]


def http_quote(name: str, value: str) -> str:
    return f"{name}=" + "".join(char if char.isascii() else "%D9%A1" for char in value)


def test_assets_finished_since_takes_the_date_of_a_reply(border: Border) -> None:
    """The Date header of an upload's reply is a valid finishedSince without changes."""
    border.store.assets = [make_asset(1)]
    date = "Wed,%2031%20Dec%202025%2023:59:59%20GMT"
    assert len(border.call("GET", f"/api/assets?finishedSince={date}").json["data"]["items"]) == 1


def test_asset_is_shown_to_its_owner_only(border: Border) -> None:
    """The owner gets the asset; any other user gets a 404."""
    border.store.assets = [make_asset(1), make_asset(2, user_id="user-2")]
    own, other = (border.call("GET", f"/api/assets/{number:024x}") for number in (1, 2))
    assert (own.status, own.json["data"]) == (200, make_asset(1).to_json({}))
    assert (other.status, other.json) == (404, error("NOT_FOUND", "Asset not found"))


def test_asset_delete_and_retry_act_for_the_caller(border: Border) -> None:
    """Delete answers 204, retry 202 with the new job; both pass the user on."""
    deleted = border.call("DELETE", f"/api/assets/{ASSET_ID.upper()}")
    retried = border.call("POST", f"/api/assets/{ASSET_ID}/retry", headers={"X-Request-Id": "r1"})

    assert (deleted.status, deleted.body) == (204, b"")
    assert (retried.status, retried.json["data"]["jobId"]) == (202, RECEIPT.job_id)
    assert border.submission.calls == [("delete", ASSET_ID, "user-1"), ("retry", ASSET_ID, "user-1", "r1")]


@pytest.mark.parametrize(
    ("raised", "status"), [(NotFound("Asset not found"), 404), (Conflict("Only failed assets can be retried"), 409)]
)
def test_asset_retry_passes_refusals_on(border: Border, raised: Any, status: int) -> None:
    """A refusal of submission is answered with its own code and text."""
    border.submission.error = raised
    answer = border.call("POST", f"/api/assets/{ASSET_ID}/retry")
    assert (answer.status, answer.json) == (status, error(raised.code, raised.message))


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/api/assets/xyz"), ("DELETE", "/api/assets/1"), ("POST", "/api/assets/%00/retry")]
)
def test_asset_malformed_id_is_a_400(border: Border, method: str, path: str) -> None:
    """A malformed id is a 400 on the field id."""
    answer = border.call(method, path)
    assert (answer.status, answer.json["error"]["details"][0]["field"]) == (400, "id")


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/api/assets"), ("GET", f"/api/assets/{ASSET_ID}"), ("POST", f"/api/assets/{ASSET_ID}/retry")],
)
def test_asset_routes_need_a_token(border: Border, method: str, path: str) -> None:
    """No route of assets answers an unauthenticated client."""
    assert border.call(method, path, headers={"Authorization": ""}).status == 401
