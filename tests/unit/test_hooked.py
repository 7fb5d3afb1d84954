"""Observers and filters: what they are told and asked, and that none delays or harms anything but itself."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pluggy
import pytest
import structlog
from structlog.testing import capture_logs
from tornado.ioloop import IOLoop

from pipeline.plugins import filter_photos
from pipeline.plugins import observe_journal
from pipeline.errors import (
    ConfigurationError,
    DependencyUnavailable,
    NotReady,
    PermanentJobError,
    RetryableJobError,
    ValidationError,
)
from pipeline.hooks import (
    UNKNOWN,
    Analysis,
    AnalyzeRequest,
    Attribute,
    JobEvent,
    PluginSettings,
    ProcessedImage,
    UploadFacts,
)
from pipeline.hooks.kinds import OBSERVERS
from pipeline.settings import Settings
from pipeline.watchdog import Watchdog
from tests.clock import Clock
from tests.fake_plugins import (
    ManagerFactory,
    find,
    make_analysis,
    make_catalogue,
    make_job_event,
    make_module,
    make_request,
)

IMPL = pluggy.HookimplMarker("ai_queue_pipeline")
ERRORS, SKIPPED = "pipeline_plugin_errors_total", "pipeline_plugin_skipped_total"


@pytest.fixture
def managers(io_loop: IOLoop) -> Iterator[ManagerFactory]:
    """A factory of managers; the test closes what it built."""
    managers = ManagerFactory()
    with capture_logs():  # the console's way to print exceptions is slow
        yield managers
    io_loop.run_sync(managers.close)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Closing waits for nobody: for tests that leave an observer hanging."""
    monkeypatch.setattr("pipeline.hooks.hook_calls.CLOSE_SECONDS", 0.05)


class Watcher:
    """An observer that keeps what it is told and then does as `answer` says."""

    def __init__(self, answer: Callable[[JobEvent], Any] = lambda event: None) -> None:
        self.told: list[tuple[str, JobEvent]] = []
        self.answer = answer
        self._changed = asyncio.Event()

    def module(self, name: str, *hooks: str) -> Any:
        def make(hook: str) -> Callable[..., Any]:
            async def implementation(event: JobEvent) -> None:
                self.told.append((hook, event))
                self._changed.set()
                if asyncio.iscoroutine(result := self.answer(event)):
                    await result

            return implementation

        return make_module(name, **{hook: make(hook) for hook in hooks or OBSERVERS})

    async def wait(self, count: int) -> list[int]:
        """Return the numbers of the jobs it was told of, once there are so many."""
        async with asyncio.timeout(5):
            while len(self.told) < count:
                self._changed.clear()
                await self._changed.wait()
        return [int(event.asset_id, 16) for _, event in self.told]


async def never(event: JobEvent) -> None:
    await asyncio.Event().wait()


def fail(event: JobEvent) -> None:
    raise OSError("statistics are down")


# observers


@pytest.mark.gen_test
async def test_observer_is_told_everything_in_order(managers: ManagerFactory) -> None:
    """Each thing that happens to a job arrives as it happened, under the hook it belongs to."""
    watcher = Watcher()
    manager = managers.open(watcher.module("watch"))
    events = [(hook, make_job_event(number, attempt=1)) for number in range(3) for hook in OBSERVERS]
    for hook, event in events:
        manager.observe(hook, event)
    await watcher.wait(len(events))
    assert watcher.told == events


@pytest.mark.gen_test
async def test_observer_is_told_only_what_it_implements(managers: ManagerFactory) -> None:
    """Who wants to know of ends hears nothing of beginnings."""
    watcher = Watcher()
    manager = managers.open(watcher.module("watch", "job_finished"))
    manager.observe("job_started", make_job_event(1))
    manager.observe("job_finished", make_job_event(2))
    assert await watcher.wait(1) == [2]


