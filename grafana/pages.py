"""The four pages of operators, written to grafana/dashboards: `python -m grafana.pages`. Nobody edits the JSON.

Numbers that end in FLEET in pipeline/metrics.py are the same from every process, so they are shown by max; the others
are summed. Every page asks the job and the instances chosen on it, and the choice goes along to the next page.
"""

from __future__ import annotations

from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from grafana.panels import (
    ALL_IS_GOOD,
    NONE_IS_GOOD,
    Panel,
    at_least,
    graph,
    heat,
    number,
    page,
    quantile,
    quantiles,
    rate,
)

DASHBOARDS = Path(__file__).parent / "dashboards"
PAGES = {
    "pipeline-overview": "Pipeline overview",
    "pipeline-jobs": "Pipeline jobs",
    "pipeline-realtime": "Pipeline realtime",
    "pipeline-runtime": "Pipeline plugins and runtime",
}
VARIABLES = {
    "job": "label_values(pipeline_build_info, job)",
    "instance": 'label_values(pipeline_build_info{job=~"$job"}, instance)',
}
QUEUE = {"queue": 'label_values(pipeline_queue_depth{job=~"$job", instance=~"$instance"}, queue)'}
# "All" jobs are all that Prometheus knows; this leaves those of ours.
OURS = "and on (job, instance) pipeline_build_info{@}"


def build() -> dict[str, str]:
    """Return the JSON of each page by its uid."""
    pages = {
        "pipeline-overview": _page(
            "pipeline-overview",
            "Are the promises kept, and if not, where to look next.",
            {"Promises": _promises(), "Now": _now(), "Uploads and results": _results()},
        ),
        "pipeline-jobs": _page(
            "pipeline-jobs",
            "The job queues: what waits, how long things take, how attempts end, what was put right.",
            {"Queues": _queues(), "Times": _times(), "Outcomes": _outcomes(), "Repairs and holds": _repairs()},
            **QUEUE,
        ),
        "pipeline-realtime": _page(
            "pipeline-realtime",
            "Sockets and events: who listens, how fast results arrive, who is cut off.",
            {"Events": _events(), "Sockets": _sockets()},
        ),
        "pipeline-runtime": _page(
            "pipeline-runtime",
            "What the plugins cost, and how the processes are.",
            {
                "Plugins": _plugins(),
                "AI usage": _ai(),
                "HTTP": _http(),
                "Event loop": _loop(),
                "Processes": _processes(),
            },
        ),
    }
    return {uid: JSONEncoder(indent=1, sort_keys=True).encode(board) + "\n" for uid, board in pages.items()}


def _page(uid: str, description: str, rows: dict[str, list[Panel]], **variables: str) -> Dashboard:
    links = [(other, title) for other, title in PAGES.items() if other != uid]
    return page(uid, PAGES[uid], description, rows, VARIABLES | variables, links)


# overview


def _within(metric: str, seconds: str, window: str) -> str:
    """The share that took at most so long; seconds: as the bucket spells it."""
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
            "Share of assets done, event included, within 60 s of their upload. The promise is 95 %; "
            "the AI `local` reads one photo at a time, so it keeps that for 30 photos at once.",
            _within("asset_seconds", "60.0", "$__range"),
            unit="percentunit",
            width=4,
            steps=at_least(0.95),
        ),
        number(
            "Budget: slow assets",
            "How much is left of the 5 % that may take longer, over the time shown. Below 0 the promise is broken.",
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
            "How much is left of the 1 % that may come later, over the time shown. Below 0 the promise is broken.",
            _budget_left("event_seconds", "1.0", 0.99),
            unit="percentunit",
            width=4,
            steps=at_least(0),
        ),
        graph(
            "Burn rate",
            "How fast the budgets are spent: at 1 they just last, at 6 a month's budget is gone in five days.",
            (_burn("asset_seconds", "60.0", 0.95, "5m"), "slow assets, 5 min"),
            (_burn("asset_seconds", "60.0", 0.95, "1h"), "slow assets, 1 h"),
            (_burn("event_seconds", "1.0", 0.99, "5m"), "late events, 5 min"),
            (_burn("event_seconds", "1.0", 0.99, "1h"), "late events, 1 h"),
        ),
    ]


