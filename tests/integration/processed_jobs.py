"""Jobs of photos and the use case that processes them; its plugins are fakes that record their calls."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from pipeline.assets.asset import Asset, job_data
from pipeline.assets.sqlite import SqliteAssetStore
from pipeline.hooks import Analysis, AnalyzeRequest, Attribute
from pipeline.hooks.job_protocols import Permit, AnalysisListener
from pipeline.hooks.notifiers import EventContext
from pipeline.metrics import Metrics
from pipeline.queue.queue import JobQueue
from pipeline.usecases.analysis import PhotoAnalysis
from pipeline.usecases.cleaning import Cleaning
from pipeline.usecases.job_records import JobRecords
from pipeline.usecases.orphaned_images import OrphanedImages
from pipeline.usecases.previews import PreviewMaker, Previews
from pipeline.usecases.processing import Processing
from pipeline.queue.job import Job
from pipeline.usecases.new_assets import NewAssets
from pipeline.usecases.image_urls import ImageUrls
from tests.contract.contracts import check_event
from tests.factories import make_asset, make_image
from tests.memory_storage import MemoryStorage

WEBP, PNG = make_image("WEBP"), make_image("PNG")
FOUND = Analysis(Attribute("Nike", 0.9), Attribute("Air Max 90", 0.8), Attribute("Red", 0.5))


class Plugins(MemoryStorage):
    """A fake AI provider, storage and notifier that record their calls."""

    def __init__(self) -> None:
        super().__init__()
        self.needs_image = False
        self.analysis: Analysis | Exception = FOUND
        self.requests: list[AnalyzeRequest] = []
        self.tried: list[str] = []
        self.only = ""
        self.events: list[tuple[Mapping[str, Any], str]] = []
        self.before_answer: Callable[[], Any] | None = None

    async def analyze(
        self,
        request: AnalyzeRequest,
        read_image: Callable[[], Awaitable[bytes]],
        tries: str = "",
        listener: AnalysisListener | None = None,
        permit: Permit | None = None,
        only: str = "",
    ) -> Analysis:
        self.only = only
        self.tried.append(tries)
        if self.needs_image:
            request = replace(request, image=await read_image())
        self.requests.append(request)
        if self.before_answer is not None:
            await self.before_answer()
        if isinstance(self.analysis, Exception):
            raise self.analysis
        return self.analysis

    is_durable = False

    async def announce(self, event: Mapping[str, Any], user_id: str, about: EventContext) -> None:
        check_event(dict(event))
        self.events.append((event, user_id))


@pytest.fixture
def plugins() -> Plugins:
    return Plugins()


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def orphaned_images(store: SqliteAssetStore, plugins: Plugins) -> OrphanedImages:
    return OrphanedImages(store, plugins)


def make_processing(
    store: SqliteAssetStore,
    plugins: Plugins,
    metrics: Metrics | None = None,
    orphaned_images: OrphanedImages | None = None,
    maker: PreviewMaker | None = None,
    new_assets: NewAssets | None = None,
) -> Processing:
    """Return the use case. Without a `maker` it makes no previews."""
    metrics = metrics or Metrics()
    records = JobRecords(store, JobQueue("redis://none"), keep_failed_seconds=60, max_age_seconds=60)
    urls, previews = ImageUrls(plugins), Previews(plugins, maker, metrics)
    return Processing(
        store,
        PhotoAnalysis(store, plugins, urls=urls, previews=previews, cleaning=Cleaning()),
        *(plugins, records, metrics),
        orphaned_images=orphaned_images or OrphanedImages(store, plugins),
        urls=urls,
        new_assets=new_assets or NewAssets(),
    )


@pytest.fixture
def processing(
    store: SqliteAssetStore, plugins: Plugins, metrics: Metrics, orphaned_images: OrphanedImages
) -> Processing:
    return make_processing(store, plugins, metrics, orphaned_images)


async def submit(store: SqliteAssetStore) -> tuple[Asset, Job]:
    """Insert an asset and return it with its job."""
    asset = make_asset()
    assert await store.create(asset)
    return asset, make_job(asset)


def make_job(asset: Asset, **changes: Any) -> Job:
    """Return the job of the asset, as a worker claims it."""
    fields = {"id": asset.processing_job_id, "data": job_data(asset), "attempt": 1, "stalls": 0, "lease": "x|y:1"}
    return Job(**fields | {"enqueued_at_ms": 0, "claimed_at_ms": 0, "request_id": "r-1"} | changes)


async def run(processing: Processing, job: Job) -> None:
    """Process the job and commit its result, as a worker does."""
    result = await processing.process(job)
    if result is not None:
        await processing.commit(job, result)


def stale_results(metrics: Metrics) -> float:
    """Return the number of results that were dropped because their run was too old."""
    return metrics.registry.get_sample_value("pipeline_stale_results_total") or 0
