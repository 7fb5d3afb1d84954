"""How the service saves an image in a storage and asks for its URL; a save that ends too late is undone."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from tornado.ioloop import IOLoop

from pipeline.errors import DependencyUnavailable
from tests.unit.storages import Make, storage_calls

URL = "https://images.example/x"


@pytest.fixture
def make(io_loop: IOLoop) -> Iterator[Make]:
    """A function that returns the calls of a storage with these methods."""
    with storage_calls(io_loop) as make:
        yield make


@pytest.mark.fault("E14")
@pytest.mark.gen_test
@pytest.mark.parametrize("reason", ["its time has ended", "its caller was cancelled"])
@pytest.mark.parametrize("kind", ["plain", "async", "async that ends at once"])
async def test_image_of_an_abandoned_save_is_removed_when_the_save_ends(make: Make, kind: str, reason: str) -> None:
    """The image is removed after a save in a thread, and after one that ignores its cancellation or stores after it."""
    loop = asyncio.get_running_loop()
    begun, released, deleted = asyncio.Event(), threading.Event(), asyncio.Event()
    stored: set[str] = set()

    def save(public_id: str, file: Any, content_type: str) -> str:
        loop.call_soon_threadsafe(begun.set)
        released.wait(30)
        stored.add(public_id)
        return URL

    async def save_async(public_id: str, file: Any, content_type: str) -> str:
        begun.set()
        while not released.is_set():
            try:
                await asyncio.sleep(0.01)
            except asyncio.CancelledError:
                if kind != "async":
                    break
        stored.add(public_id)
        return URL

    async def delete(public_id: str) -> None:
        stored.remove(public_id)
        deleted.set()

    seconds = 0.2 if reason == "its time has ended" else 30
    storing = make(seconds, save=save if kind == "plain" else save_async, delete=delete)
    saving = asyncio.create_task(storing.save("a/original-1", io.BytesIO(), "image/jpeg"))
    await begun.wait()
    if seconds == 30:
        saving.cancel()
    with pytest.raises((DependencyUnavailable, asyncio.CancelledError)):
        await saving
    released.set()
    await deleted.wait()
    assert stored == set()


@pytest.mark.gen_test
async def test_save_that_ends_in_time_or_raises_removes_no_image(make: Make) -> None:
    """A stored image stays; a storage that raised an error has stored no image."""

    def refuse(public_id: str, file: Any, content_type: str) -> str:
        raise OSError("no")

    async def delete(public_id: str) -> None:
        raise AssertionError("no image may be removed")

    assert await make(save=lambda *_: URL, delete=delete).save("a/1", io.BytesIO(), "image/jpeg") == URL
    with pytest.raises(DependencyUnavailable):
        await make(save=refuse, delete=delete).save("a/1", io.BytesIO(), "image/jpeg")
    await asyncio.sleep(0)


@pytest.mark.gen_test
async def test_image_with_an_invalid_url_is_removed(make: Make) -> None:
    """A storage that returns an invalid URL has stored the image, so the service removes it."""
    deleted: asyncio.Queue[str] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def delete(public_id: str) -> None:
        loop.call_soon_threadsafe(deleted.put_nowait, public_id)

    with pytest.raises(DependencyUnavailable):
        await make(save=lambda *_: "/media/x", delete=delete).save("a/1", io.BytesIO(), "image/jpeg")
    assert await deleted.get() == "a/1"


@pytest.mark.fault("U16")
@pytest.mark.gen_test
@pytest.mark.parametrize("is_async", [False, True])
async def test_failing_url_does_not_affect_the_other_images(make: Make, is_async: bool) -> None:
    """Images whose URL fails or is invalid are left out; if all of them fail, the call fails."""

    def url(public_id: str, seconds: int) -> str:
        if public_id == "bad":
            raise ValueError("no")
        return "here" if public_id == "odd" else f"{URL}/{public_id}"

    async def url_later(public_id: str, seconds: int) -> str:
        return url(public_id, seconds)

    storing = make(url=url_later if is_async else url)
    assert await storing.urls(["bad", "a", "odd", "b"], 60) == {"a": f"{URL}/a", "b": f"{URL}/b"}
    with pytest.raises(DependencyUnavailable):
        await storing.urls(["bad"], 60)


@pytest.mark.fault("U16")
@pytest.mark.gen_test
async def test_hanging_url_does_not_affect_the_other_images(make: Make) -> None:
    """The URLs of two images are returned, though the third call hangs until its time has ended."""

    async def url(public_id: str, seconds: int) -> str:
        await (asyncio.Event().wait() if public_id == "bad" else asyncio.sleep(0))
        return f"{URL}/{public_id}"

    assert await make(0.3, url=url).urls(["bad", "a", "b"], 60) == {"a": f"{URL}/a", "b": f"{URL}/b"}
