"""The panels of the page `Pipeline overview`: promises, the state now, uploads and results."""

from __future__ import annotations

from grafana.panels import ALL_IS_GOOD, NONE_IS_GOOD, Panel, at_least, graph, number, quantiles, rate


def rows() -> dict[str, list[Panel]]:
    """Return the rows of the page, from top to bottom."""
    return {
        "Promises": _promises(),
        "Now": _now(),
        "Uploads and results": [*_results(), *_limits()],
    }


def _within(metric: str, seconds: str, window: str) -> str:
    """Return the query of the share of values up to a bucket; seconds: the name of the bucket."""
    within = f'sum(increase(pipeline_{metric}_bucket{{@, le="{seconds}"}}[{window}]))'
    return f"{within} / sum(increase(pipeline_{metric}_count{{@}}[{window}]))"


def _budget_left(metric: str, seconds: str, promise: float) -> str:
    return f"1 - (1 - {_within(metric, seconds, '$__range')}) / (1 - {promise})"


def _burn(metric: str, seconds: str, promise: float, window: str) -> str:
    return f"(1 - {_within(metric, seconds, window)}) / (1 - {promise})"


def _promises() -> list[Panel]:
    return [
        number(
            "Assets within 60 s",
            "Share of assets whose event was sent within 60 s of the upload. The promise is 95 %; "
            "the AI `local` reads one photo at a time, so it keeps this promise for up to 30 photos at once.",
            _within("asset_seconds", "60.0", "$__range"),
            unit="percentunit",
            width=4,
            steps=at_least(0.95),
        ),
        number(
            "Budget: slow assets",
            "The remaining part of the 5 % that may take longer, over the time shown. Below 0 the promise is broken.",
            _budget_left("asset_seconds", "60.0", 0.95),
            unit="percentunit",
            width=4,
            steps=at_least(0),
        ),
        number(
            "Events within 1 s",
            "Share of events sent within 1 s of their result. The promise is 99 %.",
            _within("event_seconds", "1.0", "$__range"),
            unit="percentunit",
            width=4,
            steps=at_least(0.99),
        ),
        number(
            "Budget: late events",
            "The remaining part of the 1 % that may come later, over the time shown. Below 0 the promise is broken.",
            _budget_left("event_seconds", "1.0", 0.99),
            unit="percentunit",
            width=4,
            steps=at_least(0),
        ),
        _burn_rate(),
    ]


def _burn_rate() -> Panel:
    return graph(
        "Burn rate",
        "How fast the budgets are used up: at 1 they just last, at 6 a month's budget lasts five days.",
        (_burn("asset_seconds", "60.0", 0.95, "5m"), "slow assets, 5 min"),
        (_burn("asset_seconds", "60.0", 0.95, "1h"), "slow assets, 1 h"),
        (_burn("event_seconds", "1.0", 0.99, "5m"), "late events, 5 min"),
        (_burn("event_seconds", "1.0", 0.99, "1h"), "late events, 1 h"),
    )


def _now() -> list[Panel]:
    waiting = 'sum(max by (queue) (pipeline_queue_depth{@, state="waiting"}))'
    dead = 'sum(max by (queue) (pipeline_queue_depth{@, state="failed"}))'
    return [
        number("Processes", "Processes that Prometheus scrapes.", "count(pipeline_build_info{@})", steps=ALL_IS_GOOD),
        number(
            "Away",
            "Dependencies that at least one process cannot use; the graph Dependencies names them.",
            "count(min by (name) (pipeline_dependency_up{@}) == 0) or vector(0)",
            steps=NONE_IS_GOOD,
        ),
        number("Waiting", "Jobs of all queues that wait for a slot.", waiting),
        number(
            "Oldest ready",
            "How long the oldest job that could start now has waited.",
            "max(pipeline_queue_oldest_seconds{@})",
            unit="s",
            steps=((None, "green"), (60, "orange"), (300, "red")),
        ),
        number(
            "Slots busy",
            "Share of all job slots that run a job.",
            "sum(pipeline_slots_busy{@}) / sum(pipeline_slots{@})",
            unit="percentunit",
        ),
        number("Dead letters", "Jobs of all queues that failed and are not retried, while they are listed.", dead),
        number(
            "Providers held",
            "Providers and durable notifiers that are not called now: they cannot be reached, or are busy.",
            "sum(max by (queue, provider) (pipeline_provider_held_seconds{@}) > bool 0)",
            steps=NONE_IS_GOOD,
        ),
        number("Sockets", "Open sockets, event streams and long polls.", "sum(pipeline_sockets_open{@})"),
    ]


def _results() -> list[Panel]:
    return [
        graph("Uploads", "Uploads by their answer.", rate("uploads", "outcome"), unit="reqps"),
        graph("Assets", "Finished assets by status.", rate("assets_finished", "status"), unit="ops"),
        graph("From upload to event", "Over all assets; 60 s are promised.", *quantiles("asset_seconds"), unit="s"),
        graph(
            "Jobs waiting",
            "Jobs that wait for a slot or for their next attempt.",
            ('sum by (queue) (max by (queue, state) (pipeline_queue_depth{@, state=~"waiting|delayed"}))', "{{queue}}"),
        ),
        graph(
            "Failures",
            "Failed attempts, failed calls of plugins, and refused uploads.",
            rate("jobs_finished", "queue, outcome", '@, outcome=~"retried|postponed|failed|lost"'),
            rate("plugin_errors", "kind, plugin"),
            rate("uploads", "", '@, outcome="unavailable"', legend="uploads refused"),
            unit="ops",
        ),
        graph(
            "Dependencies",
            "1 when every process can use the dependency, else 0: /readyz?verbose says why.",
            ("min by (name) (pipeline_dependency_up{@})", "{{name}}"),
        ),
    ]


def _limits() -> list[Panel]:
    return [
        graph(
            "Disk",
            "How full the filesystem of DATA_DIR is, by process.",
            ("1 - pipeline_disk_free_bytes{@} / pipeline_disk_size_bytes{@}", "{{instance}}"),
            unit="percentunit",
        ),
        graph(
            "Processes by role",
            "Alive, or lost: died and was not replaced.",
            ("max by (role, state) (pipeline_processes{@})", "{{role}} {{state}}"),
        ),
        graph("Upload bytes", "Bytes of accepted images.", rate("upload_bytes", legend="bytes"), unit="Bps"),
        graph(
            "Refused by a limit",
            "Requests answered with 429 and uploads answered with 403; the log line rate_limited names the user.",
            rate("rate_limited", "limit"),
            unit="reqps",
        ),
    ]
