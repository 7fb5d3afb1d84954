"""Results and errors of providers and storages, as the manager passes them on."""

from __future__ import annotations

import asyncio
import io
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tornado.ioloop import IOLoop

from pipeline.errors import DependencyUnavailable, PermanentJobError, RetryableJobError, ValidationError
from pipeline.hooks import Analysis, AnalyzeRequest, Attribute, ProcessedImage
from pipeline.hooks.checks import find_fault
from pipeline.images import ImageName
from tests.unit.plugin_managers import FOUND, REQUEST, ManagerFactory, Storage, manager_factory, no_image


@pytest.fixture
def factory(io_loop: IOLoop) -> Iterator[ManagerFactory]:
    """A factory of managers, closed after the test."""
    with manager_factory(io_loop) as factory:
        yield factory


def raising(error: BaseException) -> Callable[[AnalyzeRequest], Any]:
    """Return a plain `analyze` that raises this error."""

    def analyze(request: AnalyzeRequest) -> Any:
        raise error

    return analyze


def raising_async(error: BaseException) -> Callable[[AnalyzeRequest], Any]:
    """Return an async `analyze` that raises this error."""

    async def analyze(request: AnalyzeRequest) -> Any:
        raise error

    return analyze


@pytest.mark.parametrize("style", [raising, raising_async], ids=["plain", "async"])
@pytest.mark.parametrize(
    "error",
    [ValueError("a secret path"), TimeoutError(), FileNotFoundError(), SystemExit(1), asyncio.CancelledError()],
    ids=repr,
)
@pytest.mark.gen_test
async def test_unknown_exception_of_a_provider_becomes_a_retryable_error(
    factory: ManagerFactory, error: BaseException, style: Callable[[BaseException], Any]
) -> None:
    """An unknown exception is not permanent; it does not reach the loop, and its text does not reach the client."""
    with pytest.raises(RetryableJobError) as caught:
        await factory.open(style(error)).analyze(REQUEST, no_image)
    assert caught.value.message == "AI service failed"
    assert caught.value.__cause__ is not None


@pytest.mark.gen_test
async def test_permanent_error_of_a_provider_passes_unchanged(factory: ManagerFactory) -> None:
    """The manager raises the same PermanentJobError, because its message is for the owner of the job."""
    refusal = PermanentJobError("No product in the image")
    with pytest.raises(PermanentJobError) as caught:
        await factory.open(raising(refusal)).analyze(REQUEST, no_image)
    assert caught.value is refusal


IMAGE = ProcessedImage(b"image", "image/webp")


@pytest.mark.parametrize(
    ("result", "fault"),
    [
        (FOUND, None),
        (Analysis(), None),  # nothing found is a partial result
        (Analysis(Attribute("a", 0), Attribute("b", 1), Attribute("", 0.0), "https://a/b"), None),
        (Analysis(processed_image=IMAGE), None),
        (None, "analyze returned NoneType, not Analysis"),
        ({"brand": "Nike"}, "analyze returned dict, not Analysis"),
        (Analysis(brand=None), "brand is NoneType, not Attribute"),  # type: ignore[arg-type]
        (Analysis(model="501"), "model is str, not Attribute"),  # type: ignore[arg-type]
        (Analysis(brand=Attribute(7, 1)), "brand has a value that is not a text"),  # type: ignore[arg-type]
        (Analysis(brand=Attribute("x" * 1001, 1)), "brand has a value that is not a text"),
        (Analysis(brand=Attribute("\ud800", 1)), "brand has a value that is not valid Unicode"),
        (Analysis(brand=Attribute("a", 1.01)), "brand has a confidence of 1.01, not 0 to 1"),
        (Analysis(colorway=Attribute("a", -1)), "colorway has a confidence of -1, not 0 to 1"),
        (Analysis(brand=Attribute("a", math.nan)), "brand has a confidence that is not a number"),
        (Analysis(brand=Attribute("a", True)), "brand has a confidence that is not a number"),
        (Analysis(brand=Attribute("a", "1")), "brand has a confidence that is not a number"),  # type: ignore[arg-type]
        (Analysis(processed_image_url="/media/x"), "processed_image_url is not an http(s) URL"),
        (Analysis(processed_image_url="javascript:alert(1)"), "processed_image_url is not an http(s) URL"),
        (Analysis(processed_image_url="https://a/ b"), "processed_image_url is not an http(s) URL"),
        (Analysis(processed_image_url="https://[a"), "processed_image_url is not an http(s) URL"),
        (Analysis(processed_image_url="https://a", processed_image=IMAGE), "are both set"),
        (Analysis(processed_image=ProcessedImage("x", "image/png")), "image is not"),  # type: ignore[arg-type]
        (Analysis(processed_image=ProcessedImage(b"x", "text/html")), "processed_image is not"),
    ],
    ids=lambda each: str(each)[:40],
)
def test_find_fault_names_what_breaks_the_contract(result: Any, fault: str | None) -> None:
    """find_fault names the first fault, so documents and events contain only what the contract allows."""
    found = find_fault(result)
    assert found is None if fault is None else found is not None and fault in found


