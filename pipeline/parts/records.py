"""Records and counts beside the assets: the audit list, deliveries, statistics, AI budgets, rate limits."""

from __future__ import annotations

from pipeline.parts.assets import AssetParts
from pipeline.parts.base import BaseParts
from pipeline.parts.queues import QueueParts
from pipeline.usecases.ai_usage import AiUsage
from pipeline.usecases.audit import Audit
from pipeline.usecases.budgets import Budgets
from pipeline.usecases.deliveries import Deliveries
from pipeline.usecases.job_statistics import JobStatistics
from pipeline.usecases.limits import limits_of
from pipeline.usecases.result_cache import ResultCache


class RecordParts:
    """The records in the asset store that are not assets, and the limits counted in Redis."""

    def __init__(self, base: BaseParts, assets: AssetParts, queues: QueueParts) -> None:
        settings, store = base.settings, assets.store
        self.audit = Audit(store)
        self.deliveries = Deliveries(store)
        self.job_statistics = JobStatistics(store, queues.photos)
        self.result_cache = ResultCache(store)
        self.limits = limits_of(settings, queues.photos, base.metrics)
        self.budgets = Budgets(
            store,
            queues.photos,
            per_day=settings.ai_budget_per_day,
            per_user_per_day=settings.ai_budget_per_user_per_day,
            currency=settings.ai_budget_currency,
        )
        self.ai_usage = AiUsage(
            queues.photos,
            assets.plugins.usage,
            self.budgets,
            currency=settings.ai_budget_currency,
            free=assets.plugins.free_providers,
        )

    async def purge(self) -> None:
        """Delete records at the end of their retention."""
        for records in (self.job_statistics, self.audit, self.deliveries, self.budgets, self.result_cache):
            await records.purge()
