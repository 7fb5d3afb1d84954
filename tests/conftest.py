"""Fixtures of all tests, mainly real servers with empty databases."""

from __future__ import annotations

import asyncio
import importlib.util
import signal
import sys
import uuid
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from PIL import Image
from redis import Redis
from structlog.testing import LogCapture
from tornado.ioloop import IOLoop

from pipeline.assets.sqlite import SqliteAssetStore
from pipeline.commands.verifying import OPTIONAL
from pipeline.sandbox.sandbox import Sandbox
from pipeline.supervision import cancel
from tests import fake_cloudinary
from tests.fake_cloudinary import FakeCloudinary
from tests.fake_receiver import FakeReceiver, running_in_thread
from tests.mongo_server import MongoServer, own_database
from tests.moto_server import MotoServer
from tests.requirements import require
from tests.redis_server import RedisServer
from tests.service import AiService
from tests.workers import Bench

# A separate package, whose tests run where the package is installed.
collect_ignore = ["plugins_v1"]

# When a shell starts the tests in the background, the tests and all their processes would ignore SIGINT.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Count a test as passed when it skips because a plugin lacks an optional method.

    So a skipped test always means that the machine lacks something.
    """
    report = yield
    is_skipped = report.when == "call" and report.skipped and isinstance(report.longrepr, tuple)
    if is_skipped and OPTIONAL.search(report.longrepr[2]):
        report.outcome = "passed"
    return report


@pytest.fixture(autouse=True)
def _restore_process() -> Iterator[None]:
    """Restore after each test what the service sets in the process: Pillow's limit of pixels, and logging."""
    before = Image.MAX_IMAGE_PIXELS
    yield
    Image.MAX_IMAGE_PIXELS = before
    if structlog.is_configured():
        structlog.reset_defaults()
        for module in list(sys.modules.values()):
            logger = vars(module).get("log")  # no getattr: numpy.core warns about it
            if isinstance(logger, type(structlog.get_logger())):
                vars(logger).pop("bind", None)


@pytest.fixture
def io_loop() -> Iterator[IOLoop]:
    """An event loop for one test; pytest-tornado's own fixture does not close its loop."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    io_loop = IOLoop(asyncio_loop=loop, make_current=False)
    yield io_loop
    while tasks := asyncio.all_tasks(loop):
        loop.run_until_complete(cancel(tasks))
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.run_until_complete(loop.shutdown_default_executor())
    asyncio.set_event_loop(None)
    io_loop.close(all_fds=True)


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """A real Redis for the test run; tests that stop or empty a Redis start their own."""
    with RedisServer() as server:
        yield server


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    """The address of the Redis of the test run, which is empty now."""
    redis_server.client().flushall()
    return redis_server.url


@pytest.fixture
def redis(redis_server: RedisServer) -> Redis:
    """A client of the Redis of the test run."""
    return redis_server.client()


@pytest.fixture
def own_redis() -> Iterator[RedisServer]:
    """A Redis that the test may stop, pause and empty."""
    with RedisServer() as server:
        yield server


@pytest.fixture
def bench(io_loop: IOLoop, redis_url: str) -> Iterator[Bench]:
    """A queue on the Redis of the test run, and the workers that the test starts."""
    bench = Bench(redis_url)
    yield bench
    io_loop.run_sync(bench.close)


@pytest.fixture
def store(io_loop: IOLoop, tmp_path: Path) -> Iterator[SqliteAssetStore]:
    """An open asset store: the default one, in its own file."""
    store = SqliteAssetStore(tmp_path / "assets.sqlite")
    io_loop.run_sync(store.open)
    yield store
    io_loop.run_sync(store.close)


@pytest.fixture(scope="session")
def mongo_server() -> Iterator[MongoServer]:
    """A MongoDB-compatible server for the test run; tests that stop or kill a server start their own."""
    with MongoServer() as server:
        yield server


@pytest.fixture
def mongo_uri(request: pytest.FixtureRequest) -> Iterator[str]:
    """The address of a database for one test."""
    with own_database(lambda: request.getfixturevalue("mongo_server")) as uri:
        yield uri


@pytest.fixture(scope="session")
def moto() -> Iterator[MotoServer]:
    """An S3 server for the test run."""
    require(importlib.util.find_spec("obstore") is not None, "needs obstore")
    with MotoServer() as server:
        yield server


@pytest.fixture
def bucket(moto: MotoServer) -> str:
    """A new bucket on the S3 server."""
    name = f"photos-{uuid.uuid4().hex}"
    moto.s3.create_bucket(Bucket=name)
    return name


@pytest.fixture
def in_s3(moto: MotoServer, bucket: str) -> dict[str, str]:
    """The settings with which the storage `object` stores images in the new bucket."""
    return moto.settings(f"s3://{bucket}/photos")


@pytest.fixture
def cloudinary() -> Iterator[FakeCloudinary]:
    """A fake Cloudinary in its own thread."""
    with fake_cloudinary.running_in_thread() as fake:
        yield fake


@pytest.fixture(scope="session")
def sandbox() -> Iterator[Sandbox]:
    """A sandbox for the test run; tests that kill children of a sandbox start their own."""
    sandbox = Sandbox()
    yield sandbox
    asyncio.run(sandbox.close())


@pytest.fixture
def ai_service() -> Iterator[AiService]:
    """An AI service for one test; it sends good answers at once until the test configures it."""
    with AiService() as ai_service:
        yield ai_service


@pytest.fixture(scope="module")
def ai() -> Iterator[AiService]:
    """An AI service that all tests of a module share."""
    with AiService() as ai_service:
        yield ai_service


@pytest.fixture
def receiver() -> Iterator[FakeReceiver]:
    """A receiver of webhooks in its own thread."""
    with running_in_thread() as receiver:
        yield receiver


@pytest.fixture(scope="session")
def silent_ai_service() -> Iterator[str]:
    """The address of an AI service that never answers, so that jobs stay active."""
    with AiService(paused=True) as ai_service:
        yield ai_service.url


@pytest.fixture
def logs() -> Iterator[list[Any]]:
    """The log lines of this process, in order."""
    capture = LogCapture()
    structlog.configure(processors=[capture])
    yield capture.entries
    structlog.reset_defaults()