@pytest.mark.gen_test
async def test_implementation_names_the_arguments_it_wants(managers: ManagerFactory) -> None:
    """Any of a hook's arguments, in any order or none, in `def` (in a thread) and in `async def` (on the loop)."""
    seen: dict[str, Any] = {}
    is_done = asyncio.Event()
    loop = asyncio.get_running_loop()

    def job_enqueued(settings: Settings, event: JobEvent) -> None:
        seen["job_enqueued"] = (settings.port, event.asset_id[-1], threading.current_thread() is not main)

    async def job_started(settings: Settings) -> None:
        seen["job_started"] = (settings.port, threading.current_thread() is main)

    def job_finished() -> None:
        seen["job_finished"] = True
        loop.call_soon_threadsafe(is_done.set)

    main = threading.current_thread()
    module = make_module("picky", job_enqueued=job_enqueued, job_started=job_started, job_finished=job_finished)
    manager = managers.open(module, port=81)
    for hook in OBSERVERS:
        manager.observe(hook, make_job_event(5))
    await asyncio.wait_for(is_done.wait(), 5)
    assert seen == {"job_enqueued": (81, "5", True), "job_started": (81, True), "job_finished": True}


@pytest.mark.gen_test
async def test_hanging_observer_delays_neither_the_job_nor_the_others(
    impatient: None, managers: ManagerFactory
) -> None:
    """Observing returns at once; another observer has everything while one hangs in its first event."""
    slow, watcher = Watcher(never), Watcher()
    manager = managers.open(slow.module("slow"), watcher.module("watch"), hook_timeout_seconds=60)
    for number in range(20):
        manager.observe("job_started", make_job_event(number))
    assert await watcher.wait(20) == list(range(20))
    assert len(slow.told) == 1


@pytest.mark.gen_test
async def test_observer_that_hangs_is_ended_by_its_time_and_told_the_next(
    impatient: None, managers: ManagerFactory
) -> None:
    """HOOK_TIMEOUT_SECONDS ends each call; the failure is counted, and the next event comes."""
    slow = Watcher(never)
    manager = managers.open(slow.module("slow"), hook_timeout_seconds=0.05)
    manager.observe("job_started", make_job_event(1))
    manager.observe("job_started", make_job_event(2))
    assert await slow.wait(2) == [1, 2]
    assert managers.count("pipeline_plugin_overruns_total", "hook", "slow") == 1
    assert managers.count(ERRORS, "hook", "slow") == 1


@pytest.mark.gen_test
async def test_observer_that_fails_in_a_row_is_held(managers: ManagerFactory) -> None:
    """After BREAKER_FAILURES failures it is spared, each event it misses is counted; others are told as before."""
    bad, watcher = Watcher(fail), Watcher()
    manager = managers.open(bad.module("bad"), watcher.module("watch"), breaker_failures=3)
    with capture_logs() as logs:
        for number in range(10):
            manager.observe("job_finished", make_job_event(number))
        await watcher.wait(10)
        while managers.count(SKIPPED, "hook", "bad") < 7:
            await asyncio.sleep(0)  # it has a queue of its own
    assert len(bad.told) == 3
    failed = [(line["plugin"], line["hook"]) for line in logs if line["event"] == "hook_failed"]
    assert failed == [("bad", "job_finished")] * 3
    (held,) = (line for line in logs if line["event"] == "plugin_held")
    assert (held["kind"], held["plugin"], held["method"]) == ("hook", "bad", "job_finished")
    assert (held["reason"], held["cause"]) == ("The hook failed", "OSError: statistics are down")


@pytest.mark.gen_test
async def test_success_ends_an_observers_row_of_failures(managers: ManagerFactory) -> None:
    """Only failures in a row hold it."""
    bad = Watcher(lambda event: fail(event) if int(event.asset_id, 16) % 3 else None)
    manager = managers.open(bad.module("bad"), breaker_failures=3)
    for number in range(12):
        manager.observe("job_finished", make_job_event(number))
    assert await bad.wait(12) == list(range(12))


