"""Conformance suites for plugin authors: subclass one, give it one fixture, run pytest.

    class TestMyProvider(AIProviderSuite):
        @pytest.fixture
        def provider(self) -> AIProvider:
            return MyProvider(...)

The fixture `sandbox` is what the service passes to a `register_` hook, for a plugin that works in it.
Each test calls the plugin as the pipeline does, be its methods `async def` or plain `def`. Needs pytest, no server.
`run.py plugins verify` runs the same suites on a plugin as it is configured.
"""

from __future__ import annotations

import asyncio
import copy
import io
import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from inspect import isawaitable, iscoroutinefunction
from typing import Any, BinaryIO, cast

import pytest

from pipeline.demo import pictures
from pipeline.errors import JobError
from pipeline.hooks import AIProvider, AnalyzeRequest, Notification, Notifier, Sandbox, StorageBackend, StoredImage
from pipeline.hooks.checks import find_fault, is_web_url
from pipeline.hooks.progress import Reporting, takes_progress
from pipeline.hooks.threads import DaemonThreads
from pipeline.sandbox.sandbox import Sandbox as RealSandbox

Call = Callable[..., Any]
# The smallest complete GIF: one transparent pixel.
GIF = bytes.fromhex("47494638396101000100800000000000ffffff21f90401000000002c00000000010001000002024401003b")
# A storage tells the time by a clock of its own.
CLOCKS_APART = timedelta(hours=1)
TIMESTAMP = "2026-01-31T12:00:00.123Z"
SUCCESS_EVENT = {
    "event": "asset_processed",
    "assetId": "65f0c0ffee65f0c0ffee65f0",
    "status": "active",
    "aiMetadata": {
        "brand": {"value": "Nike", "confidence": 0.93},
        "model": {"value": "Air Max 90", "confidence": 0.88},
    },
    "processedImageUrl": "https://images.example/processed.webp",
    "timestamp": TIMESTAMP,
}
FAILURE_EVENT = {
    "event": "asset_processed",
    "assetId": "65f0c0ffee65f0c0ffee65f1",
    "status": "failed",
    "error": "AI service unavailable after 3 attempts",
    "timestamp": TIMESTAMP,
}


class RecordingRooms:
    """A RoomPublisher that keeps what was published, as (room, event)."""

    def __init__(self) -> None:
        self.published: list[tuple[str, Mapping[str, Any]]] = []

    async def publish(self, room: str, event: Mapping[str, Any]) -> None:
        """Keep the event."""
        self.published.append((room, event))


class PluginSuite:
    """What all suites share: one loop per test, on which `call(method, *args)` runs or awaits a plugin's method."""

    call_seconds = 30.0

    @pytest.fixture
    def loop(self) -> Iterator[asyncio.AbstractEventLoop]:
        """The loop the plugin lives on during one test; never the current one, which may belong to other tests."""
        loop = asyncio.new_event_loop()
        yield loop
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()

    @pytest.fixture
    def sandbox(self, loop: asyncio.AbstractEventLoop) -> Iterator[Sandbox]:
        """The child processes the service lends its plugins, real ones."""
        sandbox = RealSandbox()
        yield sandbox
        loop.run_until_complete(sandbox.close())

    @pytest.fixture
    def call(self, loop: asyncio.AbstractEventLoop) -> Call:
        """Return a function that calls a method and returns its result or raises its exception."""
        return lambda method, *args: loop.run_until_complete(self._call(method, *args))

    @pytest.fixture
    def call_together(self, loop: asyncio.AbstractEventLoop) -> Call:
        """Return a function that makes several calls, (method, *args) each, at once and returns their results."""

        async def together(calls: list[tuple[Any, ...]]) -> list[Any]:
            return await asyncio.gather(*(self._call(*each) for each in calls))

        return lambda *calls: loop.run_until_complete(together(list(calls)))

    async def _call(self, method: Callable[..., Any], *args: Any) -> Any:
        is_async = iscoroutinefunction(method)
        if takes_progress(method):
            method = partial(method, progress=Reporting())
        async with asyncio.timeout(self.call_seconds):
            if is_async:
                return await method(*args)
            # A daemon thread: one that hangs fails its test and must not keep pytest from ending.
            thread = DaemonThreads(1, "suite")
            try:
                result = await asyncio.wrap_future(thread.submit(partial(method, *args)))
            finally:
                thread.shutdown()
            return await result if isawaitable(result) else result

    def _close(self, plugin: object, call: Call) -> None:
        if close := getattr(plugin, "close", None):
            call(close)


