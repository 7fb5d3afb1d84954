"""Vision providers with fake endpoints, and requests to them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from typing import Any

import pytest
from tornado.ioloop import IOLoop

from pipeline.errors import JobError
from pipeline.hooks import AIProvider, AnalyzeRequest, Attribute
from pipeline.sandbox.sandbox import Sandbox
from pipeline.settings import Settings
from pipeline.plugins.vision.provider import VisionProvider
from tests.factories import make_image
from tests.vision_fakes import FAKES
from tests.vision_server import KEY, PRODUCT, FakeVision

NAMES = sorted(FAKES)
UNREADABLE = "AI service sent an unreadable reply"
UNAVAILABLE, BUSY = "AI service unavailable", "AI service is busy"
NIKE = (Attribute("Nike", 0.93), Attribute("Air Max 90", 0.88), Attribute("Infrared", 0.71))
PRICES = {"INPUT_PRICE": "0.25", "OUTPUT_PRICE": "2"}


@contextmanager
def fake_endpoint(name: str, io_loop: IOLoop) -> Iterator[FakeVision]:
    """Yield a started fake endpoint of this maker on the test's loop."""
    fake = FAKES[name]()
    fake.start()
    yield fake
    io_loop.run_sync(fake.stop)


def with_variables(name: str, **variables: str) -> Settings:
    """Return settings with these PLUGIN_<NAME>_... variables."""
    return Settings().with_plugin_variables({f"PLUGIN_{name.upper()}_{each}": text for each, text in variables.items()})


def factory(name: str, settings: Settings, sandbox: Sandbox) -> AIProvider:
    """Return the provider as its module makes it."""
    ((offered, build),) = import_module(f"pipeline.plugins.ai_{name}").register_ai_providers(settings, sandbox)
    assert offered == name
    provider: AIProvider = build()
    return provider


def build(endpoint: FakeVision, sandbox: Sandbox, **variables: str) -> VisionProvider:
    """Return the provider as the service builds it."""
    given = {"API_KEY": KEY, "BASE_URL": endpoint.url} | variables
    provider = factory(endpoint.name, with_variables(endpoint.name, **given), sandbox)
    assert isinstance(provider, VisionProvider)
    return provider


def make_request(**fields: Any) -> AnalyzeRequest:
    """Return a request for a small photo of a sneaker, with these fields changed."""
    request = AnalyzeRequest(
        image_url="https://images.example/secret-place.jpg",
        category="sneaker",
        asset_id="65f0c0ffee65f0c0ffee65f0",
        job_id="ai-processing:65f0c0ffee65f0c0ffee65f0",
        request_id="request-1",
        attempt=1,
        timeout_seconds=10,
        image=make_image(),
    )
    return replace(request, **fields)


async def failure(provider: VisionProvider, **fields: Any) -> JobError:
    """Analyze, and return the error that it raises."""
    with pytest.raises(JobError) as caught:
        await provider.analyze(make_request(**fields))
    return caught.value


def product(**changes: Any) -> dict[str, Any]:
    """Return the answer of a model, with these members changed."""
    return {**PRODUCT, **changes}


@pytest.fixture(params=NAMES)
def endpoint(request: pytest.FixtureRequest, io_loop: IOLoop) -> Iterator[FakeVision]:
    """A fake endpoint, of each maker in its own run of the test."""
    with fake_endpoint(request.param, io_loop) as fake:
        yield fake


@pytest.fixture
def provider(io_loop: IOLoop, endpoint: FakeVision, sandbox: Sandbox) -> Iterator[VisionProvider]:
    """The provider that sends its requests to this endpoint."""
    provider = build(endpoint, sandbox)
    yield provider
    io_loop.run_sync(provider.close)
