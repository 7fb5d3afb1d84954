"""Plugin modules with hooks for tests: observers that record events, and filters of uploads and of results."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pluggy
from structlog.testing import capture_logs
from tornado.ioloop import IOLoop

from pipeline.errors import ValidationError
from pipeline.hooks import Analysis, JobEvent, UploadFacts
from pipeline.hooks.kinds import OBSERVERS
from tests.fake_plugins import ManagerFactory, make_analysis, make_module, make_request
from tests.unit.provider_chains import no_image

IMPL = pluggy.HookimplMarker("ai_queue_pipeline")
ERRORS, SKIPPED = "pipeline_plugin_errors_total", "pipeline_plugin_skipped_total"
REFUSAL = ValidationError.of("image", "No cats")


def open_managers(io_loop: IOLoop) -> Iterator[ManagerFactory]:
    """Yield a factory of managers and close what it built; for fixtures."""
    managers = ManagerFactory()
    with capture_logs():  # printing an exception to the console is slow
        yield managers
    io_loop.run_sync(managers.close)


class RecordingObserver:
    """An observer that records its hooks and events, and then calls `answer`."""

    def __init__(self, answer: Callable[[JobEvent], Any] = lambda event: None) -> None:
        self.received: list[tuple[str, JobEvent]] = []
        self.answer = answer
        self._changed = asyncio.Event()

    def module(self, name: str, *hooks: str) -> Any:
        """Return a plugin module with this observer. hooks: those that it implements, all by default."""

        def make(hook: str) -> Callable[..., Any]:
            async def implementation(event: JobEvent) -> None:
                self.received.append((hook, event))
                self._changed.set()
                if asyncio.iscoroutine(result := self.answer(event)):
                    await result

            return implementation

        return make_module(name, **{hook: make(hook) for hook in hooks or OBSERVERS})

    async def wait(self, count: int) -> list[int]:
        """Return the numbers of the jobs of its events, once it has received this many."""
        async with asyncio.timeout(5):
            while len(self.received) < count:
                self._changed.clear()
                await self._changed.wait()
        return [int(event.asset_id, 16) for _, event in self.received]


async def never(event: JobEvent) -> None:
    """Hang for ever; an answer of an observer."""
    await asyncio.Event().wait()


def fail(event: JobEvent) -> None:
    """Raise an error; an answer of an observer."""
    raise OSError("statistics are down")


def make_upload(width: int = 640, height: int = 480) -> UploadFacts:
    """Return the facts of an upload, as filters get them."""
    return UploadFacts("user-1", "sneaker", "image/jpeg", 1234, width, height, lambda: b"photo")


def upload_filter(name: str, asked: list[str], answer: Callable[[UploadFacts], Any] = lambda upload: None) -> Any:
    """Return a plugin module whose filter of uploads adds its name to `asked` and then calls `answer`."""

    def validate_upload(upload: UploadFacts) -> None:
        asked.append(name)
        answer(upload)

    return make_module(name, validate_upload=validate_upload)


def refuse(upload: UploadFacts) -> None:
    """Refuse the upload; an answer of a filter."""
    raise REFUSAL


def break_down(upload: UploadFacts) -> None:
    """Raise an unexpected error; an answer of a filter."""
    raise KeyError("a bug")


def rename(brand: str) -> Callable[[Analysis], Analysis]:
    """Return an answer of a filter that adds this text to the brand."""
    return lambda analysis: make_analysis(f"{analysis.brand.value}+{brand}")


def result_filter(name: str, answer: Callable[[Analysis], Any], **options: Any) -> Any:
    """Return a plugin module whose filter of results calls `answer`. options: those of pluggy."""

    async def transform_analysis(analysis: Analysis) -> Any:
        return answer(analysis)

    module = make_module(name)
    setattr(module, "transform_analysis", IMPL(**options)(transform_analysis))
    return module


async def analyze(manager: Any, **fields: Any) -> Analysis:
    """Analyze a photo whose image no provider needs."""
    result: Analysis = await manager.analyze(make_request(**fields), no_image)
    return result