@pytest.mark.gen_test
async def test_observer_too_slow_for_its_events_misses_some_which_is_counted(
    managers: ManagerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The memory an observer may take has a limit: what is beyond it is dropped, the newest first."""
    monkeypatch.setattr("pipeline.hooks.hook_calls.EVENTS_AT_MOST", 3)
    go_on = asyncio.Event()
    slow = Watcher(lambda event: go_on.wait())
    manager = managers.open(slow.module("slow"), hook_timeout_seconds=60)
    manager.observe("job_started", make_job_event(0))
    await slow.wait(1)
    for number in range(1, 8):
        manager.observe("job_started", make_job_event(number))
    assert managers.count(SKIPPED, "hook", "slow") == 4
    go_on.set()
    assert await slow.wait(4) == [0, 1, 2, 3]


@pytest.mark.gen_test
async def test_log_lines_of_an_observer_name_its_own_job(managers: ManagerFactory) -> None:
    """The first event does not lend its job's names to all that follow: each failure is logged with its own."""
    bad = Watcher(fail)
    manager = managers.open(bad.module("bad"))
    processors = structlog.get_config()["processors"]
    with capture_logs() as logs:
        # capture_logs leaves out the bound names that every line of the service carries.
        structlog.get_config()["processors"].insert(0, structlog.contextvars.merge_contextvars)
        for number in range(2):
            event = make_job_event(number)
            with structlog.contextvars.bound_contextvars(jobId=event.job_id, requestId=event.request_id, attempt=7):
                manager.observe("job_started", event)
        await bad.wait(2)
        await manager.close()
        del structlog.get_config()["processors"][0]
    assert structlog.get_config()["processors"] == processors
    failed = [line for line in logs if line["event"] == "hook_failed"]
    names = [(line["jobId"], line["requestId"]) for line in failed]
    assert names == [(event.job_id, event.request_id) for _, event in bad.told]
    assert not [line for line in failed if "attempt" in line], "left over from the first one"


@pytest.mark.gen_test
async def test_closing_lets_observers_finish(managers: ManagerFactory) -> None:
    """What happened before the end is told before the end."""
    watcher = Watcher(lambda event: asyncio.sleep(0.001))
    manager = managers.open(watcher.module("watch"))
    for number in range(50):
        manager.observe("job_finished", make_job_event(number))
    await manager.close()
    assert len(watcher.told) == 50


@pytest.mark.gen_test
async def test_closing_does_not_wait_for_an_observer_that_hangs(impatient: None, managers: ManagerFactory) -> None:
    """A shutdown has its time limit, whatever a plugin does with it."""
    slow = Watcher(never)
    manager = managers.open(slow.module("slow"), hook_timeout_seconds=60)
    manager.observe("job_finished", make_job_event(1))
    await slow.wait(1)
    async with asyncio.timeout(3):
        await manager.close()


# filters of uploads


def make_upload(width: int = 640, height: int = 480) -> UploadFacts:
    return UploadFacts("user-1", "sneaker", "image/jpeg", 1234, width, height, lambda: b"photo")


REFUSAL = ValidationError.of("image", "No cats")


def upload_filter(name: str, asked: list[str], answer: Callable[[UploadFacts], Any] = lambda upload: None) -> Any:
    def validate_upload(upload: UploadFacts) -> None:
        asked.append(name)
        answer(upload)

    return make_module(name, validate_upload=validate_upload)


def refuse(upload: UploadFacts) -> None:
    raise REFUSAL


def break_down(upload: UploadFacts) -> None:
    raise KeyError("a bug")


@pytest.mark.gen_test
async def test_filter_refuses_an_upload_with_its_own_words(managers: ManagerFactory) -> None:
    """The ValidationError reaches the client unchanged and nobody after it is asked."""
    asked: list[str] = []
    manager = managers.open(
        upload_filter("after", asked), upload_filter("refuses", asked, refuse), upload_filter("before", asked)
    )
    with pytest.raises(ValidationError) as caught:
        await manager.validate_upload(make_upload())
    assert caught.value is REFUSAL
    assert asked == ["before", "refuses"]
    assert managers.count(ERRORS, "hook", "refuses") == 0, "it did its work"


@pytest.mark.parametrize("kind", ["raises", "hangs"])
@pytest.mark.gen_test
async def test_broken_filter_refuses_nothing(managers: ManagerFactory, kind: str) -> None:
    """An upload goes on when a filter breaks or takes too long: the fault is the plugin's, logged and counted."""
    asked: list[str] = []
    broken = upload_filter("broken", asked, break_down if kind == "raises" else managers.hang)
    manager = managers.open(upload_filter("after", asked), broken, hook_timeout_seconds=0.05)
    with capture_logs() as logs:
        await manager.validate_upload(make_upload())
    assert asked == ["broken", "after"]
    assert [line["hook"] for line in logs if line["event"] == "hook_failed"] == ["validate_upload"]
    assert managers.count(ERRORS, "hook", "broken") == 1


@pytest.mark.gen_test
async def test_broken_filter_is_held_and_refusals_are_no_failures(managers: ManagerFactory) -> None:
    """Failures in a row spare uploads the wait; a filter that refuses everything works and stays."""
    asked: list[str] = []
    answers = {"broken": break_down}
    manager = managers.open(
        upload_filter("broken", asked, lambda upload: answers["broken"](upload)), breaker_failures=2
    )
    for _ in range(5):
        await manager.validate_upload(make_upload())
    assert len(asked) == 2 and managers.count(SKIPPED, "hook", "broken") == 3
    changing = upload_filter("changing", asked, lambda upload: answers["changing"](upload))
    manager = managers.open(changing, breaker_failures=2)
    for _ in range(3):
        answers["changing"] = break_down
        await manager.validate_upload(make_upload())
        answers["changing"] = refuse
        with pytest.raises(ValidationError):
            await manager.validate_upload(make_upload())


@pytest.mark.gen_test
async def test_held_filter_is_asked_again_when_it_works(
    managers: ManagerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One upload tries it; with its first answer, a refusal too, it is asked about every upload again."""
    clock = Clock.of_breakers(monkeypatch)
    asked: list[str] = []
    answers: dict[str, Callable[[UploadFacts], Any]] = {"changing": break_down}
    changing = upload_filter("changing", asked, lambda upload: answers["changing"](upload))
    manager = managers.open(changing, breaker_failures=1)
    await manager.validate_upload(make_upload())
    answers["changing"] = refuse
    await manager.validate_upload(make_upload())
    assert len(asked) == 1
    clock.now += 1.1
    with capture_logs() as logs:
        for _ in range(2):
            with pytest.raises(ValidationError):
                await manager.validate_upload(make_upload())
    assert [(line["event"], line["method"]) for line in logs] == [("plugin_released", "validate_upload")]


@pytest.mark.fault("P1")
@pytest.mark.parametrize("broken", ["job_started", "transform_analysis", "validate_upload"])
@pytest.mark.gen_test
async def test_each_hook_of_a_plugin_is_held_by_itself(managers: ManagerFactory, broken: str) -> None:
    """Whichever of its hooks breaks, the others are called as before: a policy goes on refusing uploads."""
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


@pytest.mark.fault("P1")
@pytest.mark.gen_test
async def test_a_required_filter_that_cannot_say_lets_nothing_pass(
    managers: ManagerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither while it fails nor while it is held: uploads are refused for as long as it is not asked, results wait."""
    clock = Clock.of_breakers(monkeypatch)
    asked: list[str] = []
    answers: dict[str, Callable[..., Any]] = {"policy": break_down}

    def transform_analysis(analysis: Analysis) -> None:
        answers["policy"](analysis)

    policy = upload_filter("policy", asked, lambda upload: answers["policy"](upload))
    policy.transform_analysis = IMPL(transform_analysis)
    manager = managers.open(policy, breaker_failures=2, filters_required=("policy",), breaker_probe_seconds=8)
    seconds = []
    for _ in range(4):
        with pytest.raises(DependencyUnavailable, match="Uploads cannot be checked now") as refused:
            await manager.validate_upload(make_upload())
        seconds.append(refused.value.retry_after_seconds)
        with pytest.raises(DependencyUnavailable, match="Results cannot be checked now"):
            await analyze(manager)
    assert len(asked) == 2 and seconds == [5, 1, 1, 1], "until it is tried"
    clock.now += 1.1
    answers["policy"] = lambda _: None
    await manager.validate_upload(make_upload())
    assert (await analyze(manager)).brand.value == "Nike"


def silent(error: Exception) -> Exception:
    error.__cause__ = TimeoutError()
    return error


@pytest.mark.fault("P1")
@pytest.mark.parametrize(
    ("error", "seconds", "told"),
    [
        (DependencyUnavailable("It is busy", retry_after_seconds=30), (30, 30), "It is busy (DependencyUnavailable)"),
        (silent(RetryableJobError("It is busy", retry_after_seconds=29.5)), (30, 30), "It is busy (TimeoutError)"),
        (RetryableJobError("Later", retry_after_seconds=9, spends_attempt=True), (9, 9), "Later (RetryableJobError)"),
        (silent(NotReady("It cannot be reached", 30)), (30, 30), "Not ready (It cannot be reached (TimeoutError))"),
        (silent(DependencyUnavailable("It is away")), (1, 2), "It is away (TimeoutError)"),
        (ConnectionRefusedError("no"), (1, 2), "The hook failed (ConnectionRefusedError: no)"),
    ],
    ids=lambda each: repr(each)[:30],
)
@pytest.mark.gen_test
async def test_a_required_filter_that_names_a_time_or_cannot_be_reached_is_left_alone_at_once(
    managers: ManagerFactory, monkeypatch: pytest.MonkeyPatch, error: Exception, seconds: tuple[int, int], told: str
) -> None:
    """For as long as it says, each time anew, and clients are told so; one that says nothing is tried ever more seldom.
    Its author's words reach the operator, who sees it held from its first failure on.
    """
    clock, asked = Clock.of_breakers(monkeypatch), list[str]()

    def fail(_: Any) -> None:
        raise error

    manager = managers.open(upload_filter("gate", asked, fail), filters_required=("gate",))
    (gate,) = (each for each in manager.all if each.name == "gate")
    for number, wait in enumerate(seconds, start=1):
        for _ in range(3):
            with pytest.raises(DependencyUnavailable, match="Uploads cannot be checked now") as refused:
                await manager.validate_upload(make_upload())
            assert refused.value.retry_after_seconds == wait
        assert (gate.status.state, gate.status.reason, len(asked)) == ("held", f"validate_upload: {told}", number)
        clock.now += wait


@pytest.mark.fault("P3")
@pytest.mark.gen_test
async def test_a_provider_that_returns_something_else_is_told_so(managers: ManagerFactory) -> None:
    """Each such answer is an error of its, and the log names it and what it returned."""
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
    ("hook", "answer", "told"),
    [
        ("transform_analysis", {"brand": "Nike"}, "transform_analysis returned dict, not Analysis"),
        ("transform_analysis", Analysis(brand="Nike"), "brand is str, not Attribute"),  # type: ignore[arg-type]
        ("validate_upload", False, "validate_upload returned False; to refuse, raise ValidationError"),
    ],
)
@pytest.mark.gen_test
async def test_a_filter_that_returns_something_else_is_told_so(
    managers: ManagerFactory, hook: str, answer: object, told: str
) -> None:
    """It counts as an error of that hook, is named rightly in the log, changes nothing, and is held in the end."""
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
    assert told in held["cause"]


@pytest.mark.fault("P5")
@pytest.mark.gen_test
async def test_a_hook_that_blocks_the_loop_is_held(managers: ManagerFactory) -> None:
    """It keeps everything from going on, whatever it answers: after some times in a row it is not asked for a while."""
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
    assert asked == [0.25, 0, 0.25, 0.25], "one that is quick in between begins anew; then it is held"
    assert managers.count(ERRORS, "hook", "blocker") == 3
    blocked = [(line["plugin"], line["method"]) for line in logs if line["event"] == "loop_blocked"]
    assert blocked == [("blocker", "validate_upload")] * 3
    (held,) = [line for line in logs if line["event"] == "plugin_held"]
    assert held["cause"] == "it blocks the event loop"


@pytest.mark.gen_test
async def test_each_call_is_logged_when_that_is_wished(managers: ManagerFactory) -> None:
    """PLUGINS_TRACE tells what a plugin is asked, for how long, and how that ends."""
    manager = managers.open(upload_filter("tried", [], break_down), plugins_trace=True)
    with capture_logs() as logs:
        await manager.validate_upload(make_upload())
        await analyze(manager)
    called = [line for line in logs if line["event"] == "plugin_called"]
    told = [(line["kind"], line["plugin"], line["method"], line["outcome"]) for line in called]
    assert told == [("hook", "tried", "validate_upload", "KeyError"), ("provider", "only", "analyze", "ok")]
    assert all(line["ms"] >= 0 for line in called)


@pytest.mark.gen_test
async def test_has_upload_filters_tells_whether_anybody_wants_uploads(managers: ManagerFactory) -> None:
    """Nobody's facts are gathered for nobody."""
    assert not managers.open(Watcher().module("watch")).has_upload_filters
    assert managers.open(upload_filter("one", [])).has_upload_filters


# filters of results


def rename(brand: str) -> Callable[[Analysis], Analysis]:
    return lambda analysis: make_analysis(f"{analysis.brand.value}+{brand}")


def result_filter(name: str, answer: Callable[[Analysis], Any], **options: Any) -> Any:
    async def transform_analysis(analysis: Analysis) -> Any:
        return answer(analysis)

    module = make_module(name)
    setattr(module, "transform_analysis", IMPL(**options)(transform_analysis))
    return module


async def analyze(manager: Any, **fields: Any) -> Analysis:
    async def no_image() -> bytes:
        raise AssertionError("nobody asked for the image")

    result: Analysis = await manager.analyze(make_request(**fields), no_image)
    return result


@pytest.mark.gen_test
async def test_filters_change_a_result_one_after_the_other(managers: ManagerFactory) -> None:
    """Each gets what the one before returned, None keeps it; pluggy's tryfirst and trylast decide the order."""
    manager = managers.open(
        result_filter("third", rename("last"), trylast=True),
        result_filter("second", rename("middle")),
        result_filter("none", lambda analysis: None),
        result_filter("first", rename("first"), tryfirst=True),
    )
    order = (await analyze(manager)).brand.value.split("+")
    # pluggy's own words are "tried as early (late) as possible".
    assert order == ["Nike", "first", "middle", "last"]


@pytest.mark.parametrize(
    "wrong",
    ["Nike", {"brand": "Nike"}, Analysis(brand=Attribute("Nike", 7)), Analysis(processed_image_url="/media/x")],
    ids=repr,
)
@pytest.mark.gen_test
async def test_result_of_a_filter_that_breaks_the_contract_is_not_used(managers: ManagerFactory, wrong: Any) -> None:
    """What a filter hands back is trusted no more than what a provider does: the result stays as it was."""
    manager = managers.open(result_filter("wrong", lambda analysis: wrong), breaker_failures=1)
    with capture_logs() as logs:
        assert (await analyze(manager)).brand.value == "Nike"
    assert [line["hook"] for line in logs if line["event"] == "hook_failed"] == ["transform_analysis"]
    assert managers.count("pipeline_plugin_held", "hook", "wrong") == 1


@pytest.mark.parametrize("error", [ValueError("a bug"), PermanentJobError("no"), REFUSAL, SystemExit(1)], ids=repr)
@pytest.mark.gen_test
async def test_filter_of_results_cannot_fail_a_job(managers: ManagerFactory, error: BaseException) -> None:
    """Whatever it raises, the job keeps the result the provider was paid for."""

    def break_down(analysis: Analysis) -> None:
        raise error

    manager = managers.open(result_filter("broken", break_down), result_filter("after", rename("after")))
    assert "after" in (await analyze(manager)).brand.value


@pytest.mark.gen_test
async def test_filter_sees_the_request_without_the_image(managers: ManagerFactory) -> None:
    """It may know which photo it is, and does not hold its bytes; what it is told of the chain is the job's."""
    seen: list[AnalyzeRequest] = []

    async def transform_analysis(request: AnalyzeRequest) -> None:
        seen.append(request)

    manager = managers.open(make_module("curious", transform_analysis=transform_analysis))
    await analyze(manager, category="lego", attempt=2, image=b"photo")
    assert [(request.category, request.attempt, request.image) for request in seen] == [("lego", 2, None)]


@pytest.mark.gen_test
async def test_filters_are_asked_once_whoever_answers(managers: ManagerFactory) -> None:
    """The result of the second provider of a chain is filtered like that of the first, a failure not at all."""
    asked: list[str] = []

    async def refuse_photo(request: AnalyzeRequest) -> None:
        raise PermanentJobError("No product in the image")

    def note(analysis: Analysis) -> None:
        asked.append(analysis.brand.value)

    manager = managers.open(result_filter("note", note), providers={"first": refuse_photo, "second": find})
    await analyze(manager)
    assert asked == ["Nike"]
    with pytest.raises(PermanentJobError):
        await analyze(managers.open(result_filter("note", note), providers={"first": refuse_photo}))
    assert asked == ["Nike"]


# settings of hooks


class OwnSettings(PluginSettings):
    """An observer's own."""

    key: str
    is_on: bool = True

    @property
    def is_active(self) -> bool:
        return self.is_on


def configured(watcher: Watcher) -> Any:
    module = watcher.module("tested_configured", "job_started")
    setattr(module, "register_settings", IMPL(lambda: [("configured", OwnSettings)]))
    return module


@pytest.mark.gen_test
async def test_hooks_run_only_when_their_settings_say_active(managers: ManagerFactory) -> None:
    """What is switched off costs nothing, and is listed as available."""
    watcher = Watcher()
    variables = {"PLUGIN_CONFIGURED_KEY": "k", "PLUGIN_CONFIGURED_IS_ON": "false"}
    manager = managers.open(configured(watcher), variables=variables)
    assert [plugin.name for plugin in manager.all if plugin.kind == "hook"] == []
    catalogue = make_catalogue(Settings().with_plugin_variables(variables), configured(watcher))
    assert [(info.name, info.kind, info.state) for info in catalogue.infos() if info.kind == "hook"] == [
        ("configured", "hook", "available")
    ]


def test_hook_with_wrong_settings_stops_the_start_and_is_listed_as_broken(managers: ManagerFactory) -> None:
    """The fault is named with its variable; the listing of plugins shows it instead of failing."""
    catalogue = make_catalogue(Settings(), configured(Watcher()))
    fault = "PLUGIN_CONFIGURED_KEY: Field required"
    with pytest.raises(ConfigurationError, match=f"The plugin 'configured' cannot start: {fault}"):
        catalogue.build_hooks(managers.metrics)
    (info,) = [info for info in catalogue.infos() if info.name == "configured"]
    assert (info.kind, info.state) == ("hook", "broken") and fault in info.reason


# the journal


@pytest.mark.gen_test
async def test_journal_has_one_line_for_each_thing_that_happens(managers: ManagerFactory, tmp_path: Path) -> None:
    """Lines of JSON in order of events; a file that was moved away is begun anew."""
    path = tmp_path / "journal.jsonl"
    manager = managers.open(observe_journal, variables={"PLUGIN_JOURNAL_PATH": str(path)})
    at = datetime(2026, 1, 31, 12, 0, 0, 123456, UTC)
    event = JobEvent("ai-processing:1", "1", "user-1", "lego", "r-1", at, 2, "failed", "it ended\nbadly", 0, 1.5)
    for hook in OBSERVERS:
        manager.observe(hook, event)
    await manager.close()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["job"] for line in lines] == ["enqueued", "started", "retrying", "finished"]
    assert lines[-1] == {
        "job": "finished", "job_id": "ai-processing:1", "asset_id": "1", "user_id": "user-1", "category": "lego",
        "request_id": "r-1", "at": "2026-01-31T12:00:00.123+00:00", "attempt": 2, "outcome": "failed",
        "error": "it ended\nbadly", "delay_ms": 0, "seconds": 1.5,
    }  # fmt: skip
    path.rename(tmp_path / "journal.1")
    again = managers.open(observe_journal, variables={"PLUGIN_JOURNAL_PATH": str(path)})
    again.observe("job_started", event)
    await again.close()
    assert len(path.read_text().splitlines()) == 1


