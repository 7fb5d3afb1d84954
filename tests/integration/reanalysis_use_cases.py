"""The use cases of a reanalysis on a real queue and store."""

from __future__ import annotations

from pipeline.assets.asset import Asset
from pipeline.assets.sqlite import SqliteAssetStore
from pipeline.errors import PermanentJobError
from pipeline.hooks import Analysis
from pipeline.metrics import Metrics
from pipeline.queue.job import Job
from pipeline.queue.queue import JobQueue
from pipeline.usecases.analysis import PhotoAnalysis
from pipeline.usecases.cleaning import Cleaning
from pipeline.usecases.new_assets import NewAssets
from pipeline.usecases.image_urls import ImageUrls
from pipeline.usecases.job_records import JobRecords
from pipeline.usecases.orphaned_images import OrphanedImages
from pipeline.usecases.previews import Previews
from pipeline.usecases.processing import Processing
from pipeline.usecases.reanalysis import Reanalysis, Reanalyzing
from tests.factories import make_asset
from tests.integration.processed_jobs import FOUND, Plugins, make_job, run
from tests.workers import Claimer


class UseCases:
    """The use cases of a reanalysis on a real queue and store, with plugins that record their calls."""

    def __init__(self, store: SqliteAssetStore, queue: JobQueue) -> None:
        self.store, self.queue, self.plugins = store, queue, Plugins()
        self.claim, self.metrics = Claimer(queue), Metrics()
        self.job_records = JobRecords(store, queue, keep_failed_seconds=60, max_age_seconds=60)
        self.orphaned_images = OrphanedImages(store, self.plugins)
        urls, previews = ImageUrls(self.plugins), Previews(self.plugins, None, self.metrics)
        self.processing = Processing(
            store,
            PhotoAnalysis(store, self.plugins, urls=urls, previews=previews, cleaning=Cleaning()),
            *(self.plugins, self.job_records, self.metrics),
            orphaned_images=self.orphaned_images,
            urls=urls,
            new_assets=NewAssets(),
        )
        self.handler = Reanalyzing(
            *(store, self.processing, self.job_records, self.metrics),
            orphaned_images=self.orphaned_images,
            settle=self.settle,
        )
        self.reanalysis = Reanalysis(store, queue, self.job_records, providers={"acme"}, settle=self.settle)

    async def settle(self, job_id: str) -> None:
        """Remove the records of a finished job."""
        await self.job_records.forget(job_id)
        await self.queue.remove_failed(job_id)

    async def finished(self, analysis: Analysis | Exception = FOUND) -> Asset:
        """Return an asset whose upload job is finished with this analysis or this error."""
        asset = make_asset()
        assert await self.store.create(asset)
        await self.process(make_job(asset), analysis)
        self.plugins.events.clear()
        return await self.asset(asset)

    async def process(self, job: Job, analysis: Analysis | Exception) -> None:
        """Process the job as a worker does, and give it up after a permanent error."""
        self.plugins.analysis = analysis
        try:
            await run(self.handler, job)  # type: ignore[arg-type]
        except PermanentJobError as error:
            await self.handler.give_up(job, error.message)

    async def asset(self, asset: Asset) -> Asset:
        """Return the asset as it is in the store now."""
        current = await self.store.get(asset.id)
        assert current is not None
        return current

    async def request_and_claim(self, asset: Asset, provider: str = "", *, replaces: bool = False) -> Job:
        """Request a reanalysis and claim its job."""
        assert await self.reanalysis.request(asset, provider, "r-2", replaces=replaces)
        (job,) = await self.claim()
        return job

    def count(self, outcome: str) -> float:
        """Return how many reanalyses had this outcome."""
        return self.metrics.registry.get_sample_value("pipeline_reanalyses_total", {"outcome": outcome}) or 0
