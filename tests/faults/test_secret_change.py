"""JWT_SECRET is changed while two processes serve: no user is logged out, and tokens, URLs and tickets stay valid."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from tests.factories import SECRET, make_image, make_token
from tests.service import AiService, Service

NEW = "Zq3vT8yLw1Nc6Jd4,Hf9Kb2Rm7Xs5Gp0A"


def restart(service: Service, **environment: str) -> None:
    """Restart the service with these additional settings."""
    service.stop()
    service.environment |= environment
    service.start()


def status(service: Service, token: str, path: str = "/api/assets") -> int:
    return httpx.get(service.url + path, headers={"Authorization": f"Bearer {token}"}).status_code


@pytest.mark.fault("O18")
def test_secret_change_logs_no_user_out(tmp_path: Path, redis_url: str, ai_service: AiService) -> None:
    """Each process accepts old tokens until its old secret is removed, and new ones once it has the new secret."""
    shared = {"REDIS_URL": redis_url, "QUEUE_PREFIX": "secret", "MEDIA_URL_SECONDS": "3600"}
    old, new = make_token("ann"), make_token("ann", secret=NEW)
    one = Service(tmp_path / "data", ai_service.url, **shared)
    with one, Service(tmp_path / "data", ai_service.url, **shared) as other:
        # What clients have from before the change.
        photo, key = make_image(), {"Idempotency-Key": "once"}
        asset_id = one.upload("ann", image=photo, headers=key).json()["data"]["assetId"]
        one.upload("ann")
        image = httpx.URL(one.asset(asset_id, "ann")["images"]["original"]["url"]).raw_path.decode()
        cursor = one.get("/api/assets", "ann", limit=1).json()["data"]["nextCursor"]

        (tmp_path / "old").write_text(f"{SECRET}\n")
        restart(one, JWT_SECRET=NEW, JWT_SECRETS_OLD_FILE=str(tmp_path / "old"))
        assert [status(each, old) for each in (one, other)] == [200, 200]
        assert [status(each, new) for each in (one, other)] == [200, 401]
        one.wait_log("old_secret_used", number=1)

        made = httpx.post(one.url + "/api/events/ticket", headers={"Authorization": f"Bearer {old}"}).json()["data"]
        restart(other, JWT_SECRET=NEW, JWT_SECRETS_OLD=SECRET)
        with httpx.stream("GET", f"{other.url}/api/events?ticket={made['ticket']}") as stream:
            assert stream.status_code == 200
        for each in (one, other):
            assert [status(each, token) for token in (old, new)] == [200, 200]
            assert httpx.get(each.url + image).status_code == 200
            assert status(each, new, f"/api/assets?limit=1&cursor={cursor}") == 200
            assert each.upload("ann", image=photo, headers=key).json()["data"]["assetId"] == asset_id

        restart(other, JWT_SECRETS_OLD="")
        assert [status(other, token) for token in (old, new)] == [401, 200]
        assert httpx.get(other.url + image).status_code == 200