@pytest.mark.gen_test
async def test_journal_that_cannot_be_written_harms_nobody(managers: ManagerFactory, tmp_path: Path) -> None:
    """A full or missing disk is a line in the log."""
    manager = managers.open(observe_journal, variables={"PLUGIN_JOURNAL_PATH": str(tmp_path / "no" / "journal")})
    with capture_logs() as logs:
        manager.observe("job_started", make_job_event())
        await manager.close()
    assert [(line["event"], line["plugin"]) for line in logs] == [("hook_failed", "journal")]


@pytest.mark.gen_test
async def test_journal_and_photos_are_off_unless_configured(managers: ManagerFactory) -> None:
    """What comes with the service but is not configured is never called."""
    manager = managers.open(observe_journal, filter_photos)
    assert [plugin.name for plugin in manager.all if plugin.kind == "hook"] == []
    assert not manager.has_upload_filters


# the filters `photos`


@pytest.mark.parametrize(
    ("width", "height", "is_taken"),
    [(300, 300, True), (299, 4000, False), (4000, 299, False), (4000, 300, True)],
)
@pytest.mark.gen_test
async def test_photos_refuses_what_is_too_small(
    managers: ManagerFactory, width: int, height: int, is_taken: bool
) -> None:
    """The shorter side counts, the least one is taken, and the client reads what was wrong."""
    manager = managers.open(filter_photos, variables={"PLUGIN_PHOTOS_MIN_SIDE_PIXELS": "300"})
    if is_taken:
        await manager.validate_upload(make_upload(width, height))
        return
    with pytest.raises(ValidationError) as caught:
        await manager.validate_upload(make_upload(width, height))
    assert caught.value.details == [
        {"field": "image", "message": f"Must be at least 300 pixels wide and high, this one is {width} x {height}"}
    ]


