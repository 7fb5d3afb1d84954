"""The lines of docs/client-guide.md for a browser, run on the front page in a real Chromium."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chromium import BROWSER, browsing
from tests.factories import make_token
from tests.requirements import require
from tests.service import AiService, Service

GUIDE = (Path(__file__).parents[2] / "docs/client-guide.md").read_text()


@pytest.fixture
def service(tmp_path: Path, ai_service: AiService) -> Iterator[Service]:
    require(BROWSER is not None, "needs Chromium")
    with Service(tmp_path, ai_service.url) as service:
        yield service


@pytest.mark.fault("R18")
@pytest.mark.gen_test(timeout=60)
async def test_browser_gets_the_event_by_the_guide(service: Service) -> None:
    """The guide's lines, run in the console of the front page, get the event of an upload from that page."""
    (snippet,) = [text for text in re.findall(r"```js\n(.*?)```", GUIDE, re.DOTALL) if "new WebSocket" in text]
    snippet = snippet.replace("127.0.0.1:8080", service.url.removeprefix("http://"))
    script = f"""
      new Promise((resolve, reject) => {{
        const token = {json.dumps(make_token())};
        const console = {{ log: (assetId, status, found) => resolve({{ assetId, status, found }}) }};
        {snippet}
        socket.onclose = ({{ code, reason }}) => reject(new Error(code + reason));
        socket.onopen = async () => {{
          const picture = await (await fetch("{{image}}")).blob();
          const form = new FormData();
          form.append("image", picture, "photo.png");
          form.append("category", "lego");
          const headers = {{ Authorization: "Bearer " + token }};
          const reply = await fetch("/api/assets/analyze-queue", {{ method: "POST", body: form, headers }});
          if (reply.status !== 202) reject(new Error(await reply.text()));
        }};
      }})"""
    drawn = "await new Promise(done => document.createElement('canvas').toBlob(done))"
    script = script.replace('await (await fetch("{image}")).blob()', drawn)
    async with browsing(f"{service.url}/") as page:
        event = await page.evaluate(script)
    assert event["status"] == "active" == service.asset(event["assetId"])["status"]
    assert event["found"]["brand"]["value"] == "Nike"