def _now() -> list[Panel]:
    waiting = 'sum(max by (queue) (pipeline_queue_depth{@, state="waiting"}))'
    dead = 'sum(max by (queue) (pipeline_queue_depth{@, state="failed"}))'
    return [
        number("Processes", "Processes that were scraped lately.", "count(pipeline_build_info{@})", steps=ALL_IS_GOOD),
        number(
            "Away",
            "Dependencies that some process cannot use, see the graph of them.",
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
            "Share of all job slots that are at work.",
            "sum(pipeline_slots_busy{@}) / sum(pipeline_slots{@})",
            unit="percentunit",
        ),
        number("Dead letters", "Jobs of all queues that failed for good and are still listed.", dead),
        number(
            "Providers held",
            "Providers and durable notifiers that are not asked now: they cannot be, or are busy.",
            "sum(max by (queue, provider) (pipeline_provider_held_seconds{@}) > bool 0)",
            steps=NONE_IS_GOOD,
        ),
        number("Sockets", "Open sockets, event streams and long polls.", "sum(pipeline_sockets_open{@})"),
    ]


def _results() -> list[Panel]:
    return [
        graph("Uploads", "Uploads by how they were answered.", rate("uploads", "outcome"), unit="reqps"),
        graph("Assets", "Assets by the status they ended in.", rate("assets_finished", "status"), unit="ops"),
        graph("From upload to event", "Over all assets; 60 s are promised.", *quantiles("asset_seconds"), unit="s"),
        graph(
            "Jobs waiting",
            "Jobs that wait for a slot or for their next attempt.",
            ('sum by (queue) (max by (queue, state) (pipeline_queue_depth{@, state=~"waiting|delayed"}))', "{{queue}}"),
        ),
        graph(
            "Failures",
            "Attempts that failed, calls of plugins that did, uploads that had to be refused.",
            rate("jobs_finished", "queue, outcome", '@, outcome=~"retried|postponed|failed|lost"'),
            rate("plugin_errors", "kind, plugin"),
            rate("uploads", "", '@, outcome="unavailable"', legend="uploads refused"),
            unit="ops",
        ),
        graph(
            "Dependencies",
            "1 when every process can use it, 0 when one of them cannot: /readyz?verbose says why.",
            ("min by (name) (pipeline_dependency_up{@})", "{{name}}"),
        ),
        graph(
            "Disk",
            "How full the filesystem of DATA_DIR is, by process.",
            ("1 - pipeline_disk_free_bytes{@} / pipeline_disk_size_bytes{@}", "{{instance}}"),
            unit="percentunit",
        ),
        graph(
            "Processes by role",
            "Alive, or lost: ended without saying so and not replaced.",
            ("max by (role, state) (pipeline_processes{@})", "{{role}} {{state}}"),
        ),
        graph("Upload bytes", "Bytes of accepted images.", rate("upload_bytes", legend="bytes"), unit="Bps"),
        graph(
            "Refused by a limit",
            "Requests with 429 and uploads with 403; the log line rate_limited says whose.",
            rate("rate_limited", "limit"),
            unit="reqps",
        ),
    ]


# jobs


def _queues() -> list[Panel]:
    return [
        graph(
            "Jobs by state",
            "As Redis has them; completed and failed ones until their retention ends.",
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
            "The longest running attempt of all processes; 120 s is the limit.",
            ("max by (queue) (pipeline_job_running_seconds{@queue})", "{{queue}}"),
            unit="s",
        ),
        graph(
            "In and out",
            "Jobs put in the queue, taken from it, and done.",
            rate("jobs_enqueued", "queue", "@queue", "{{queue}} enqueued"),
            rate("jobs_claimed", "queue", "@queue", "{{queue}} claimed"),
            rate("jobs_finished", "queue", '@queue, outcome="completed"', "{{queue}} completed"),
            unit="ops",
        ),
        graph(
            "Slots",
            "Job slots of all processes, and those at work.",
            ("sum by (queue) (pipeline_slots{@queue})", "{{queue}} slots"),
            ("sum by (queue) (pipeline_slots_busy{@queue})", "{{queue}} busy"),
        ),
        graph(
            "Dead letters",
            "Jobs that failed for good and are still listed: `run.py failed ls`.",
            ('max by (queue) (pipeline_queue_depth{@queue, state="failed"})', "{{queue}}"),
        ),
    ]


def _times() -> list[Panel]:
    completed = '@queue, outcome="completed"'
    return [
        graph(
            "Wait for a slot", "From enqueued to first start.", *quantiles("job_wait_seconds", "@queue"), unit="s"
        ),
        graph(
            "An attempt", "From start to outcome, completed ones.", *quantiles("job_seconds", completed), unit="s"
        ),
        graph("From upload to event", "The whole way of an asset, all tries.", *quantiles("asset_seconds"), unit="s"),
        heat("Wait for a slot, spread", "From enqueued to first start.", "job_wait_seconds", "@queue"),
        heat("An attempt, spread", "From start to outcome, all outcomes.", "job_seconds", "@queue"),
        heat("From upload to event, spread", "The whole way of an asset, all tries.", "asset_seconds"),
    ]


