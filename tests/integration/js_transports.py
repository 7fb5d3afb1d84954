"""Scripts of the JavaScript client for tests of its transports: uploads, received events, and the transport in use."""

from __future__ import annotations

import json
from typing import Any

from tests.factories import make_image, make_token
from tests.integration.js_scripts import start_script
from tests.scripts import Script, photo

STAYS = {"connectMs": 1000, "climbMs": 600_000}


def start_signed_in(url: str, token: str | None = None, **options: Any) -> str:
    """Return a script that starts a client with a valid token and does not wait for its promise.

    token: a JavaScript expression to use instead.
    """
    return start_script(url, token or json.dumps(make_token()), **options)


async def upload_photos(script: Script, count: int) -> list[str]:
    """Upload photos through the client and return the ids of their assets."""
    uploading = f"client.upload({photo(make_image())}, {{ category: 'lego' }})"
    code = f"const ids = []; for (let i = 0; i < {count}; i++) ids.push((await {uploading}).assetId); return ids"
    ids: list[str] = await script.run(code)
    return ids


async def wait_for_transport(script: Script, transport: str) -> None:
    """Return once the client uses the transport."""
    await script.run(f"while (client.transport !== '{transport}') await new Promise((done) => setTimeout(done, 20))")


async def received_ids(script: Script, count: int) -> list[str]:
    """Return the asset ids of all events once there are `count` events."""
    await script.received("asset_processed", count)
    return [event["assetId"] for event in await script.all("asset_processed")]


def refused_sockets(url: str, **options: Any) -> str:
    """Return a script that starts a client whose WebSockets all fail; each failure is recorded as "refused"."""
    broken = "class { constructor() { say('refused'); setTimeout(() => this.onclose?.({ code: 1006 })); } close() {} }"
    given = json.dumps({"url": url, "token": "a-token", "times": STAYS} | options)
    return f"Math.random = () => 0; start({{ ...{given}, WebSocket: {broken} }});"
