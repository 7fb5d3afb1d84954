"""The panels of the page `Pipeline jobs`: queues, times, outcomes, repairs and holds."""

from __future__ import annotations

from grafana.panels import Panel, graph, heat, quantile, quantiles, rate


def rows() -> dict[str, list[Panel]]:
    """Return the rows of the page, from top to bottom."""
    return {
        "Queues": _queues(),
        "Times": _times(),
        "Outcomes": _outcomes(),
        "Repairs and holds": _repairs(),
    }


def _queues() -> list[Panel]:
    return [
        graph(
            "Jobs by state",
            "The jobs in Redis; completed and failed ones until their retention ends.",
            ("max by (queue, state) (pipeline_queue_depth{@queue})", "{{queue}} {{state}}"),
        ),
        graph(
            "Oldest ready",
            "How long the oldest job that could start now has waited.",
            ("max by (queue) (pipeline_queue_oldest_seconds{@queue})", "{{queue}}"),
            unit="s",
        ),
        graph(
            "Longest running",
            "The running attempt that started first, over all processes; 120 s is the limit.",
            ("max by (queue) (pipeline_job_running_seconds{@queue})", "{{queue}}"),
            unit="s",
        ),
        graph(
            "In and out",
            "Jobs enqueued, claimed and completed.",
            rate("jobs_enqueued", "queue", "@queue", "{{queue}} enqueued"),
            rate("jobs_claimed", "queue", "@queue", "{{queue}} claimed"),
            rate("jobs_finished", "queue", '@queue, outcome="completed"', "{{queue}} completed"),
            unit="ops",
        ),
        graph(
            "Slots",
            "Job slots of all processes, and those that run a job.",
            ("sum by (queue) (pipeline_slots{@queue})", "{{queue}} slots"),
            ("sum by (queue) (pipeline_slots_busy{@queue})", "{{queue}} busy"),
        ),
        graph(
            "Dead letters",
            "Jobs that failed and are not retried; `run.py failed ls` lists them.",
            ('max by (queue) (pipeline_queue_depth{@queue, state="failed"})', "{{queue}}"),
        ),
    ]


def _times() -> list[Panel]:
    completed = '@queue, outcome="completed"'
    return [
        graph("Wait for a slot", "From enqueue to first start.", *quantiles("job_wait_seconds", "@queue"), unit="s"),
        graph(
            "An attempt", "From start to end, of completed attempts.", *quantiles("job_seconds", completed), unit="s"
        ),
        graph(
            "From upload to event", "From upload to event, with all attempts.", *quantiles("asset_seconds"), unit="s"
        ),
        heat("Wait for a slot, spread", "From enqueue to first start.", "job_wait_seconds", "@queue"),
        heat("An attempt, spread", "From start to end, of all attempts.", "job_seconds", "@queue"),
        heat("From upload to event, spread", "From upload to event, with all attempts.", "asset_seconds"),
    ]


def _outcomes() -> list[Panel]:
    return [
        graph(
            "Attempts by outcome",
            "How attempts ended. Parked (the provider is held) and postponed (store or storage down) count no attempt.",
            rate("jobs_finished", "queue, outcome", "@queue"),
            unit="ops",
            width=6,
        ),
        graph(
            "Starts by attempt",
            "Starts by the number of the attempt.",
            rate("job_attempts", "queue, attempt", "@queue", "{{queue}} {{attempt}}"),
            unit="ops",
            width=6,
        ),
        graph(
            "An attempt by outcome",
            "95 % of the attempts with that outcome take less.",
            quantile(0.95, "job_seconds", "queue, outcome", "@queue"),
            unit="s",
            width=6,
        ),
        graph(
            "Retries",
            "Share of attempts that are retried.",
            (
                'sum by (queue) (rate(pipeline_jobs_finished_total{@queue, outcome="retried"}[$__rate_interval]))'
                " / sum by (queue) (rate(pipeline_jobs_finished_total{@queue}[$__rate_interval]))",
                "{{queue}}",
            ),
            unit="percentunit",
            width=6,
        ),
    ]


def _repairs() -> list[Panel]:
    return [
        graph(
            "Recovered",
            "Jobs enqueued again because their process sent no heartbeat, and the leases that it lost.",
            rate("jobs_recovered", "queue", "@queue", "{{queue}} recovered"),
            rate("leases_lost", "queue", "@queue", "{{queue}} leases lost"),
            rate("stale_results", legend="results dropped"),
            rate("reanalyses", by="outcome", legend="analyzed again: {{outcome}}"),
            unit="ops",
            width=6,
        ),
        graph(
            "Reconciler",
            "Searches for jobs that Redis lost, by reason; the jobs, dead letters and events that were enqueued again; "
            "images removed because no asset names them; data removed at the end of its retention; and documents that "
            "cannot be read.",
            rate("reconciler_searches", "reason", legend="{{reason}} searches"),
            rate("reconciled", legend="found"),
            rate("images_swept", legend="images swept"),
            rate("previews", "outcome", legend="previews {{outcome}}"),
            rate("expired", "kind", legend="{{kind}} expired"),
            rate("damaged_assets", legend="damaged documents"),
            unit="ops",
            width=6,
        ),
        graph(
            "Paused",
            "1 while an operator has paused the queue: no jobs are claimed.",
            ("max by (queue) (pipeline_queue_paused{@queue})", "{{queue}}"),
            width=6,
        ),
        graph(
            "Held",
            "How long a provider or durable notifier is not called, because it cannot be reached or is busy.",
            ("max by (queue, provider) (pipeline_provider_held_seconds{@queue})", "{{provider}}"),
            unit="s",
            width=6,
        ),
    ]
