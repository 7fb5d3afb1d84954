"""A program that uses the package `photos`, a client that openapi-python-client has generated: uploads, lists, polls.

Prints one JSON object. Usage: upload.py URL TOKEN PHOTO
"""

from __future__ import annotations

import json
import sys
from io import BytesIO
from pathlib import Path

from photos import AuthenticatedClient
from photos.api.assets import analyze_queue, get_asset, list_assets
from photos.models import AssetPageReply, AssetReply, Category, Error, ReceiptReply, Upload
from photos.types import File

url, token, photo = sys.argv[1:]
picture = Path(photo).read_bytes()


def upload(client: AuthenticatedClient, content: bytes) -> ReceiptReply | Error | None:
    file = File(payload=BytesIO(content), file_name="photo.jpg", mime_type="image/jpeg")
    form = Upload(image=file, category=Category.LEGO)
    return analyze_queue.sync(client=client, body=form, idempotency_key=str(len(content)))


with AuthenticatedClient(base_url=url, token=token) as client:
    refused = upload(client, b"no photo")
    assert isinstance(refused, Error)
    before = list_assets.sync(client=client)
    assert isinstance(before, AssetPageReply)
    accepted = upload(client, picture)
    assert isinstance(accepted, ReceiptReply)
    # A long poll: the assets that have finished since the first list.
    finished = list_assets.sync(client=client, finished_since=before.data.server_time, wait=20)
    assert isinstance(finished, AssetPageReply)
    asset = get_asset.sync(accepted.data.asset_id, client=client, wait=20)
    assert isinstance(asset, AssetReply) and asset.data.ai_metadata.brand
    result = {
        "code": refused.error.code,
        "assetId": accepted.data.asset_id,
        "listed": [each.id for each in finished.data.items],
        "status": asset.data.status,
        "brand": asset.data.ai_metadata.brand.value,
    }
print(json.dumps(result))
