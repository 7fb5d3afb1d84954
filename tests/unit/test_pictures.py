"""Processed images that plugins return: which ones the service accepts, and what it makes of the others."""

from __future__ import annotations

import asyncio
import io
import struct
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, cast

import pytest
from structlog.testing import capture_logs

from pipeline.errors import DependencyUnavailable
from pipeline.hooks import Analysis, ProcessedImage, storage_calls
from pipeline.hooks.bound_plugin import BoundPlugin
from pipeline.hooks.processed_images import ProcessedImages, is_internal
from pipeline.hooks.storage_calls import StorageCalls
from pipeline.metrics import Metrics
from pipeline.settings import Settings
from pipeline.tracing import OFF
from pipeline.usecases.cleaning import PictureCheck
from tests.factories import make_image
from tests.fake_plugins import make_analysis

pytestmark = pytest.mark.fault("U19")

SETTINGS = Settings(public_url="https://photos.example", ai_service_url="http://10.0.0.7", max_upload_bytes=1_000_000)
SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'


def png(width: int, height: int, rows: int) -> bytes:
    """Return a PNG with this size in its header, whose data decompresses to this number of rows."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes((3 * width + 1) * rows), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.fixture
def metrics() -> Metrics:
    """Metrics of one test."""
    return Metrics()


@pytest.fixture
def plugin(metrics: Metrics) -> BoundPlugin:
    """A provider whose results are checked."""
    return BoundPlugin("provider", "acme", object(), {"analyze": lambda: None}, threads=1, metrics=metrics)


@pytest.fixture
def pictures() -> Iterator[ProcessedImages]:
    """Processed images that are checked as in the service."""
    with ThreadPoolExecutor(1) as pool:
        yield ProcessedImages(SETTINGS, PictureCheck(SETTINGS, pool))


def errors(metrics: Metrics) -> float:
    """Return the number of counted errors of the plugin."""
    labels = {"kind": "provider", "plugin": "acme", "method": "analyze"}
    return metrics.registry.get_sample_value("pipeline_plugin_errors_total", labels) or 0


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no image": ({"processed_image": ProcessedImage(b"hello", "image/png")}, "Must be an image"),
    "empty": ({"processed_image": ProcessedImage(b"", "image/png")}, "Must be an image"),
    "SVG": ({"processed_image": ProcessedImage(SVG, "image/svg+xml")}, "Must be an image"),
    "TIFF": ({"processed_image": ProcessedImage(make_image("TIFF"), "image/png")}, "Must be an image"),
    "too large": ({"processed_image": ProcessedImage(bytes(1_000_001), "image/png")}, "1000001 bytes, more than"),
    "huge sides": ({"processed_image": ProcessedImage(png(60_000, 60_000, 1), "image/png")}, "processed_image: "),
    "bomb": ({"processed_image": ProcessedImage(png(20_000, 15_000, 10), "image/png")}, "processed_image: "),
    "no bytes": ({"processed_image": ProcessedImage(cast(bytes, "hello"), "image/png")}, "not a ProcessedImage with"),
    "no type": ({"processed_image": ProcessedImage(make_image(), "text/html")}, "an image content type"),
    "another type": ({"processed_image": b"hello"}, "not a ProcessedImage"),
    "script": ({"processed_image_url": "javascript:alert(1)"}, "not an http"),
    "path": ({"processed_image_url": "/etc/passwd"}, "not an http"),
    "file": ({"processed_image_url": "file:///etc/passwd"}, "not an http"),
    "data": ({"processed_image_url": "data:image/png;base64,AAAA"}, "not an http"),
    "no text": ({"processed_image_url": 7}, "not an http"),
    "metadata service": ({"processed_image_url": "http://169.254.169.254/latest"}, "internal address"),
    "loopback": ({"processed_image_url": "http://localhost:6379/x"}, "internal address"),
    "neighbour": ({"processed_image_url": "http://10.0.0.8/x"}, "internal address"),
    "container": ({"processed_image_url": "http://redis:6379/x"}, "internal address"),
    "backslash": ({"processed_image_url": "http://127.0.0.1\\@a.example/x"}, "not an http"),
    "password": ({"processed_image_url": "https://user:word@a.example/x"}, "not an http"),
    "no port": ({"processed_image_url": "https://a.example:99999/x"}, "not an http"),
    "too long": ({"processed_image_url": f"https://a.example/{'x' * 4096}"}, "not an http"),
    "two lines": ({"processed_image_url": "https://a.example/x\r\nHost: b"}, "not an http"),
    "both": (
        {"processed_image_url": "https://a.example/x", "processed_image": ProcessedImage(make_image(), "image/jpeg")},
        "both set",
    ),
}


@pytest.mark.parametrize(("fields", "reason"), REFUSED.values(), ids=list(REFUSED))
@pytest.mark.gen_test
async def test_invalid_picture_is_left_out_of_the_result(
    pictures: ProcessedImages, plugin: BoundPlugin, metrics: Metrics, fields: dict[str, Any], reason: str
) -> None:
    """The result is used without the picture; log and metric name the plugin, and the log has the reason."""
    analysis = replace(make_analysis("Nike"), **fields)
    with capture_logs() as logs:
        checked = await pictures.without_refused(plugin, "analyze", analysis)
    assert checked == replace(analysis, processed_image=None, processed_image_url=None)
    (line,) = [each for each in logs if each["event"] == "processed_image_refused"]
    assert line["plugin"] == "acme" and reason in line["reason"]
    assert errors(metrics) == 1


@pytest.mark.parametrize(
    ("format", "content_type"),
    [
        ("JPEG", "image/jpeg"),
        ("PNG", "image/png"),
        ("WEBP", "image/webp"),
        ("GIF", "image/gif"),
        ("AVIF", "image/avif"),
        ("HEIF", "image/heic"),
    ],
)
@pytest.mark.gen_test
async def test_content_type_is_determined_by_the_bytes(
    pictures: ProcessedImages, plugin: BoundPlugin, metrics: Metrics, format: str, content_type: str
) -> None:
    """The bytes determine the content type; the content type that the plugin returns is ignored."""
    image = make_image(format)
    analysis = Analysis(processed_image=ProcessedImage(image, "image/x-lie"))
    checked = await pictures.without_refused(plugin, "analyze", analysis)
    assert checked.processed_image == ProcessedImage(image, content_type)
    assert errors(metrics) == 0


@pytest.mark.parametrize("url", ["https://cdn.example/x.png", "http://10.0.0.7/x.png", "https://photos.example/x"])
@pytest.mark.gen_test
async def test_public_url_is_accepted(pictures: ProcessedImages, plugin: BoundPlugin, url: str) -> None:
    """A public URL is accepted, and also one with the host of the AI service, even if this host is internal."""
    analysis = await pictures.without_refused(plugin, "analyze", Analysis(processed_image_url=url))
    assert analysis.processed_image_url == url


@pytest.mark.parametrize(
    "host",
    [
        *("localhost", "a.localhost", "LOCALHOST.", "printer.local", "db.internal", "redis", "nas.lan", "x.home.arpa"),
        *("127.0.0.1", "127.1", "2130706433", "0x7f000001", "0177.0.0.1"),
        *("①②⑦.0.0.1", "127.0.0%2e1", "127。0。0。1"),
        *("10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0"),
        *("::1", "fe80::1%eth0", "fd00::1", "::ffff:127.0.0.1", "::ffff:a00:1", "2002:7f00:1::"),
    ],
)
def test_internal_hosts_are_recognised(host: str) -> None:
    """An internal host is recognised in each spelling that browsers accept."""
    assert is_internal(host)


@pytest.mark.parametrize(
    "host", ["example.com", "8.8.8.8", "2606:4700::1111", "local.example", "10.example.com", "lan.example", ""]
)
def test_public_hosts_are_not_internal(host: str) -> None:
    """A public host is not internal; its name is not looked up."""
    assert not is_internal(host)


class Endless(io.RawIOBase):
    """A file without an end."""

    def read(self, size: int = -1) -> bytes:
        """Return this number of zeros."""
        return bytes(size)


@pytest.mark.parametrize(
    ("opened", "cause"),
    [
        (b"bytes", "open returned bytes, not a file"),
        (None, "open returned NoneType, not a file"),
        (io.StringIO("text"), "gives str, not bytes"),
        (Endless(), "more than 20000000 bytes"),
    ],
    ids=["bytes", "None", "text", "endless"],
)
@pytest.mark.gen_test
async def test_invalid_file_of_a_storage_makes_it_unavailable(
    metrics: Metrics, monkeypatch: pytest.MonkeyPatch, opened: object, cause: str
) -> None:
    """If `open` of a storage plugin returns no file of bytes, or a file without an end, the storage is unavailable."""
    monkeypatch.setattr(storage_calls, "READ_AT_MOST_BYTES", 20_000_000)
    bound = BoundPlugin("storage", "odd", object(), {"open": lambda public_id: opened}, threads=1, metrics=metrics)
    odd = StorageCalls(bound, 30, OFF)
    with pytest.raises(DependencyUnavailable) as caught:
        await asyncio.wait_for(odd.read("a/original"), 60)
    assert cause in str(caught.value.__cause__)
    labels = {"kind": "storage", "plugin": "odd", "method": "open"}
    assert metrics.registry.get_sample_value("pipeline_plugin_errors_total", labels) == 1
