"""Plugins whose async methods block the event loop: providers, notifiers and routes are held, storages are not."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from typing import Any

import pytest
from structlog.testing import capture_logs
from tornado.ioloop import IOLoop

from pipeline.errors import RetryableJobError
from pipeline.hooks import Analysis, AnalyzeRequest, Notification, PluginReply, PluginRequest
from pipeline.hooks.bound_plugin import BoundPlugin
from pipeline.hooks.route_calls import answer
from pipeline.watchdog import Watchdog
from tests.fake_plugins import ManagerFactory, Storage, make_analysis, make_module, make_request
from tests.unit.provider_chains import no_image

BLOCK_SECONDS = 0.05
# Long enough that the watchdog always notices it: see test_watchdog.py.
BLOCKED_SECONDS = 0.25
ERRORS, BLOCKED = "pipeline_plugin_errors_total", "pipeline_plugin_blocked_loop_total"
LIMIT = 2

pytestmark = pytest.mark.fault("P5")


class Blocker:
    """A plugin of any kind. Each call blocks the event loop for `seconds`."""

    durable = False

    def __init__(self) -> None:
        self.seconds = BLOCKED_SECONDS
        self.calls = 0

    def _block(self) -> None:
        self.calls += 1
        time.sleep(self.seconds)

    async def analyze(self, request: AnalyzeRequest) -> Analysis:
        self._block()
        return make_analysis("Slow")

    async def notify(self, notification: Notification) -> None:
        self._block()

    async def serve(self, request: PluginRequest) -> PluginReply:
        self._block()
        return PluginReply(204)

    def register_routes(self, routes: Any) -> None:
        routes.add("GET", "/slow", self.serve)


class Durable(Blocker):
    durable = True


class BlockingStorage(Storage):
    async def save(self, public_id: str, file: Any, content_type: str) -> str:
        time.sleep(BLOCKED_SECONDS)
        return "https://images.example/x"


@pytest.fixture
def managers(io_loop: IOLoop) -> Iterator[ManagerFactory]:
    managers = ManagerFactory()
    yield managers
    io_loop.run_sync(managers.close)


@pytest.fixture
def watched(io_loop: IOLoop, managers: ManagerFactory) -> Iterator[None]:
    watchdog = Watchdog(managers.metrics, block_seconds=BLOCK_SECONDS)

    async def start() -> None:
        watchdog.start()

    io_loop.run_sync(start)
    yield
    watchdog.stop()


def plugin_of(manager: Any, kind: str, name: str = "slow") -> BoundPlugin:
    (found,) = [each for each in manager.all if (each.kind, each.name) == (kind, name)]
    return found


@pytest.mark.parametrize("has_next", [True, False])
@pytest.mark.gen_test
async def test_a_provider_that_blocks_is_held(
    managers: ManagerFactory, watched: None, has_next: bool
) -> None:
    """Each answer of a blocking provider counts; at the limit the provider is held.

    While it is held, jobs use the next provider, or wait and spend no attempt. A call that does not block releases it.
    """
    blocker = Blocker()
    module = make_module("slow", register_ai_providers=lambda: [("slow", lambda: blocker)])
    chain = ("slow", "only") if has_next else ("slow",)
    manager = managers.open(module, ai_provider=chain, breaker_failures=LIMIT)
    with capture_logs() as logs:
        for number in range(LIMIT):
            assert (await manager.analyze(make_request(), no_image)).brand.value == "Slow"
            provider = plugin_of(manager, "provider")
            assert provider.status.state == ("blocking" if number + 1 < LIMIT else "held")
        assert "analyze" in provider.status.reason and "event loop" in provider.status.reason
        if has_next:
            assert (await manager.analyze(make_request(), no_image)).brand.value == "Nike"
        else:
            with pytest.raises(RetryableJobError, match="Not available now") as raised:
                await manager.analyze(make_request(), no_image)
            assert (raised.value.spends_attempt, raised.value.provider) == (False, "slow")
    assert blocker.calls == LIMIT == managers.count(BLOCKED, "provider", "slow")
    assert managers.count(ERRORS, "provider", "slow") == LIMIT
    (held,) = [line for line in logs if line["event"] == "plugin_held"]
    assert (held["plugin"], held["method"], held["cause"]) == ("slow", "analyze", "it blocks the event loop")
    blocker.seconds = 0
    await manager.analyze(make_request(), no_image, tries="slow")
    assert (provider.status.state, provider.status.reason) == ("ok", "")


@pytest.mark.parametrize("kind", [Blocker, Durable])
@pytest.mark.gen_test
async def test_a_notifier_that_blocks_is_held(managers: ManagerFactory, watched: None, kind: type[Blocker]) -> None:
    """A blocking notifier is held: deliveries of a durable one are retried, other events skip it; each is counted."""
    blocker = kind()
    module = make_module("bells", register_notifiers=lambda: [("slow", lambda: blocker)])
    manager = managers.open(module, notifiers=("slow",), breaker_failures=LIMIT)
    event = {"event": "asset_processed", "assetId": "1"}

    async def send() -> None:
        if blocker.durable:
            await manager.notifiers.deliver("slow", event, "user-1", "delivery-1")
        else:
            await manager.notifiers.notify(event, "user-1")

    for _ in range(LIMIT):
        await send()
    if blocker.durable:
        with pytest.raises(RetryableJobError) as raised:
            await send()
        assert not raised.value.spends_attempt
    else:
        await send()
    assert plugin_of(manager, "notifier").status.state == "held"
    assert blocker.calls == LIMIT == managers.count(ERRORS, "notifier", "slow")


@pytest.mark.gen_test
async def test_a_route_that_blocks_is_held(managers: ManagerFactory, watched: None) -> None:
    """Clients of a blocking route get a 503 while it is held; the notifier of the same plugin is called as before."""
    blocker = Blocker()
    module = make_module("bells", register_notifiers=lambda: [("slow", lambda: blocker)])
    manager = managers.open(module, notifiers=("slow",), breaker_failures=LIMIT)
    ((plugin, route),) = manager.routes["slow"]
    for _ in range(LIMIT):
        assert (await answer(plugin, route, PluginRequest("GET"), 5)).status == 204
    with pytest.raises(Exception, match="not ready"):
        await answer(plugin, route, PluginRequest("GET"), 5)
    assert blocker.calls == LIMIT
    assert plugin.breaker("notify").left_seconds == 0, "the notifier of the plugin is not held"


@pytest.mark.gen_test
async def test_a_storage_that_blocks_is_shown_and_counted(managers: ManagerFactory, watched: None) -> None:
    """A blocking storage is never held, because no job works without it; operators see which method blocks."""
    module = make_module("shelf", register_storage_backends=lambda: [("slow", BlockingStorage)])
    manager = managers.open(module, storage_backend="slow", breaker_failures=LIMIT)
    for _ in range(LIMIT + 1):
        await manager.save("asset-1/original.jpg", io.BytesIO(b"photo"), "image/jpeg")
    storage = plugin_of(manager, "storage")
    assert storage.status.state == "blocking"
    assert storage.status.reason == f"save: it blocks the event loop (calls in a row: {LIMIT + 1})"
    assert managers.count(ERRORS, "storage", "slow") == LIMIT + 1
    await manager.storages.check()
    assert storage.status.state == "blocking", "a call of another method does not reset this one"
