"""Plugins that are not ready at the start of the service, and the parts that the service gives to a plugin.

The service is real; its provider, storage, notifier and filter are plugins of one file each.
"""

from __future__ import annotations

import io
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.constants import BREAKER_PROBE_SECONDS
from tests.contract.contracts import check_reply
from tests.pictures import encode, gradient
from tests.service import WAIT_SECONDS, AiService, Service

HEAD = '''
from pathlib import Path

from pipeline.errors import PermanentJobError
from pipeline.hooks import Analysis, Attribute, NotReady, Usage, hookimpl

API_VERSION = 2


def wait_for(name, context):
    """A gate that the test opens."""
    if not (context.settings.data_dir / name).exists():
        raise NotReady(f"{name} is closed", retry_after_seconds=1)
'''

PLUGINS = {
    "sample_ai": '''
class SampleProvider:
    categories = ("sneaker",)
    needs_image = True
    image_formats = ("jpeg", "png")
    max_in_flight = 4
    extra_fields = {"format": {"type": "string"}, "starts": {"type": "integer"}, "side": {"type": "integer"}}

    async def start(self, context):
        wait_for("gate-sample_ai", context)
        self.context = context
        self.asked = context.counter("asked", "How often it was asked.", "format")
        starts = (await context.store.get("starts") or 0) + 1
        await context.store.put("starts", starts)
        self.starts = starts
        async with context.http.get(context.settings.ai_service_url + "/_calls") as reply:
            assert reply.status == 200 and reply.request_info.headers["User-Agent"].startswith("ai-queue-pipeline/")
        context.task(self.note(), "note")

    async def note(self):
        (self.context.data_dir / "note").write_text("written by a task")

    async def analyze(self, request):
        kind = {b"\\x89P": "png", b"\\xff\\xd8": "jpeg"}.get(request.image[:2], "?")
        assert request.content_type == f"image/{kind}", request.content_type
        self.asked.inc(format=kind)
        extra = {"format": kind, "starts": self.starts, "side": "no number", "stray": 1}
        usage = Usage(1200, 34, 0.0042, "EUR")
        return Analysis(
            brand=Attribute("Nike", 0.9), model=Attribute("501", 0.4), extra=extra, usage=usage,
            ai_model="sample-model-1", prompt_version="7", confidence_kind="self_reported",
        )

    def check(self):
        return False


@hookimpl
def register_ai_providers(settings):
    yield "sample_ai", SampleProvider
''',
    "sample_storage": '''
class SampleStorage:
    def start(self, context):
        wait_for("gate-sample_storage", context)
        self.folder = context.data_dir

    def path(self, public_id):
        return self.folder / public_id.replace("/", "_")

    def save(self, public_id, file, content_type):
        self.path(public_id).write_bytes(file.read())
        return f"https://images.example/{public_id}"

    def open(self, public_id):
        return self.path(public_id).open("rb")

    def delete(self, public_id):
        self.path(public_id).unlink(missing_ok=True)

    def check(self):
        self.folder.stat()


@hookimpl
def register_storage_backends(settings):
    yield "sample_storage", SampleStorage
''',
    "sample_notifier": '''
import json


class SampleNotifier:
    durable = True

    async def start(self, context):
        wait_for("gate-sample_notifier", context)
        self.folder = context.data_dir

    async def notify(self, notification):
        with (self.folder / "delivered").open("a") as file:
            print(json.dumps({"asset": notification.event["assetId"]}), file=file)


@hookimpl
def register_notifiers(settings):
    yield "sample_notifier", SampleNotifier
''',
    "sample_filter": '''
def start(context):
    wait_for("gate-sample_filter", context)


@hookimpl
def validate_upload(upload):
    pass
''',
}
GATES = ("gate-sample_storage", "gate-sample_filter", "gate-sample_ai", "gate-sample_notifier")


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    """A service whose plugins are not ready; the AI service analyzes the category lego."""
    folder = tmp_path / "one-file"
    folder.mkdir()
    for name, source in PLUGINS.items():
        (folder / f"{name}.py").write_text(HEAD + source)
    own = {
        "PLUGINS_DIR": str(folder),
        "AI_PROVIDER": "http",
        "AI_PROVIDER_BY_CATEGORY": "sneaker=sample_ai,lego=sample_ai+http",
        "STORAGE_BACKEND": "sample_storage",
        "NOTIFIERS": "websocket,sample_notifier",
        "FILTERS_REQUIRED": "sample_filter",
        BREAKER_PROBE_SECONDS: "1",
        "CATEGORIES": "sneaker,lego",
    }
    with AiService() as ai_service, Service(tmp_path / "data", ai_service.url, **own) as service:
        yield service


