"""Calls of any hook: results of a wrong type, a blocked event loop, a hold of one hook, the trace, and settings."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from structlog.testing import capture_logs
from tornado.ioloop import IOLoop

from pipeline.errors import ConfigurationError, RetryableJobError, ValidationError
from pipeline.hooks import Analysis, PluginSettings
from pipeline.settings import Settings
from pipeline.watchdog import Watchdog
from tests.fake_plugins import ManagerFactory, make_analysis, make_catalogue, make_job_event, make_module
from tests.unit.hook_modules import (
    ERRORS,
    IMPL,
    REFUSAL,
    RecordingObserver,
    analyze,
    break_down,
    make_upload,
    open_managers,
    upload_filter,
)


@pytest.fixture
def managers(io_loop: IOLoop) -> Iterator[ManagerFactory]:
    """A factory of managers; the test closes what it built."""
    yield from open_managers(io_loop)


@pytest.mark.fault("P1")
@pytest.mark.parametrize("broken", ["job_started", "transform_analysis", "validate_upload"])
@pytest.mark.gen_test
async def test_each_hook_of_a_plugin_is_held_by_itself(managers: ManagerFactory, broken: str) -> None:
    """If one hook of a plugin fails, the other hooks are called as before: a policy continues to refuse uploads."""
    asked: list[str] = []

    def hook(name: str, answer: Callable[[], Any] = lambda: None) -> Callable[[], Any]:
        async def implementation() -> Any:
            asked.append(name)
            if name == broken:
                raise KeyError("a bug")
            return answer()

        return implementation

    def no_cats() -> None:
        raise REFUSAL

    hooks = {
        "job_started": hook("job_started"),
        "transform_analysis": hook("transform_analysis", lambda: make_analysis("changed")),
        "validate_upload": hook("validate_upload", no_cats),
    }
    manager = managers.open(make_module("policy", **hooks), breaker_failures=2)
    refused, brands = 0, []
    for number in range(5):
        manager.observe("job_started", make_job_event(number))
        brands.append((await analyze(manager)).brand.value)
        try:
            await manager.validate_upload(make_upload())
        except ValidationError:
            refused += 1
    await manager.close()
    assert {name: asked.count(name) for name in hooks} == {name: 2 if name == broken else 5 for name in hooks}
    assert brands == ["Nike" if broken == "transform_analysis" else "changed"] * 5
    assert refused == (0 if broken == "validate_upload" else 5)


@pytest.mark.fault("P3")
@pytest.mark.gen_test
async def test_wrong_type_from_a_provider_is_an_error(managers: ManagerFactory) -> None:
    """Each result of a wrong type counts as an error; the log names the provider and the type."""
    manager = managers.open(providers={"wrong": lambda request: {"brand": "Nike"}})
    with capture_logs() as logs:
        for _ in range(2):
            with pytest.raises(RetryableJobError, match="AI service sent an invalid result"):
                await analyze(manager)
    assert managers.count(ERRORS, "provider", "wrong") == 2
    failed = [line for line in logs if line["event"] == "provider_failed"]
    assert [line["plugin"] for line in failed] == ["wrong"] * 2
    assert "analyze returned dict, not Analysis" in failed[0]["cause"]


@pytest.mark.fault("P3")
@pytest.mark.parametrize(
    ("hook", "answer", "cause"),
    [
        ("transform_analysis", {"brand": "Nike"}, "transform_analysis returned dict, not Analysis"),
        ("transform_analysis", Analysis(brand="Nike"), "brand is str, not Attribute"),  # type: ignore[arg-type]
        ("validate_upload", False, "validate_upload returned False; to refuse, raise ValidationError"),
    ],
)
@pytest.mark.gen_test
async def test_wrong_type_from_a_filter_is_an_error(
    managers: ManagerFactory, hook: str, answer: object, cause: str
) -> None:
    """A result of a wrong type is an error of the hook, is logged and changes nothing; the hook is held later."""
    calls: list[object] = []

    def implementation() -> object:
        calls.append(answer)
        return answer

    manager = managers.open(make_module("wrong", **{hook: implementation}), breaker_failures=2)
    with capture_logs() as logs:
        for _ in range(3):
            await manager.validate_upload(make_upload())
            assert (await analyze(manager)).brand.value == "Nike"
    assert len(calls) == 2 and managers.count(ERRORS, "hook", "wrong") == 2
    failed = [line for line in logs if line["event"] == "hook_failed"]
    assert [(line["plugin"], line["hook"]) for line in failed] == [("wrong", hook)] * 2
    (held,) = [line for line in logs if line["event"] == "plugin_held"]
    assert cause in held["cause"]


@pytest.mark.fault("P5")
@pytest.mark.gen_test
async def test_a_hook_that_blocks_the_loop_is_held(managers: ManagerFactory) -> None:
    """A hook that blocks the event loop several times in a row is held, also if its answers are correct."""
    asked: list[float] = []

    async def validate_upload() -> None:
        asked.append(seconds)
        time.sleep(seconds)

    manager = managers.open(make_module("blocker", validate_upload=validate_upload), breaker_failures=2)
    watchdog = Watchdog(managers.metrics, block_seconds=0.05)
    watchdog.start()
    try:
        with capture_logs() as logs:
            for seconds in (0.25, 0, 0.25, 0.25, 0):
                await manager.validate_upload(make_upload())
    finally:
        watchdog.stop()
    assert asked == [0.25, 0, 0.25, 0.25], "a quick call resets the count; two in a row hold it"
    assert managers.count(ERRORS, "hook", "blocker") == 3
    blocked = [(line["plugin"], line["method"]) for line in logs if line["event"] == "loop_blocked"]
    assert blocked == [("blocker", "validate_upload")] * 3
    (held,) = [line for line in logs if line["event"] == "plugin_held"]
    assert held["cause"] == "it blocks the event loop"


@pytest.mark.gen_test
async def test_each_call_is_logged_with_plugins_trace(managers: ManagerFactory) -> None:
    """PLUGINS_TRACE logs each call of a plugin with its method, duration and outcome."""
    manager = managers.open(upload_filter("tried", [], break_down), plugins_trace=True)
    with capture_logs() as logs:
        await manager.validate_upload(make_upload())
        await analyze(manager)
    called = [line for line in logs if line["event"] == "plugin_called"]
    outcomes = [(line["kind"], line["plugin"], line["method"], line["outcome"]) for line in called]
    assert outcomes == [("hook", "tried", "validate_upload", "KeyError"), ("provider", "only", "analyze", "ok")]
    assert all(line["ms"] >= 0 for line in called)


class OwnSettings(PluginSettings):
    """The settings of an observer."""

    key: str
    is_on: bool = True

    @property
    def is_active(self) -> bool:
        return self.is_on


def configured(observer: RecordingObserver) -> Any:
    """Return a module of the observer with OwnSettings."""
    module = observer.module("tested_configured", "job_started")
    setattr(module, "register_settings", IMPL(lambda: [("configured", OwnSettings)]))
    return module


@pytest.mark.gen_test
async def test_hooks_are_built_only_if_their_settings_are_active(managers: ManagerFactory) -> None:
    """A plugin whose settings switch it off has no hooks and is listed as available."""
    observer = RecordingObserver()
    variables = {"PLUGIN_CONFIGURED_KEY": "k", "PLUGIN_CONFIGURED_IS_ON": "false"}
    manager = managers.open(configured(observer), variables=variables)
    assert [plugin.name for plugin in manager.all if plugin.kind == "hook"] == []
    catalogue = make_catalogue(Settings().with_plugin_variables(variables), configured(observer))
    assert [(info.name, info.kind, info.state) for info in catalogue.infos() if info.kind == "hook"] == [
        ("configured", "hook", "available")
    ]


def test_hook_with_wrong_settings_stops_the_start_and_is_listed_as_broken(managers: ManagerFactory) -> None:
    """The start fails with the variable and its fault; the list of plugins shows the plugin as broken."""
    catalogue = make_catalogue(Settings(), configured(RecordingObserver()))
    fault = "PLUGIN_CONFIGURED_KEY: Field required"
    with pytest.raises(ConfigurationError, match=f"The plugin 'configured' cannot start: {fault}"):
        catalogue.build_hooks(managers.metrics)
    (info,) = [info for info in catalogue.infos() if info.name == "configured"]
    assert (info.kind, info.state) == ("hook", "broken") and fault in info.reason