def _outcomes() -> list[Panel]:
    return [
        graph(
            "Attempts by outcome",
            "How attempts ended. No attempts: parked (the provider is held), postponed (store or storage away).",
            rate("jobs_finished", "queue, outcome", "@queue"),
            unit="ops",
            width=6,
        ),
        graph(
            "Starts by attempt",
            "How many starts were the first, the second, a later one.",
            rate("job_attempts", "queue, attempt", "@queue", "{{queue}} {{attempt}}"),
            unit="ops",
            width=6,
        ),
        graph(
            "An attempt by outcome",
            "The time 95 % of the attempts of that outcome stay below.",
            quantile(0.95, "job_seconds", "queue, outcome", "@queue"),
            unit="s",
            width=6,
        ),
        graph(
            "Retries",
            "Share of attempts that are tried again.",
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
            "Jobs put back because their process was silent, and leases it lost that way.",
            rate("jobs_recovered", "queue", "@queue", "{{queue}} recovered"),
            rate("leases_lost", "queue", "@queue", "{{queue}} leases lost"),
            rate("stale_results", legend="results dropped"),
            rate("reanalyses", by="outcome", legend="analyzed again: {{outcome}}"),
            unit="ops",
            width=6,
        ),
        graph(
            "Reconciler",
            "Searches for what Redis lost, by reason; the jobs, dead letters and events that were put back; and stored "
            "images that were removed because no asset names them; what was kept for long enough; and documents that "
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
            "1 while no jobs of the queue are claimed, because somebody paused it.",
            ("max by (queue) (pipeline_queue_paused{@queue})", "{{queue}}"),
            width=6,
        ),
        graph(
            "Held",
            "How long a provider or durable notifier is not asked, because it cannot be or is busy; others go on.",
            ("max by (queue, provider) (pipeline_provider_held_seconds{@queue})", "{{provider}}"),
            unit="s",
            width=6,
        ),
    ]


# realtime


def _events() -> list[Panel]:
    return [
        graph("From result to event", "Commit to sent; 1 s is promised.", *quantiles("event_seconds"), unit="s"),
        heat("From result to event, spread", "From a result's commit to its event being sent.", "event_seconds"),
        graph(
            "Events and frames",
            "Events handed to rooms, and frames written to sockets.",
            rate("events_published", legend="events"),
            rate("socket_frames_sent", legend="frames"),
            unit="ops",
        ),
        graph(
            "Late at other processes",
            "Events that Redis did not take within a second: told when it is back; when too many, read from the store.",
            rate("fanout_errors", legend="late"),
            rate("events_dropped", legend="left to the store"),
            unit="ops",
        ),
        graph(
            "Replays", "Reads of what a socket missed, by how they ended.", rate("replays", "outcome"), unit="ops"
        ),
        graph(
            "Events replayed",
            "Events sent again from the asset store.",
            rate("events_replayed", legend="events"),
            unit="ops",
        ),
    ]


def _sockets() -> list[Panel]:
    return [
        graph(
            "Open sockets",
            "Sockets, event streams (sse) and long polls (poll) in a room, by process.",
            ("sum by (instance, transport) (pipeline_sockets_open{@})", "{{instance}} {{transport}}"),
            width=6,
        ),
        graph(
            "Closed sockets",
            "By close code: 1012 we went away, 4401 and 4403 no good token, 4503 reads too slowly, 4504 silent.",
            rate("sockets_closed", "code"),
            unit="ops",
            width=6,
        ),
        graph(
            "Outboxes",
            "Bytes that wait for slow clients, by process.",
            ("sum by (instance) (pipeline_outbox_bytes{@})", "{{instance}}"),
            unit="bytes",
            width=6,
        ),
        graph(
            "Refused connections",
            "Connections closed for lack of open files, by process.",
            rate("connections_refused", "instance"),
            unit="ops",
            width=6,
        ),
    ]


# plugins and runtime