@pytest.mark.gen_test
async def test_result_that_breaks_the_contract_is_tried_twice(factory: ManagerFactory) -> None:
    """The error allows two attempts, because a model may fail once; its cause names the fault for the author."""
    manager = factory.open(lambda request: Analysis(brand=Attribute("Nike", 93)))
    with pytest.raises(RetryableJobError) as caught:
        await manager.analyze(REQUEST, no_image)
    assert (caught.value.message, caught.value.max_attempts) == ("AI service sent an invalid result", 2)
    assert str(caught.value.__cause__) == "brand has a confidence of 93, not 0 to 1"


@pytest.mark.gen_test
async def test_storage_calls_reach_the_backend(factory: ManagerFactory) -> None:
    """save returns the URL, read returns the bytes, delete removes the image, and check succeeds."""
    storage = Storage()
    manager = factory.open(storage=storage)
    saved = await manager.save("a/original", io.BytesIO(b"image"), "image/png")
    assert saved == ("tested", "https://images.example/x")
    assert await manager.read(ImageName("tested", "a/original")) == b"image"
    await manager.delete(ImageName("tested", "a/original"))
    await manager.storages.check()
    assert storage.images == {}


@pytest.mark.gen_test
async def test_storage_that_fails_is_unavailable(factory: ManagerFactory) -> None:
    """An unknown exception, a timeout and an invalid URL become DependencyUnavailable with the chained cause."""
    storage = Storage()
    manager = factory.open(storage=storage, storage_timeout_seconds=0.1)
    calls: list[Callable[[], Any]] = [
        lambda: manager.save("a", io.BytesIO(b""), "image/png"),
        lambda: manager.read(ImageName("tested", "a")),
        lambda: manager.delete(ImageName("tested", "a")),
        lambda: manager.storages.check(),
    ]
    for storage.failure in (RuntimeError("bug"), factory.hang):
        for call in calls:
            with pytest.raises(DependencyUnavailable) as caught:
                await call()
            assert caught.value.__cause__ is not None
    storage.failure, storage.url = None, None
    with pytest.raises(DependencyUnavailable):
        await calls[0]()


@pytest.mark.gen_test
async def test_storage_errors_with_a_meaning_pass_unchanged(factory: ManagerFactory) -> None:
    """A missing image differs from an unavailable storage, and a refused image is an error of the client."""
    storage = Storage()
    manager = factory.open(storage=storage)
    storage.failure = FileNotFoundError("a")
    with pytest.raises(FileNotFoundError):
        await manager.read(ImageName("tested", "a"))
    with pytest.raises(DependencyUnavailable):
        await manager.save("a", io.BytesIO(b""), "image/png")
    storage.failure = ValidationError.of("image", "refused")
    with pytest.raises(ValidationError):
        await manager.save("a", io.BytesIO(b""), "image/png")
