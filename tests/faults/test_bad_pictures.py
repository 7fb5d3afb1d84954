"""A provider returns processed images that are no pictures: its results are saved without them."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from tests.factories import make_image
from tests.packages import install
from tests.service import AiService, Service

PAINTER = '''
from io import BytesIO

from PIL import Image

from pipeline.hooks import Analysis, Attribute, ProcessedImage, hookimpl

PNG = BytesIO()
Image.new("RGB", (20, 10)).save(PNG, "PNG")
MADE = {
    "text": {"processed_image": ProcessedImage(b"hello", "image/png")},
    "svg": {"processed_image": ProcessedImage(b"<svg/>", "image/svg+xml")},
    "large": {"processed_image": ProcessedImage(PNG.getvalue() + bytes(60_000_000), "image/png")},
    "script": {"processed_image_url": "javascript:alert(1)"},
    "metadata": {"processed_image_url": "http://169.254.169.254/latest/meta-data"},
    "lie": {"processed_image": ProcessedImage(PNG.getvalue(), "image/webp")},
}


class Painter:
    def analyze(self, request):
        sure = Attribute("Nike", 0.9)
        return Analysis(sure, sure, sure, **MADE[request.category])


@hookimpl
def register_ai_providers(settings):
    yield "painter", Painter
'''
REFUSED = ("text", "svg", "large", "script", "metadata")


@pytest.mark.fault("U19")
def test_asset_gets_its_result_without_the_invalid_picture(tmp_path: Path, ai_service: AiService) -> None:
    """Each job ends at its first attempt; the plugin is named in the log and its errors are counted."""
    packages = install(tmp_path / "packages", painter=PAINTER)
    settings = packages | {"AI_PROVIDER": "painter", "CATEGORIES": ",".join((*REFUSED, "lie"))}
    with Service(tmp_path / "data", ai_service.url, **settings) as service:
        for number, category in enumerate((*REFUSED, "lie")):
            reply = service.upload(category=category, image=make_image(seed=number))
            asset_id = reply.json()["data"]["assetId"]
            asset = service.get(f"/api/assets/{asset_id}", wait=30).json()["data"]
            assert (asset["status"], asset["aiMetadata"]["brand"]["value"]) == ("active", "Nike")
            if category == "lie":
                url = asset["images"]["processed"]["url"]
                picture = httpx.get(url, headers=service.headers())
                assert picture.headers["Content-Type"] == "image/png", url
            else:
                assert asset["images"]["processed"] is None
        refused = [line for line in service.lines if line["event"] == "processed_image_refused"]
        assert [line["plugin"] for line in refused] == ["painter"] * len(REFUSED)
        assert all(line["reason"] for line in refused)
        counted = 'pipeline_plugin_errors_total{kind="provider",method="analyze",plugin="painter"} 5.0'
        assert counted in httpx.get(f"{service.url}/metrics").text