@pytest.mark.gen_test
async def test_photos_drops_what_the_ai_is_not_sure_of(managers: ManagerFactory) -> None:
    """Below the limit an attribute is unknown, at the limit it stays; the processed image is kept."""
    image = ProcessedImage(b"image", "image/webp")
    found = Analysis(Attribute("Nike", 0.8), Attribute("501", 0.79), Attribute("red", 0.1), processed_image=image)
    manager = managers.open(
        filter_photos,
        providers={"only": lambda request: found},
        variables={"PLUGIN_PHOTOS_MIN_CONFIDENCE": "0.8"},
    )
    assert await analyze(manager) == Analysis(Attribute("Nike", 0.8), UNKNOWN, UNKNOWN, processed_image=image)
    found = Analysis(Attribute("Nike", 0.9), Attribute("501", 0.9), None)
    assert await analyze(manager) == found


@pytest.mark.parametrize(
    ("variable", "value"),
    [("MIN_SIDE_PIXELS", "-1"), ("MIN_SIDE_PIXELS", "many"), ("MIN_CONFIDENCE", "1.1"), ("MIN_CONFIDENCE", "-0.1")],
)
def test_photos_with_values_that_make_no_sense_stop_the_start(
    managers: ManagerFactory, variable: str, value: str
) -> None:
    """Found at start, with the variable's name."""
    with pytest.raises(ConfigurationError, match=f"The plugin 'photos' cannot start: PLUGIN_PHOTOS_{variable}: "):
        managers.open(filter_photos, variables={f"PLUGIN_PHOTOS_{variable}": value})