class AIProviderSuite(PluginSuite):
    """Give it a fixture `provider`; override `analyze_request` when it must be shown another photo."""

    @pytest.fixture
    def provider(self) -> AIProvider:
        """The provider under test, new for each test."""
        raise NotImplementedError("define a fixture `provider`")

    @pytest.fixture(autouse=True)
    def _closed(self, provider: AIProvider, call: Call) -> Iterator[None]:
        yield
        self._close(provider, call)

    @pytest.fixture
    def image_url(self) -> str:
        """Where the photo can be fetched; to be overridden for a provider that does so."""
        return "https://images.example/original.jpg"

    @pytest.fixture
    def analyze_request(self, provider: AIProvider, image_url: str) -> AnalyzeRequest:
        """A photo the provider can analyze: of a sneaker, its bytes only when the provider says `needs_image`."""
        photo, category = next(each for each in pictures() if each[1] == "sneaker")
        return AnalyzeRequest(
            image_url=image_url,
            category=category,
            asset_id="65f0c0ffee65f0c0ffee65f0",
            job_id="ai-processing:65f0c0ffee65f0c0ffee65f0",
            request_id="request-1",
            attempt=1,
            timeout_seconds=self.call_seconds,
            image=photo.read_bytes() if getattr(provider, "needs_image", False) else None,
        )

    def test_analyze_returns_a_valid_analysis(
        self, provider: AIProvider, analyze_request: AnalyzeRequest, call: Call
    ) -> None:
        """The result keeps the contract: texts, confidences from 0 to 1, at most one processed image."""
        assert find_fault(call(provider.analyze, analyze_request)) is None

    def test_analyze_answers_every_category(
        self, provider: AIProvider, analyze_request: AnalyzeRequest, call: Call
    ) -> None:
        """No category is an error, even one the provider knows nothing about."""
        for category in ("sneaker", "lego", "camera", "other"):
            assert find_fault(call(provider.analyze, replace(analyze_request, category=category))) is None

    def test_analyze_bears_five_calls_at_once(
        self, provider: AIProvider, analyze_request: AnalyzeRequest, call_together: Call
    ) -> None:
        """Five job slots share one provider, so its calls must not disturb each other."""
        results = call_together(*[(provider.analyze, analyze_request)] * 5)
        assert [find_fault(result) for result in results] == [None] * 5

    def test_analyze_raises_only_job_errors_for_a_broken_image(
        self, provider: AIProvider, analyze_request: AnalyzeRequest, call: Call
    ) -> None:
        """Bytes that are no image give an analysis, a RetryableJobError or a PermanentJobError, never anything else."""
        try:
            result = call(provider.analyze, replace(analyze_request, image=b"not an image"))
        except JobError as error:
            assert error.message
        else:
            assert find_fault(result) is None

    def test_optional_attributes_have_their_types(self, provider: AIProvider) -> None:
        """needs_image is a bool and max_concurrency, if there is one, a positive number."""
        assert isinstance(getattr(provider, "needs_image", False), bool)
        assert int(getattr(provider, "max_concurrency", 1)) >= 1


