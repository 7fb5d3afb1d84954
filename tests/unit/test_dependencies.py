"""Dependencies: what the metrics show of each, with and without requests for readiness. The test moves the clock."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from structlog.testing import capture_logs

from pipeline.errors import DependencyUnavailable, NotReady
from pipeline.hooks.bound_plugin import BoundPlugin
from pipeline.hooks.plugin_start import hold
from pipeline.metrics import Metrics
from pipeline.usecases import dependencies as subject
from pipeline.usecases.dependencies import FRESH_SECONDS, STALE_SECONDS, WORKED_SECONDS, Dependencies

pytestmark = pytest.mark.fault("O13")


class Part:
    """A dependency that works or is down. probes: how often it was probed."""

    def __init__(self) -> None:
        self.is_down = False
        self.probes = 0

    async def check(self) -> None:
        self.probes += 1
        if self.is_down:
            raise DependencyUnavailable("The store cannot be reached") from OSError("mongodb://app:hidden@db")


class World:
    """Dependencies with one part, the plugins given, and a clock that only the test moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(subject, "monotonic", lambda: self.now)
        self.metrics = Metrics()
        self.part = Part()
        self.plugins: list[BoundPlugin] = []
        self.dependencies = Dependencies({"store": self.part.check}, lambda: self.plugins, self.metrics)

    def plugin(self, kind: str, name: str, **methods: Any) -> BoundPlugin:
        made = BoundPlugin(kind, name, object(), methods, threads=1, metrics=self.metrics)
        self.plugins.append(made)
        return made

    @property
    def shown(self) -> dict[str, float]:
        """The value of each dependency in the metrics."""
        page = self.metrics.render()[0].decode()
        return {
            sample.labels["name"]: sample.value
            for family in text_string_to_metric_families(page)
            for sample in family.samples
            if sample.name == "pipeline_dependency_up"
        }


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


def test_dependency_is_shown_without_requests_for_readiness(world: World) -> None:
    """A look finds that a dependency is down or up, and logs each change once, without secrets."""

    async def look() -> None:
        for is_down in (False, True, True, True, False):
            world.part.is_down = is_down
            await world.dependencies.look()
            assert world.shown == {"store": float(not is_down)}
            world.now += FRESH_SECONDS

    with capture_logs() as lines:
        asyncio.run(look())
    fault = "The store cannot be reached (OSError: mongodb://app:***@db)"
    assert lines == [
        {"event": "check_failed", "log_level": "warning", "dependency": "store", "error": fault},
        {"event": "check_passed", "log_level": "info", "dependency": "store"},
    ]


def test_log_ends_with_the_state_of_a_flapping_dependency(world: World) -> None:
    """A dependency that fails within a minute of its last line is logged a minute later, if it still fails."""

    async def look() -> None:
        for is_down in (True, False, *[True] * 13):
            world.part.is_down = is_down
            await world.dependencies.look()
            world.now += FRESH_SECONDS

    with capture_logs() as lines:
        asyncio.run(look())
    assert [line["event"] for line in lines] == ["check_failed", "check_passed", "check_failed"]


def test_look_probes_nothing_that_readiness_has_just_probed(world: World) -> None:
    """Each request for readiness probes the dependency and shows the result; a look soon after it does not probe."""

    async def ask() -> None:
        await world.dependencies.look()
        world.part.is_down = True
        assert [each["ok"] for each in await world.dependencies.read()] == [False]
        assert world.shown == {"store": 0}
        world.now += FRESH_SECONDS - 1
        await world.dependencies.look()
        assert world.part.probes == 2
        world.now += 1
        await world.dependencies.look()
        assert world.part.probes == 3

    asyncio.run(ask())


def test_an_old_result_is_not_shown(world: World) -> None:
    """A result that is too old is shown as NaN, because neither 1 nor 0 would be true."""
    asyncio.run(world.dependencies.look())
    world.now += STALE_SECONDS
    assert world.shown == {"store": 1}
    world.now += 1
    assert math.isnan(world.shown["store"])


def test_a_late_answer_of_an_earlier_probe_changes_nothing(world: World) -> None:
    """Of two probes at the same time the one that began first, before the outage, ends last: its result is ignored."""

    async def ask() -> None:
        answer = asyncio.Event()

        async def slow() -> None:
            await answer.wait()

        dependencies = Dependencies({"store": slow}, list, world.metrics)
        early = asyncio.create_task(dependencies.read())
        await asyncio.sleep(0)
        world.now += 1
        dependencies._checks = {"store": world.part.check}
        world.part.is_down = True
        await dependencies.read()
        answer.set()
        await early
        assert world.shown == {"store": 0}

    asyncio.run(ask())


def test_plugins_with_a_check_are_shown_by_kind_and_name(world: World) -> None:
    """A provider and a notifier may have the same name; a plugin without a check is not shown.

    Plugins do not count for readiness.
    """

    async def failing() -> None:
        raise OSError("no route")

    async def fine() -> None:
        pass

    world.plugin("provider", "acme", analyze=fine, check=failing)
    world.plugin("notifier", "acme", notify=fine, check=fine)
    world.plugin("notifier", "other", notify=fine)
    asyncio.run(world.dependencies.look())
    assert world.shown == {"store": 1, "provider:acme": 0, "notifier:acme": 1}
    assert [each["name"] for each in asyncio.run(world.dependencies.read())] == ["store"]


def test_a_process_that_asks_no_provider_does_not_probe_any(world: World) -> None:
    """A process with ROLE=web starts no provider and probes none."""

    async def fine() -> None:
        pass

    world.plugin("provider", "acme", analyze=fine, check=fine)
    dependencies = Dependencies({}, lambda: world.plugins, world.metrics, asks_providers=False)
    asyncio.run(dependencies.look())
    assert world.shown == {}


def test_a_plugin_that_is_not_ready_is_down_and_not_started_before_its_time(world: World) -> None:
    """A plugin that asks to be started in an hour is shown as down and is not started earlier."""
    started = []

    async def start(context: Any) -> None:
        started.append(context)

    async def fine() -> None:
        pass

    plugin = world.plugin("provider", "acme", analyze=fine, check=fine, start=start)
    hold(plugin, "It is not ready", NotReady("the model is being made", 3600))
    asyncio.run(world.dependencies.look())
    assert world.shown["provider:acme"] == 0 and not started


def test_a_plugin_that_works_needs_no_check(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plugin that has just answered a call is up, also if its check fails because all threads are busy."""
    monkeypatch.setattr("pipeline.hooks.bound_plugin.monotonic", lambda: world.now)

    async def work() -> None:
        pass

    async def failing() -> None:
        raise TimeoutError

    async def ask() -> None:
        plugin = world.plugin("provider", "acme", analyze=work, check=failing)
        await plugin.call("analyze", 1)
        world.now += WORKED_SECONDS - 1
        await world.dependencies.look()
        assert world.shown["provider:acme"] == 1
        world.now += 1
        await world.dependencies.look()
        assert world.shown["provider:acme"] == 0

    asyncio.run(ask())
