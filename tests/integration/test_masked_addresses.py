"""Credentials in the address of any setting: no command, log line or reply shows them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner, Result

import pipeline.logs
from pipeline.cli import main
from pipeline.commands import plugin_settings
from pipeline.settings import Settings
from pipeline.texts import mask, mask_address
from tests.service import Service
from tests.sockets import WAIT_SECONDS

HIDDEN = "hunter2secret"
SCHEMES = {"REDIS_URL": "redis", "MONGODB_URI": "mongodb", "CLOUDINARY_URL": "cloudinary", "PLUGIN_OBJECT_URL": "s3"}
NEEDS = {"PLUGIN_OBJECT_ENDPOINT": {"PLUGIN_OBJECT_URL": "s3://bucket"}, "JWT_JWKS_URL": {"JWT_SECRET": ""}}
SHAPES = {
    "password": "{scheme}://ann:" + HIDDEN + "@127.0.0.1:1/x",
    "user alone": "{scheme}://" + HIDDEN + "@127.0.0.1:1/x",
    "user and empty password": "{scheme}://" + HIDDEN + ":@127.0.0.1:1/x",
    "user that is the token": "{scheme}://" + HIDDEN + ":x-oauth-basic@127.0.0.1:1/x",
    "query": "{scheme}://127.0.0.1:1/x?sig=" + HIDDEN,
    "query of an odd name": "{scheme}://127.0.0.1:1/x?a=1&x=" + HIDDEN,
    "user, in a broken address": "{scheme}://ann:" + HIDDEN + "@127.0.0.1:port/x",
    "bare signs in the password": "{scheme}://ann:" + HIDDEN + "/?#@127.0.0.1:1/x",
}


def address_settings() -> Iterator[str]:
    """Yield the variable of each setting that is an address, also of the built-in plugins."""
    words = ("url", "urls", "uri", "endpoint", "origins")
    for name in Settings.model_fields:
        if name.split("_")[-1] in words:
            yield name.upper()
    for each in plugin_settings.built_in_settings():
        if each.variable.lower().split("_")[-1] in words:
            yield each.variable


VARIABLES = list(address_settings())


@pytest.fixture(autouse=True)
def unchanged_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands that run in this process do not change its log."""
    monkeypatch.setattr(pipeline.logs, "configure", lambda *_: None)


def run(data_dir: Path, *command: str, **variables: str) -> Result:
    clean: dict[str, str | None] = dict.fromkeys((name.upper() for name in Settings.model_fields), None)
    environment = clean | {"DATA_DIR": str(data_dir), "PORT": "0"} | variables
    return CliRunner().invoke(main, command, env=environment)


def test_all_address_settings_are_known() -> None:
    """The list has known settings, and each setting whose description has an address is on the list."""
    assert {"REDIS_URL", "AI_SERVICE_URL", "PUBLIC_URL", "JWT_JWKS_URL", "PLUGIN_OPENAI_BASE_URL"} <= set(VARIABLES)
    described = {name.upper() for name, field in Settings.model_fields.items() if "://" in (field.description or "")}
    described |= {each.variable for each in plugin_settings.built_in_settings() if "://" in each.why}
    assert described - {"PLUGIN_WEBHOOK_ALLOW_PRIVATE", "PLUGIN_WEBPUSH_ALLOW_PRIVATE"} <= set(VARIABLES)


@pytest.mark.fault("R17")
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("variable", VARIABLES)
def test_settings_show_no_credentials_of_an_address(tmp_path: Path, variable: str, shape: str) -> None:
    """The address is shown without its credentials, or refused without being quoted."""
    address = shape.format(scheme=SCHEMES.get(variable, "https"))
    result = run(tmp_path, "settings", **NEEDS.get(variable, {}) | {variable: address})
    assert result.exit_code in (0, 2) and variable in result.output
    assert HIDDEN not in result.output


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://ann:hidden@ai.example/a?k=hidden&b", "https://***@ai.example/a?***"),
        ("https://hidden@ai.example", "https://***@ai.example"),
        ("https://a.example,https://b.example", "https://a.example,https://b.example"),
        ("https://ai.example/a", "https://ai.example/a"),
        ("127.0.0.1", "127.0.0.1"),
        ("password=hidden", "password=***"),
        ("", ""),
    ],
)
def test_mask_address_removes_the_credentials_only(text: str, expected: str) -> None:
    """Scheme, host, port and path stay; user, password and query are masked."""
    assert mask_address(text) == expected


@pytest.mark.fault("R17")
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://hidden@ai.example/a is away", "https://***@ai.example/a is away"),
        ("https://hidden:@ai.example/a is away", "https://***@ai.example/a is away"),
        ("GET https://ai.example/a?sig=hidden&x=1", "GET https://ai.example/a?sig=***&x=1"),
        ("https://ai.example/a?x=1&X-Amz-Signature=hidden", "https://ai.example/a?x=1&X-Amz-Signature=***"),
        ("https://ai.example/a?key=hidden#x", "https://ai.example/a?key=***#x"),
        ("https://ai.example/ann@b.example", "https://ai.example/ann@b.example"),
        ('{"url": "https://ai.example?x=1"}', '{"url": "https://ai.example?x=1"}'),
    ],
)
def test_log_lines_mask_tokens_in_addresses(text: str, expected: str) -> None:
    """A token in the place of the user, and a token in a query, are masked."""
    assert mask(text) == expected


@pytest.mark.fault("R17")
def test_running_service_shows_no_credentials(tmp_path: Path) -> None:
    """Log, readiness, `check` and the asset report an unreachable AI service without its credentials."""
    address = f"http://ann:{HIDDEN}@127.0.0.1:1/{{}}?sig={HIDDEN}"
    keys = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{HIDDEN}@127.0.0.1:1"}
    with Service(tmp_path, address.format("ai"), JOB_MAX_AGE_SECONDS="2", **keys) as service:
        asset_id = service.upload().json()["data"]["assetId"]
        service.wait_log("provider_failed")
        ready = httpx.get(f"{service.url}/readyz", params={"verbose": ""}, timeout=WAIT_SECONDS)
        shown = ready.text + httpx.get(service.url).text + str(service.asset(asset_id))
        checked = run(tmp_path, "check", AI_SERVICE_URL=address.format("ai"))
        assert "127.0.0.1:1" in checked.output
        assert HIDDEN not in shown + checked.output + str(service.lines)