class StorageBackendSuite(PluginSuite):
    """Give it a fixture `storage`: an empty storage, or one where nothing begins with "suite/".

    What a test saves there it deletes again.
    """

    content_type = "image/gif"
    content = GIF

    @pytest.fixture
    def storage(self) -> StorageBackend:
        """The storage under test, new for each test."""
        raise NotImplementedError("define a fixture `storage`")

    @pytest.fixture(autouse=True)
    def _closed(self, storage: StorageBackend, call: Call) -> Iterator[None]:
        self._saved: set[str] = set()
        yield
        for public_id in self._saved:
            with suppress(Exception):  # whether it can delete is what a test asks
                call(storage.delete, public_id)
        self._close(storage, call)

    def _save(self, call: Call, storage: StorageBackend, public_id: str, file: BinaryIO, content_type: str) -> object:
        self._saved.add(public_id)
        return call(storage.save, public_id, file, content_type)

    def _read(self, call: Call, storage: StorageBackend, public_id: str) -> bytes:
        with call(storage.open, public_id) as file:
            content = file.read()
        assert isinstance(content, bytes)
        return content

    def test_save_returns_a_url_and_open_the_same_bytes(self, storage: StorageBackend, call: Call) -> None:
        """What was saved comes back unchanged; the URL is an absolute http(s) one."""
        url = self._save(call, storage, "suite/65f0/original", io.BytesIO(self.content), self.content_type)
        assert is_web_url(url)
        assert self._read(call, storage, "suite/65f0/original") == self.content

    def test_save_reads_from_the_start_of_the_file(self, storage: StorageBackend, call: Call) -> None:
        """A file that was read before is still stored whole."""
        file = io.BytesIO(self.content)
        file.read()
        self._save(call, storage, "suite/65f1/original", file, self.content_type)
        assert self._read(call, storage, "suite/65f1/original") == self.content

    def test_save_replaces_what_was_there(self, storage: StorageBackend, call: Call) -> None:
        """A repeated job saves again under the same id, perhaps with another content type."""
        self._save(call, storage, "suite/65f2/processed-1", io.BytesIO(b"older"), "image/png")
        self._save(call, storage, "suite/65f2/processed-1", io.BytesIO(self.content), self.content_type)
        assert self._read(call, storage, "suite/65f2/processed-1") == self.content

    def test_saves_at_once_do_not_mix(self, storage: StorageBackend, call: Call, call_together: Call) -> None:
        """Ten images saved at the same time each keep their own bytes."""
        images = {f"suite/65f3/image-{number}": self.content + bytes([number]) for number in range(10)}
        self._saved.update(images)
        call_together(*[(storage.save, name, io.BytesIO(image), self.content_type) for name, image in images.items()])
        assert {name: self._read(call, storage, name) for name in images} == images

    def test_open_of_a_missing_image_raises_file_not_found(self, storage: StorageBackend, call: Call) -> None:
        """FileNotFoundError tells "gone" from "cannot be reached"."""
        with pytest.raises(FileNotFoundError):
            call(storage.open, "suite/missing/original")

    def test_delete_removes_only_that_image_and_bears_repetition(self, storage: StorageBackend, call: Call) -> None:
        """After delete the image is gone, its neighbour is not, and deleting again does nothing."""
        for name in ("suite/65f4/original", "suite/65f4/original-2"):
            self._save(call, storage, name, io.BytesIO(self.content), self.content_type)
        for _ in range(2):
            call(storage.delete, "suite/65f4/original")
        with pytest.raises(FileNotFoundError):
            call(storage.open, "suite/65f4/original")
        assert self._read(call, storage, "suite/65f4/original-2") == self.content

    def test_url_shows_the_saved_bytes(self, storage: StorageBackend, call: Call) -> None:
        """If it has `url`: an absolute http(s) URL that shows the image, made without looking whether there is one."""
        if not hasattr(storage, "url"):
            pytest.skip("the storage has no url, which is optional")
        self._save(call, storage, "suite/65f8/original", io.BytesIO(self.content), self.content_type)
        url = call(storage.url, "suite/65f8/original", 60)
        assert is_web_url(url)
        assert is_web_url(call(storage.url, "suite/missing/original", 60))
        if (fetched := self.fetch(url)) is not None:
            assert fetched == self.content

    def fetch(self, url: str) -> bytes | None:
        """Return what the URL shows; None, as here, leaves that out. Override it where the URL can be reached."""
        return None

    def test_list_yields_the_images_under_the_prefix(self, storage: StorageBackend, call: Call) -> None:
        """If it has `list`: each image once, with when it was saved; no deleted one, none outside of the prefix."""
        if not hasattr(storage, "list"):
            pytest.skip("the storage has no list, which is optional")
        names = [f"suite/65f5/{name}" for name in ("original-1", "original-2", "processed-1")]
        saved_after = datetime.now(UTC) - CLOCKS_APART
        for name in (*names, "suite/65f50/original-1", "suite/65f6/original-1"):
            self._save(call, storage, name, io.BytesIO(self.content), self.content_type)
        call(storage.delete, names[1])
        found = {prefix: self._list(call, storage, prefix) for prefix in ("suite/65f5/", "suite/65f7/", "suite/", "")}
        assert sorted(each.public_id for each in found["suite/65f5/"]) == [names[0], names[2]]
        assert found["suite/65f7/"] == []
        assert len([each for each in found["suite/"] if each.public_id.startswith("suite/65f")]) == 4
        assert {*names[::2], "suite/65f6/original-1"} < {each.public_id for each in found[""]}
        assert all(saved_after < each.stored_at < datetime.now(UTC) + CLOCKS_APART for each in found["suite/65f5/"])

    def _list(self, call: Call, storage: Any, prefix: str) -> Sequence[StoredImage]:
        async def collect(images: AsyncIterator[StoredImage]) -> list[StoredImage]:
            return [image async for image in images]

        found = call(storage.list, prefix)
        images = call(collect if hasattr(found, "__aiter__") else list, found)
        assert all(isinstance(image, StoredImage) for image in images)
        return cast(list[StoredImage], images)

    def test_check_returns_when_the_storage_is_usable(self, storage: StorageBackend, call: Call) -> None:
        """Readiness asks again and again; a usable storage returns nothing each time."""
        assert [call(storage.check) for _ in range(3)] == [None] * 3