def until(ask: Callable[[], Any]) -> Any:
    """Repeat the call until its result is true, and return it: a held plugin is tried about once a second."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not (answer := ask()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return answer


def open_gate(service: Service, name: str) -> None:
    """Make the plugin that waits for this gate ready."""
    (service.data_dir / name).touch()


def accepted(service: Service, **upload: Any) -> dict[str, Any]:
    """Return the data of the reply once an upload is accepted."""
    reply = until(lambda: (given := service.upload(**upload)).status_code == 202 and given)
    data: dict[str, Any] = reply.json()["data"]
    return data


@pytest.mark.fault("P1")
@pytest.mark.fault("P4")
def test_plugins_that_are_not_ready_hold_their_work_until_they_start(service: Service, tmp_path: Path) -> None:
    """Uploads are refused while the storage or the required filter is not ready; jobs and deliveries wait.

    The wait spends no attempt. Later all parts that the service gives to a plugin work, also after a restart.
    """
    states = {each["name"]: each for each in service.get("/readyz", verbose="").json()["data"]["plugins"]}
    for name in PLUGINS:
        assert states[name]["state"] == "held" and f"gate-{name} is closed" in states[name]["reason"]
    assert "storage" in service.get("/readyz").json()["error"]["message"]
    _check_refusals(service)
    asset_id = accepted(service)["assetId"]
    service.wait_log("provider_failed", plugin="sample_ai")
    open_gate(service, "gate-sample_ai")
    asset = until(lambda: (shown := service.asset(asset_id))["status"] == "active" and shown)
    _check_result(service, asset)
    _check_formats_and_categories(service)
    delivered = service.data_dir / "plugins/sample_notifier/delivered"
    assert not delivered.exists()
    open_gate(service, "gate-sample_notifier")
    until(lambda: delivered.exists() and len(delivered.read_text().splitlines()) == 3)
    assert asset_id in delivered.read_text()
    assert (service.data_dir / "plugins/sample_ai/note").read_text() == "written by a task"
    assert stat.S_IMODE((service.data_dir / "plugins/sample_ai").stat().st_mode) == 0o700
    states = {each["name"]: each for each in service.get("/readyz", verbose="").json()["data"]["plugins"]}
    assert (states["sample_ai"]["state"], states["sample_ai"]["reason"]) == ("failing", "check returned False")
    assert states["sample_filter"]["state"] == "ok"
    service.stop()
    service.start()
    after_restart = accepted(service)["assetId"]
    asset = until(lambda: (shown := service.asset(after_restart))["status"] == "active" and shown)
    assert asset["aiMetadata"]["extra"]["starts"] == 2, "the stored number is still there"


def _check_refusals(service: Service) -> None:
    """Check that uploads are refused, first because of the filter and then because of the storage."""
    for gate, next_refusal in (("gate-sample_filter", "Image storage unavailable"), ("gate-sample_storage", None)):
        refused = service.upload()
        assert refused.status_code == 503 and int(refused.headers["Retry-After"]) >= 1
        if gate == "gate-sample_filter":
            assert "cannot be checked" in refused.json()["error"]["message"]
        open_gate(service, gate)
        if next_refusal is not None:
            until(lambda: next_refusal in service.upload().json()["error"]["message"])


def _check_result(service: Service, asset: dict[str, Any]) -> None:
    """Check the attempts, the extra fields and the provenance of the first asset."""
    reply = service.get(f"/api/assets/{asset['id']}")
    check_reply("GET", f"/api/assets/{asset['id']}", 200, reply.json(), reply.headers)
    asked = [each["attempt"] for each in asset["attempts"]]
    assert len(asked) > 1 and set(asked) == {1}, "the wait for the provider spent no attempt"
    assert asset["aiMetadata"]["extra"] == {"format": "jpeg", "starts": 1}
    refused = service.wait_log("extra_refused", plugin="sample_ai")["reason"]
    assert "'stray' is none of its extra_fields" in refused and "'side'" in refused
    provenance = asset["provenance"]
    names = ("provider", "model", "promptVersion", "confidenceKind", "usage")
    assert {name: provenance[name] for name in names} == {
        **{"provider": "sample_ai", "model": "sample-model-1", "promptVersion": "7", "confidenceKind": "self_reported"},
        "usage": {"inputTokens": 1200, "outputTokens": 34, "cost": 0.0042, "currency": "EUR"},
    }


def _check_formats_and_categories(service: Service) -> None:
    """Check that a photo is converted for the provider, and that each category has its own provider."""
    heic = encode(gradient((64, 48)), "HEIF")
    assert Image.open(io.BytesIO(heic)).format == "HEIF"
    sneaker = accepted(service, image=heic)["assetId"]
    lego = accepted(service, category="lego")["assetId"]
    asset = until(lambda: (shown := service.asset(sneaker))["status"] == "active" and shown)
    assert asset["aiMetadata"]["extra"]["format"] == "jpeg", "the photo was converted for the provider"
    asset = until(lambda: (shown := service.asset(lego))["status"] == "active" and shown)
    assert asset["provenance"]["provider"] == "http", "the first provider has no such category"
    metrics = service.get("/metrics").text
    assert 'pipeline_plugin_sample_ai_asked_total{format="jpeg"} 2.0' in metrics
