"""The suite of AI providers."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from time import monotonic
from typing import Any

import pytest
from PIL import Image

from pipeline.demo import pictures
from pipeline.errors import JobError, NotReady, RetryableJobError
from pipeline.hooks import AIProvider, Analysis, AnalyzeRequest, ReportingAIProvider
from pipeline.hooks.checks import find_fault
from pipeline.hooks.context import PluginContext
from pipeline.hooks.limits import Limits, declared_by
from pipeline.settings import load
from pipeline.testing.check_tests import CheckTests
from pipeline.testing.findings import IN_VARIABLES, describe, expect, fail_test, not_ready
from pipeline.testing.pacing import CallPacing
from pipeline.testing.routes import RouteTests
from pipeline.testing.samples import ASSET_ID, JOB_ID, UNKNOWN_CATEGORY
from pipeline.testing.suite import Call, api_version_of

RAISE_THESE = "raise RetryableJobError or PermanentJobError"
NONE_SUCCEEDS, SUCCEEDS = "as no call succeeds", "a call succeeds"


# Many methods because each test, fixture and override of the suite is one.
class AIProviderSuite(RouteTests, CheckTests):
    """Give it a fixture `provider`; override `analyze_request` if the provider needs another photo.

    It stays within the limits that the provider declares: only its `categories`, at most its `rate`, and at most
    `max_in_flight` calls at once.
    """

    @pytest.fixture
    def provider(self) -> AIProvider | ReportingAIProvider:
        """The provider under test, new for each test."""
        raise NotImplementedError("define a fixture `provider`")

    @pytest.fixture(autouse=True)
    def _in_use(
        self, _watched: None, loop: Any, context: PluginContext, provider: AIProvider, call: Call
    ) -> Iterator[None]:
        self._pace = CallPacing(self._limits(provider), self.class_state)
        yield from self.while_started(provider, call, context, loop)

    @pytest.fixture
    def image_url(self) -> str:
        """The URL of the photo; override it for a provider that fetches it."""
        return "https://images.example/original.jpg"

    @pytest.fixture
    def categories(self) -> Sequence[str]:
        """The categories of CATEGORIES."""
        return load().categories

    @pytest.fixture
    def analyze_request(self, provider: AIProvider, image_url: str, categories: Sequence[str]) -> AnalyzeRequest:
        """A photo the provider can analyze: of a sneaker, its bytes only when the provider says `needs_image`."""
        category = next(iter(self._asked(provider, categories)), "other")
        return AnalyzeRequest(
            image_url=image_url,
            category=category,
            asset_id=ASSET_ID,
            job_id=JOB_ID,
            request_id="request-1",
            attempt=1,
            timeout_seconds=self.limit_seconds,
            image=_photo(category) if getattr(provider, "needs_image", False) else None,
            content_type="image/jpeg",
        )

    def test_analyze_returns_a_valid_analysis(
        self, provider: AIProvider, analyze_request: AnalyzeRequest, categories: Sequence[str], call: Call
    ) -> None:
        """The result follows the contract: texts, confidences from 0 to 1, at most one processed image."""
        try:
            analysis = self._analysis(provider, analyze_request, call)
        except JobError as error:
            self._expect_others_succeed(call, provider, analyze_request, categories, error)
            fail_test(f"analyze raised {describe(error)} for a good photo")
        _, faults = self._limits(provider).split_extra(analysis.extra)
        expect(not faults, f"analyze returns an extra that its extra_fields do not allow: {'; '.join(faults)}")
        if analysis.processed_image is not None:
            expect(_is_image(analysis.processed_image.content), "processed_image holds bytes that are no image")

    def test_analyze_answers_every_category(
        self, provider: AIProvider, analyze_request: AnalyzeRequest, categories: Sequence[str], call: Call
    ) -> None:
        """No category is an error, not even an unknown one, because operators choose the categories."""
        self._need_a_call_that_succeeds()
        for category in self._asked(provider, categories):
            asked = replace(analyze_request, category=category)
            try:
                _expect_valid(call(provider.analyze, asked))
                self.class_state[SUCCEEDS] = True
            except Exception as error:
                self._expect_others_succeed(call, provider, asked, categories, error)
                fail_test(
                    f"analyze raised {describe(error)} for the category {category!r}: "
                    "answer it as it does `other`, or declare `categories`"
                )

    def test_analyze_answers_five_calls_at_once(
        self,
        provider: AIProvider,
        analyze_request: AnalyzeRequest,
        categories: Sequence[str],
        call: Call,
        call_together: Call,
    ) -> None:
        """Five job slots share one provider, so its calls must not affect each other."""
        self._need_a_call_that_succeeds()
        requests = self._various(provider, analyze_request, categories)
        try:
            results = call_together(*((provider.analyze, request) for request in requests))
        except Exception as error:
            if self.fails_alone(call, provider.analyze, requests[0]):
                fail_test(_failed(error))
            fail_test(f"analyze raised {describe(error)} when {len(requests)} calls ran at once: {IN_VARIABLES}")
        for result in results:
            _expect_valid(result)
        at_once = [repr(result) for result in results]
        alone = [repr(self._analysis(provider, request, call)) for request in requests[:2]]
        expect(
            [repr(result) for result in results] == at_once,
            "analyze changes a result that it has returned: make a new Analysis and `extra` in each call",
        )
        # Mixed-up calls can be seen only if the result depends on the photo and is the same each time.
        if alone != at_once[:2] and alone[0] != alone[1]:
            repeated = [repr(self._analysis(provider, request, call)) for request in requests[:2]]
            expect(repeated != alone, f"analyze answers otherwise when calls run at once: {IN_VARIABLES}")

    def test_analyze_raises_only_job_errors_for_a_broken_image(
        self, provider: AIProvider, analyze_request: AnalyzeRequest, call: Call
    ) -> None:
        """Bytes of no image, or of an unusual one, give an analysis or a JobError, never another exception."""
        self._need_a_call_that_succeeds()
        for content, what in self._odd_images(provider):
            request = replace(analyze_request, image=content)
            try:
                self._analysis(provider, request, call, what)
            except JobError as error:
                expect(error.message, f"analyze raised {type(error).__name__} without words for the owner of the photo")

    def test_optional_attributes_have_their_types(self, provider: AIProvider) -> None:
        """The declared attributes are valid: a bool, numbers from 1, names, a Rate."""
        needs = getattr(provider, "needs_image", False)
        expect(isinstance(needs, bool), f"needs_image is {needs!r}: set True or False")
        threads = getattr(provider, "max_concurrency", 1)
        expect(isinstance(threads, int) and threads >= 1, f"max_concurrency is {threads!r}: set a whole number from 1")
        sees = getattr(provider, "sees", "")
        expect(isinstance(sees, str), f"sees is {sees!r}: write a sentence")
        if api_version_of(provider) > 1:
            expect(not (faults := declared_by(provider).faults), "; ".join(faults))

    def _need_a_call_that_succeeds(self) -> None:
        if self.class_state.get(NONE_SUCCEEDS):
            pytest.skip(NONE_SUCCEEDS)

    def _expect_others_succeed(
        self, call: Call, provider: AIProvider, request: AnalyzeRequest, categories: Sequence[str], error: Exception
    ) -> None:
        """If a photo of another category fails in the same way, report that once, without a guess at the reason."""
        if self.class_state.get(SUCCEEDS):
            return
        asked = sorted(self._asked(provider, categories), key=lambda each: each != "other")
        other = next((each for each in asked if each != request.category), request.category)
        try:
            call(provider.analyze, replace(request, category=other))
        except Exception as second:
            if type(second) is type(error):
                self.class_state[NONE_SUCCEEDS] = True
                fail_test(_failed(error))

    def _limits(self, provider: object) -> Limits:
        return declared_by(provider).limits if api_version_of(provider) > 1 else Limits()

    def _asked(self, provider: object, categories: Sequence[str]) -> list[str]:
        """Return the categories that the provider is asked about, that of the photo first if it is one of them."""
        declared = self._limits(provider).categories
        asked = [*categories, UNKNOWN_CATEGORY] if declared is None else sorted(declared)
        return sorted(asked, key=lambda each: each != "sneaker")

    def _various(
        self, provider: AIProvider, request: AnalyzeRequest, categories: Sequence[str]
    ) -> list[AnalyzeRequest]:
        """Return requests that differ as much as possible."""
        asked = self._asked(provider, categories)
        made = []
        for number in range(self._pace.calls_at_once):
            category = asked[number % len(asked)]
            asset_id = f"{ASSET_ID[:-1]}{number}"
            other = replace(request, category=category, asset_id=asset_id, job_id=f"ai-processing:{asset_id}")
            made.append(replace(other, image=_photo(category)) if request.image is not None else other)
        return made

    def _odd_images(self, provider: AIProvider) -> Iterator[tuple[bytes, str]]:
        yield b"not an image", "bytes that are no image"
        if getattr(provider, "needs_image", False):
            types = self._limits(provider).content_types
            for name, mode in (("png", "RGBA"), ("webp", "RGB"), ("gif", "P")):
                if types is None or f"image/{name}" in types:
                    yield _image(name, mode), f"a {name.upper()}"

    async def make_call(self, method: Call, *args: Any) -> Any:
        try:
            return await super().make_call(method, *args)
        except RetryableJobError as error:
            if getattr(method, "__name__", "") != "analyze" or not self._may_wait(error.retry_after_seconds):
                raise
        return await super().make_call(method, *args)

    def _may_wait(self, seconds: float | None) -> bool:
        """Return whether to call the provider again after that time, as the service does."""
        if not seconds or not self.wait_budget_seconds:
            return False
        is_late = self.deadline is not None and monotonic() + seconds > self.deadline
        return not is_late and self._pace.waits(seconds, self.wait_budget_seconds)

    def call_slot(self, name: str) -> AbstractAsyncContextManager[None]:
        return self._pace if name == "analyze" else super().call_slot(name)

    def _analysis(
        self, provider: AIProvider, request: AnalyzeRequest, call: Call, what: str = "a good photo"
    ) -> Analysis:
        """Return the checked analysis, or raise the provider's JobError."""
        before = repr(request)
        try:
            result = call(provider.analyze, request)
        except JobError:
            raise
        except NotReady as error:
            self.class_state[NONE_SUCCEEDS] = True
            fail_test(not_ready(error))
        except Exception as error:
            fail_test(f"analyze raised {describe(error)} for {what}: {RAISE_THESE}")
        self.class_state[SUCCEEDS] = True
        expect(repr(request) == before, "analyze changes its request, which others read: copy it first")
        _expect_valid(result)
        return result  # type: ignore[no-any-return]


def _failed(error: Exception) -> str:
    if isinstance(error, NotReady):
        return not_ready(error)
    cure = "" if isinstance(error, JobError) else f" for a good photo: {RAISE_THESE}"
    return f"analyze raised {describe(error)}{cure}"


def _expect_valid(result: object) -> None:
    fault = find_fault(result)
    expect(fault is None, f"{fault}: see Analysis in the reference")


def _photo(category: str) -> bytes:
    files = {name: path for path, name in pictures()}
    return files.get(category, files["other"]).read_bytes()


def _image(kind: str, mode: str) -> bytes:
    file = io.BytesIO()
    Image.new(mode, (320, 240)).save(file, kind.upper())
    return file.getvalue()


def _is_image(content: bytes) -> bool:
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.verify()
    except Exception:
        return _is_heif(content)
    return True


def _is_heif(content: bytes) -> bool:
    return content[4:8] == b"ftyp"  # HEIC, AVIF