class NotifierSuite(PluginSuite):
    """Give it a fixture `notifier`; the fixture `rooms` shows what it published."""

    @pytest.fixture
    def notifier(self) -> Notifier:
        """The notifier under test, new for each test."""
        raise NotImplementedError("define a fixture `notifier`")

    @pytest.fixture(autouse=True)
    def _closed(self, notifier: Notifier, call: Call) -> Iterator[None]:
        yield
        self._close(notifier, call)

    @pytest.fixture
    def rooms(self) -> RecordingRooms:
        """The rooms the notifier may publish to."""
        return RecordingRooms()

    @pytest.mark.parametrize("event", [SUCCESS_EVENT, FAILURE_EVENT], ids=["success", "failure"])
    def test_notify_bears_repetition_and_leaves_the_event_alone(
        self, notifier: Notifier, rooms: RecordingRooms, call: Call, event: dict[str, Any]
    ) -> None:
        """After a crash the same event comes again; it is never changed and stays JSON."""
        shown = copy.deepcopy(event)
        for _ in range(2):
            call(notifier.notify, Notification(shown, "user-1", rooms))
        assert json.dumps(shown) == json.dumps(event)

    def test_notify_tells_nobody_else(self, notifier: Notifier, rooms: RecordingRooms, call: Call) -> None:
        """Whatever is published goes to the owner's room only."""
        call(notifier.notify, Notification(SUCCESS_EVENT, "user-1", rooms))
        assert {room for room, _ in rooms.published} <= {"user:user-1"}

    def test_notify_bears_many_calls_at_once(
        self, notifier: Notifier, rooms: RecordingRooms, call_together: Call
    ) -> None:
        """Twenty events of twenty users at the same time are all delivered."""
        call_together(*[(notifier.notify, Notification(SUCCESS_EVENT, f"user-{n}", rooms)) for n in range(20)])
