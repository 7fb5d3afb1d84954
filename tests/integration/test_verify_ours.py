"""`plugins verify` finds no fault in the plugins of the service, with fake services as strict as the real ones."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.integration.example_services import EXAMPLES, ModerationService, SftpServer
from tests.requirements import require
from tests.service import ROOT, WAIT_SECONDS, inherited
from tests.vision_fakes import FAKES
from tests.vision_server import KEY, FakeVision

VISION = ("openai", "anthropic", "gemini")
# `verify` has its own time limit, which is shorter.
SECONDS = 60


@contextmanager
def serving(name: str) -> Iterator[FakeVision]:
    """Yield the fake endpoint of that provider, on its own loop in its own thread."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    async def begin() -> FakeVision:
        fake = FAKES[name]()
        fake.start()
        return fake

    fake = asyncio.run_coroutine_threadsafe(begin(), loop).result(WAIT_SECONDS)
    yield fake
    asyncio.run_coroutine_threadsafe(fake.stop(), loop).result(WAIT_SECONDS)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def verify(name: str, folder: Path, **environment: str) -> Mapping[str, object]:
    """Return what `plugins verify NAME --json` prints."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "run.py"), "plugins", "verify", name, "--json"],
        cwd=folder,
        env=inherited() | {"PYTHONPATH": str(ROOT), "DATA_DIR": str(folder / "data")} | environment,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.stdout, done.stderr
    verdict: Mapping[str, object] = json.loads(done.stdout)
    print({each: verdict[each] for each in ("name", "passed", "failed", "leftOut", "seconds")})
    return verdict


@pytest.mark.fault("P9")
@pytest.mark.parametrize("name", VISION)
def test_vision_providers_pass(tmp_path: Path, name: str) -> None:
    """The suite finds no fault in a vision provider, and the endpoint gets its requests."""
    with serving(name) as fake:
        prefix = f"PLUGIN_{name.upper()}"
        where = {f"{prefix}_API_KEY": KEY, f"{prefix}_BASE_URL": fake.url, f"{prefix}_MODEL": "a-model"}
        verdict = verify(name, tmp_path, **where)
    assert verdict["findings"] == [] and verdict["passed"]
    assert fake.requests


@pytest.mark.fault("P9")
def test_webpush_passes(tmp_path: Path) -> None:
    """The suite finds no fault in `webpush`: it makes its key, and its routes answer without a subscription."""
    require(find_spec("http_ece") is not None, "needs the extra `webpush`")
    where = {"PLUGIN_WEBPUSH_SUBJECT": "mailto:ops@example.com", "PLUGIN_WEBPUSH_ALLOW_PRIVATE": "true"}
    verdict = verify("webpush", tmp_path, **where)
    assert verdict["findings"] == [] and verdict["passed"]


@pytest.mark.fault("P9")
def test_examples_pass(tmp_path: Path) -> None:
    """The suite finds no fault in the example storage on SFTP and the example filter that asks a service."""
    plugins = tmp_path / "plugins"
    plugins.mkdir()
    for name, package in (("sftp", "pipeline-storage-sftp"), ("moderation", "pipeline-filter-moderation")):
        (module,) = (EXAMPLES / package / "src").glob("*/__init__.py")
        (plugins / f"{name}.py").symlink_to(module)
    sftp, moderation = SftpServer(tmp_path / "sftp"), ModerationService()
    where = {"PLUGINS_DIR": str(plugins), "PLUGIN_MODERATION_URL": f"http://127.0.0.1:{moderation.server_port}/"}
    try:
        verdicts = [verify(name, tmp_path, **where, **sftp.environment) for name in ("sftp", "moderation")]
    finally:
        sftp.stop()
        moderation.shutdown()
        moderation.server_close()
    assert [verdict["findings"] for verdict in verdicts] == [[], []]
    assert moderation.seen