def _plugins() -> list[Panel]:
    return [
        graph(
            "Calls",
            "Calls of plugins, by method.",
            (
                "sum by (kind, plugin, method) (rate(pipeline_plugin_seconds_count{@}[$__rate_interval]))",
                "{{kind}} {{plugin}} {{method}}",
            ),
            unit="ops",
        ),
        graph(
            "Latency",
            "The time 95 % of the calls stay below.",
            quantile(0.95, "plugin_seconds", "kind, plugin, method"),
            unit="s",
        ),
        graph(
            "Errors",
            "Calls that raised or overran their time.",
            rate("plugin_errors", "kind, plugin, method"),
            unit="ops",
        ),
        graph(
            "Overruns",
            "Calls that used up their time.",
            rate("plugin_overruns", "kind, plugin, method"),
            unit="ops",
        ),
        graph(
            "Held by processes",
            "Processes that do not call the method: it could not be called, failed in a row, or is busy.",
            ("sum by (kind, plugin, method) (pipeline_plugin_held{@})", "{{kind}} {{plugin}} {{method}}"),
        ),
        graph(
            "Skipped",
            "Calls not made: the method was held, or too slow to take them.",
            rate("plugin_skipped", "kind, plugin, method"),
            unit="ops",
        ),
        graph(
            "Stuck",
            "Threads and tasks held by calls whose time is over.",
            ("sum by (kind, plugin) (pipeline_plugin_stuck{@})", "{{kind}} {{plugin}}"),
        ),
        graph(
            "Blocked the loop",
            "Times the plugin kept the event loop from everything else.",
            rate("plugin_blocked_loop", "kind, plugin"),
            unit="ops",
        ),
        graph(
            "Wait for a thread",
            "From a blocking call to a thread that runs it; 95 % wait less.",
            quantile(0.95, "thread_wait_seconds", "kind, plugin"),
            unit="s",
        ),
    ]


def _ai() -> list[Panel]:
    return [
        graph("Answers", "Answers of AI providers, by model.", rate("ai_calls", "provider, model"), unit="ops"),
        graph(
            "Tokens",
            "Tokens read (input) and written (output), as the providers tell.",
            rate("ai_tokens", "provider, model, direction"),
        ),
        graph(
            "Cost of the last 24 hours",
            "In units of the currency, as the providers tell; an answer whose price is not known is in no sum.",
            (
                "sum by (provider, model, currency) (increase(pipeline_ai_cost_total{@}[24h]))",
                "{{provider}} {{model}} {{currency}}",
            ),
        ),
    ]


def _http() -> list[Panel]:
    return [
        graph("Requests", "Finished ones by route and status.", rate("http_requests", "route, status"), unit="reqps"),
        graph("Requests by method", "Finished ones by method.", rate("http_requests", "method"), unit="reqps"),
        graph(
            "Time of a request",
            "From request line to last byte; 95 % take less.",
            quantile(0.95, "http_seconds", "route"),
            unit="s",
        ),
    ]


def _loop() -> list[Panel]:
    return [
        graph("Lag", "How late the event loops run what is due.", *quantiles("loop_lag_seconds"), unit="s"),
        graph(
            "Lag by process",
            "99 % of what is due runs with less delay.",
            quantile(0.99, "loop_lag_seconds", "instance"),
            unit="s",
        ),
        heat("Lag, spread", "How late the event loops run what is due.", "loop_lag_seconds"),
        graph(
            "Tasks started again",
            "Long-lived tasks that ended unforeseen; each has a trace in the log.",
            rate("task_restarts", "task", legend="{{task}}"),
            unit="ops",
        ),
        graph(
            "Clock skew",
            "How far each machine's clock is ahead of Redis TIME; beyond 5 s either way its process is not ready.",
            ("pipeline_clock_skew_seconds{@}", "{{instance}}"),
            unit="s",
        ),
    ]


def _processes() -> list[Panel]:
    return [
        graph(
            "CPU",
            "Cores in use, by process.",
            (f"sum by (instance) (rate(process_cpu_seconds_total{{@}}[$__rate_interval]) {OURS})", "{{instance}}"),
            width=6,
        ),
        graph(
            "Memory",
            "Resident memory, by process.",
            (f"sum by (instance) (process_resident_memory_bytes{{@}} {OURS})", "{{instance}}"),
            unit="bytes",
            width=6,
        ),
        graph(
            "Open files",
            "Share of the files a process may open; sockets are files.",
            (f"max by (instance) (process_open_fds{{@}} / process_max_fds{{@}} {OURS})", "{{instance}}"),
            unit="percentunit",
            width=6,
        ),
        graph(
            "Age",
            "Time since the process started.",
            (f"time() - max by (instance) (process_start_time_seconds{{@}} {OURS})", "{{instance}}"),
            unit="s",
            width=6,
        ),
        graph(
            "Versions",
            "Processes by what they run; two at a time only during a deploy.",
            ("count by (version, python) (pipeline_build_info{@})", "{{version}} on Python {{python}}"),
            width=24,
        ),
    ]


if __name__ == "__main__":
    for uid, text in build().items():
        (DASHBOARDS / f"{uid}.json").write_text(text)
