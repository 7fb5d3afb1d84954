"""Chains of fake AI providers: their answers and errors, and calls of a manager that has them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from structlog.testing import capture_logs
from tornado.ioloop import IOLoop

from pipeline.errors import JobError, PermanentJobError, RetryableJobError
from pipeline.hooks import Analysis, AnalyzeRequest, Attribute
from pipeline.hooks.manager import PluginManager
from tests.fake_plugins import Analyze, ManagerFactory, make_analysis, make_request

REFUSED = PermanentJobError("AI service rejected the image (HTTP 422)")
FAILED = RetryableJobError("AI service unavailable")
BUSY = RetryableJobError("AI service is busy", retry_after_seconds=120)
UNREACHABLE = RetryableJobError("AI service unavailable", spends_attempt=False)
INVALID = Analysis(brand=Attribute("a", 7))
PARTIAL = Analysis(brand=Attribute("Nike", 0.9))
COLOURED = Analysis(brand=Attribute("Nike", 0.8), colorway=Attribute("red", 0.7))


class Chain:
    """Providers that answer with their own name as the brand, or as `answers` says.

    answers: the result, error or function of a provider, by its name.
    asked: the names of the called providers, in order.
    """

    def __init__(self, managers: ManagerFactory) -> None:
        self.managers = managers
        self.asked: list[str] = []
        self.requests: list[AnalyzeRequest] = []
        self.answers: dict[str, Any] = {}

    def provider(self, name: str) -> Analyze:
        async def analyze(request: AnalyzeRequest) -> Any:
            self.asked.append(name)
            self.requests.append(request)
            answer = self.answers.get(name, make_analysis(name))
            if isinstance(answer, Exception):
                raise answer
            return await answer(request) if callable(answer) else answer

        return analyze

    def open(self, *names: str, **settings: Any) -> PluginManager:
        return self.managers.open(providers={name: self.provider(name) for name in names}, **settings)


def open_chain(io_loop: IOLoop) -> Iterator[Chain]:
    """Yield a chain and close its managers; for fixtures."""
    managers = ManagerFactory()
    with capture_logs():  # printing an exception to the console is slow
        yield Chain(managers)
    io_loop.run_sync(managers.close)


async def no_image() -> bytes:
    """A function for the image of a job that no provider may request."""
    raise AssertionError("no provider may request the image")


async def ask(manager: PluginManager, category: str = "sneaker", **fields: Any) -> str:
    """Analyze a photo and return the name of the provider that answered."""
    return (await manager.analyze(make_request(category, **fields), no_image)).brand.value


async def fail(manager: PluginManager, times: int = 1) -> None:
    """Analyze photos, each of which must fail."""
    for _ in range(times):
        with pytest.raises(JobError):
            await ask(manager)


async def failure(manager: PluginManager, category: str = "sneaker", tries: str = "") -> RetryableJobError:
    """Analyze a photo that must fail and return its error."""
    with pytest.raises(RetryableJobError) as caught:
        await manager.analyze(make_request(category), no_image, tries)
    return caught.value


def is_held(chain: Chain, name: str) -> bool:
    """True while the metric of the provider says that it is held."""
    return chain.managers.count("pipeline_plugin_held", "provider", name) == 1
