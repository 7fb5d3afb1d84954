"""The parts that all others use: metrics, the supervisor of tasks, tracing, the thread pool for images."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from pipeline.clock import CLOCK
from pipeline.metrics import Metrics
from pipeline.otel import build_tracing
from pipeline.settings import Fairness, Role, Settings
from pipeline.supervision import Supervisor


class BaseParts:
    """The settings, and the parts that need nothing else."""

    def __init__(self, settings: Settings, owns_redis: bool, on_fatal: Callable[[str], None]) -> None:
        """owns_redis: see App.

        on_fatal: see App.
        """
        self.settings = settings
        self.owns_redis = owns_redis
        self.on_fatal = on_fatal
        self.redis_url = settings.redis_url.get_secret_value()
        self.has_jobs = settings.role is not Role.WEB
        self.is_fair = settings.queue_fairness is Fairness.USER
        self.metrics = Metrics()
        self.metrics.show_build(settings.public_url)
        self.metrics.clock_skew_seconds.set_function(lambda: CLOCK.skew_seconds)
        self.supervisor = Supervisor(
            on_restart=lambda kind: self.metrics.task_restarts.labels(kind).inc(), on_fatal=on_fatal
        )
        self.tracing = build_tracing(settings)
        self.pool = ThreadPoolExecutor(settings.pool_threads, thread_name_prefix="image")
