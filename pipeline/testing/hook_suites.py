"""The suites of plugins with hooks: filters and observers."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from inspect import iscoroutinefunction, signature
from typing import Any

import pluggy
import pytest

from pipeline.demo import pictures
from pipeline.errors import DependencyUnavailable, NotReady, RetryableJobError, ValidationError
from pipeline.hooks import UNKNOWN, Analysis, AnalyzeRequest, Attribute, JobEvent, UploadFacts, specs
from pipeline.hooks.bound_plugin import REGISTER_ROUTES
from pipeline.hooks.checks import find_fault, result_fault
from pipeline.hooks.context import PluginContext
from pipeline.hooks.kinds import FILTERS, OBSERVERS, TRANSFORM, VALIDATE
from pipeline.hooks.load_checks import hookspecs
from pipeline.hooks.routes import RouteList
from pipeline.settings import Settings, load
from pipeline.testing.check_tests import CheckTests
from pipeline.testing.findings import describe, expect, fail_test, not_ready
from pipeline.testing.outcomes import outcome_of
from pipeline.testing.routes import RouteTests
from pipeline.testing.samples import ASSET_ID, JOB_ID, UNKNOWN_CATEGORY
from pipeline.testing.suite import Call

AT = datetime(2026, 1, 31, 12, tzinfo=UTC)
AWAY = "as no upload can be checked"
REACHED = "can the service that it needs be reached?"
REFUSE = "raise ValidationError to refuse an upload, return nothing to accept it"


class HookSuite(RouteTests, CheckTests):
    """The common part of the suites of filters and observers.

    hooks: the plugin must have at least one of them.
    """

    hooks: Sequence[str] = ()

    @pytest.fixture
    def plugin(self) -> object:
        """The plugin under test: the module or object that the entry point names."""
        raise NotImplementedError("define a fixture `plugin`")

    @pytest.fixture
    def plugin_settings(self) -> Settings:
        """The `settings` that hooks get: those of the environment. Override it for a plugin with settings of its own:
        `Settings().with_plugin_variables({"PLUGIN_X_Y": "..."})`.
        """
        return load()

    @pytest.fixture
    def context_settings(self, plugin_settings: Settings, tmp_path: Any) -> Settings:
        """The same in `start`, with a DATA_DIR of the test."""
        return plugin_settings.model_copy(update={"data_dir": tmp_path / "data"})

    @pytest.fixture(autouse=True)
    def _in_use(
        self, _watched: None, loop: Any, context: PluginContext, plugin: object, call: Call
    ) -> Iterator[None]:
        yield from self.while_started(plugin, call, context, loop)

    @pytest.fixture
    def hook(self, plugin: object, plugin_settings: Settings) -> Mapping[str, Callable[..., Any]]:
        """The hooks that the plugin has, by name, as functions of the arguments before `settings`."""
        return hooks_of(plugin, plugin_settings, self.hooks)

    def _register(self, plugin: Any, routes: RouteList) -> None:
        for register in hooks_of(plugin, self.service_settings, [REGISTER_ROUTES]).values():
            register(routes)

    def test_plugin_has_such_hooks(self, plugin: object, hook: Mapping[str, Any]) -> None:
        """pluggy finds them: each is marked, and has the name and arguments of the reference."""
        named = [name for name in hookspecs() if callable(getattr(plugin, name, None))]
        unmarked = [name for name in named if not hasattr(getattr(plugin, name), f"{specs.PROJECT}_impl")]
        expect(not unmarked, f"{', '.join(unmarked)} is never called: write @hookimpl above it")
        expect(hook, f"it has none of {', '.join(self.hooks)}: write one, with @hookimpl above it")


class FilterSuite(HookSuite):
    """Give it a fixture `plugin`: a module, or an object, with `validate_upload` or `transform_analysis`."""

    hooks = FILTERS

    @pytest.fixture
    def upload(self) -> UploadFacts:
        """An upload that the filter may accept or refuse: a photo of a sneaker."""
        return self._facts("sneaker", pictures()[2][0].read_bytes())

    def test_validate_upload_accepts_or_refuses(
        self, hook: Mapping[str, Any], upload: UploadFacts, call: Call, call_together: Call
    ) -> None:
        """Each upload is accepted or refused with a text; equal uploads get equal answers, also five at once."""
        if VALIDATE not in hook:
            return
        various = [upload, self._facts("other", pictures()[0][0].read_bytes())]
        first = [self._verdict(call, hook, each) for each in various]
        answers = [self._verdict(call, hook, each) for each in various]
        expect(first == answers, "validate_upload decides otherwise when the same upload comes again")
        outcomes = call_together(*((outcome_of(hook[VALIDATE]), each) for each in [*various, *various, upload]))
        at_once = [self._refusal_text(each, " when five calls ran at once") for each in outcomes]
        expect(at_once[:2] == first, "validate_upload decides otherwise when calls run at once: store nothing in self")

    def test_validate_upload_decides_about_odd_uploads(self, hook: Mapping[str, Any], call: Call) -> None:
        """An unknown category, one pixel, unreadable bytes: each is accepted or refused."""
        if VALIDATE not in hook:
            return
        if self.class_state.get(AWAY):
            pytest.skip(AWAY)
        odd = b"not an image"
        for facts, what in (
            (self._facts(UNKNOWN_CATEGORY, pictures()[0][0].read_bytes()), f"one of the category {UNKNOWN_CATEGORY!r}"),
            (self._facts("other", odd, width=1, height=1), f"one of {len(odd)} bytes that are no image"),
        ):
            self._verdict(call, hook, facts, f" for {what}")

    def test_transform_analysis_returns_an_analysis_or_none(
        self, hook: Mapping[str, Any], call: Call, call_together: Call
    ) -> None:
        """For every result of a provider: all known, nothing known; the argument itself is not changed."""
        if TRANSFORM not in hook:
            return
        known = Analysis(Attribute("Nike", 0.9), Attribute("Air Max 90", 0.8), Attribute("red", 0.7), extra={"a": [1]})
        for analysis in (known, Analysis(), Analysis(Attribute("Nike", 0.9), UNKNOWN, extra={"a": [1]})):
            self._changed(call, hook, analysis, _request("sneaker"))
        self._changed(call, hook, known, _request(UNKNOWN_CATEGORY))
        outcomes = call_together(*((outcome_of(hook[TRANSFORM]), known, _request("sneaker")) for _ in range(5)))
        alike = len({repr(each) for each in outcomes}) == 1
        expect(alike, "transform_analysis answers otherwise when calls run at once: store nothing in self")

    def _changed(self, call: Call, hook: Mapping[str, Any], analysis: Analysis, request: AnalyzeRequest) -> None:
        before = copy.deepcopy(analysis)
        try:
            changed = call(hook[TRANSFORM], analysis, request)
        except NotReady as error:
            fail_test(not_ready(error))
        except Exception as error:
            fail_test(f"transform_analysis raised {describe(error)}: return None for values it does not know")
        is_same = repr(analysis) == repr(before)
        expect(is_same, "transform_analysis changes the analysis it is given: return dataclasses.replace(...)")
        if changed is not None and (fault := result_fault(changed, TRANSFORM) or find_fault(changed)):
            fail_test(f"{fault}: return an Analysis as in the reference, or None to leave it unchanged")

    def _verdict(self, call: Call, hook: Mapping[str, Any], facts: UploadFacts, what: str = "") -> str:
        return self._refusal_text(call(outcome_of(hook[VALIDATE]), facts), what)

    def _refusal_text(self, outcome: object, what: str = "") -> str:
        """Return "" for an accepted upload, else the text of the refusal.

        what: the kind of upload, for the finding.
        """
        so = "the upload is refused with 503" if self._is_required() else "the upload goes on"
        cure = "write a plain def, or use asyncio.to_thread"
        expect(not self._read_on_loop, f"validate_upload reads the image on the event loop: {cure}")
        if isinstance(outcome, ValidationError):
            expect(outcome.message, "validate_upload refuses without a word: give the reason in the ValidationError")
            return str(outcome.message)
        if isinstance(outcome, NotReady):
            fail_test(not_ready(outcome))
        if isinstance(outcome, BaseException):
            is_away = isinstance(outcome, (DependencyUnavailable, RetryableJobError)) and not what
            self.class_state[AWAY] = is_away
            fail_test(f"validate_upload raised {describe(outcome)}{what}, so {so}: {REACHED if is_away else REFUSE}")
        expect(outcome is None, f"validate_upload returns {outcome!r}{what}, so {so}: {REFUSE}")
        return ""

    def _is_required(self) -> bool:
        return self.plugin_name in self.service_settings.filters_required

    def _facts(self, category: str, content: bytes, width: int = 640, height: int = 480) -> UploadFacts:
        self._read_on_loop = False
        loops_thread = threading.get_ident()

        def read() -> bytes:
            self._read_on_loop |= threading.get_ident() == loops_thread
            return content

        return UploadFacts("user-1", category, "image/jpeg", len(content), width, height, read)


class ObserverSuite(HookSuite):
    """Give it a fixture `plugin`: a module, or an object, with `job_enqueued`, `job_started`, `job_retrying` or
    `job_finished`.
    """

    hooks = OBSERVERS

    @pytest.mark.parametrize("name", OBSERVERS)
    def test_observer_accepts_every_event(self, name: str, hook: Mapping[str, Any], call: Call) -> None:
        """Every event of a job, each twice, because it may be repeated after a crash."""
        if name not in hook:
            return
        for event in (*_events(name), *_events(name)):
            try:
                call(hook[name], event)
            except NotReady as error:
                fail_test(not_ready(error))
            except Exception as error:
                fail_test(f"{name} raised {describe(error)}: after five such failures it is not called for a while")


def hooks_of(plugin: object, settings: Settings, names: Sequence[str]) -> dict[str, Callable[..., Any]]:
    """Return the hooks that the plugin has, as functions of the arguments before `settings`."""
    registry = pluggy.PluginManager(specs.PROJECT)
    registry.add_hookspecs(specs)
    try:
        registry.register(plugin, name="suite")
        registry.check_pending()
    except pluggy.PluginValidationError as error:
        fail_test(f"pluggy refuses it: {' '.join(str(error).split())}; see the reference for names and arguments")
    implementations = {name: getattr(registry.hook, name).get_hookimpls() for name in names}
    return {name: _hook_call(name, found[0], settings) for name, found in implementations.items() if found}


def _hook_call(name: str, implementation: Any, settings: Settings) -> Callable[..., Any]:
    """Return a function that calls the hook with the arguments that it names, `async def` if the hook is."""
    names = list(signature(hookspecs()[name]).parameters)

    def wanted(args: tuple[Any, ...]) -> list[Any]:
        given = dict(zip(names, (*args, settings), strict=True))
        return [given[argument] for argument in implementation.argnames]

    async def awaited(*args: Any) -> Any:
        return await implementation.function(*wanted(args))

    def plain(*args: Any) -> Any:
        return implementation.function(*wanted(args))

    function = awaited if iscoroutinefunction(implementation.function) else plain
    function.__name__ = name
    return function


def _request(category: str) -> AnalyzeRequest:
    return AnalyzeRequest("https://images.example/original.jpg", category, ASSET_ID, JOB_ID, "request-1", 1, 30)


def _events(name: str) -> Iterator[JobEvent]:
    def event(**more: Any) -> JobEvent:
        return JobEvent(JOB_ID, ASSET_ID, "user-1", "sneaker", "request-1", AT, **more)

    if name == "job_enqueued":
        yield event()
    elif name == "job_started":
        yield event(attempt=1)
    elif name == "job_retrying":
        yield event(attempt=1, error="AI service unavailable", delay_ms=2000, seconds=1.5)
    else:
        yield event(attempt=1, outcome="completed", seconds=1.5)
        yield event(attempt=3, outcome="failed", error="AI service unavailable", seconds=0.2)
        yield event(outcome="cancelled")
