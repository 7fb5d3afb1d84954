"""The panels of the page `Pipeline plugins and runtime`: plugins, AI usage, HTTP, event loop, processes."""

from __future__ import annotations

from grafana.panels import Panel, graph, heat, quantile, quantiles, rate

# The chosen jobs may include jobs of other services in Prometheus; this selects ours.
OURS = "and on (job, instance) pipeline_build_info{@}"


def rows() -> dict[str, list[Panel]]:
    """Return the rows of the page, from top to bottom."""
    return {
        "Plugins": [*_plugin_calls(), *_plugin_faults()],
        "AI usage": _ai(),
        "HTTP": _http(),
        "Event loop": _loop(),
        "Processes": _processes(),
    }


def _plugin_calls() -> list[Panel]:
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
            "95 % of the calls take less.",
            quantile(0.95, "plugin_seconds", "kind, plugin, method"),
            unit="s",
        ),
        graph(
            "Errors",
            "Calls that raised an error or exceeded their time limit.",
            rate("plugin_errors", "kind, plugin, method"),
            unit="ops",
        ),
        graph(
            "Overruns",
            "Calls that exceeded their time limit.",
            rate("plugin_overruns", "kind, plugin, method"),
            unit="ops",
        ),
    ]


def _plugin_faults() -> list[Panel]:
    return [
        graph(
            "Held by processes",
            "Processes that do not call the method: it is unreachable, failed several times in a row, or is busy.",
            ("sum by (kind, plugin, method) (pipeline_plugin_held{@})", "{{kind}} {{plugin}} {{method}}"),
        ),
        graph(
            "Skipped",
            "Calls not made: the method was held, or too slow for all calls.",
            rate("plugin_skipped", "kind, plugin, method"),
            unit="ops",
        ),
        graph(
            "Stuck",
            "Threads and tasks still used by calls that exceeded their time limit.",
            ("sum by (kind, plugin) (pipeline_plugin_stuck{@})", "{{kind}} {{plugin}}"),
        ),
        graph(
            "Blocked the loop",
            "How often the plugin blocked the event loop.",
            rate("plugin_blocked_loop", "kind, plugin"),
            unit="ops",
        ),
        graph(
            "Wait for a thread",
            "From a blocking call until a thread runs it; 95 % wait less.",
            quantile(0.95, "thread_wait_seconds", "kind, plugin"),
            unit="s",
        ),
    ]


def _ai() -> list[Panel]:
    return [
        graph("Answers", "Answers of AI providers, by model.", rate("ai_calls", "provider, model"), unit="ops"),
        graph(
            "Tokens",
            "Tokens read (input) and written (output), as the providers report them.",
            rate("ai_tokens", "provider, model, direction"),
        ),
        graph(
            "Cost of the last 24 hours",
            "In units of the currency, as the providers report it; answers without a known price are not included.",
            (
                "sum by (provider, model, currency) (increase(pipeline_ai_cost_total{@}[24h]))",
                "{{provider}} {{model}} {{currency}}",
            ),
        ),
    ]


def _http() -> list[Panel]:
    return [
        graph(
            "Requests", "Finished requests by route and status.", rate("http_requests", "route, status"), unit="reqps"
        ),
        graph("Requests by method", "Finished requests by method.", rate("http_requests", "method"), unit="reqps"),
        graph(
            "Time of a request",
            "From request line to last byte; 95 % take less.",
            quantile(0.95, "http_seconds", "route"),
            unit="s",
        ),
    ]


def _loop() -> list[Panel]:
    return [
        graph("Lag", "The delay of due callbacks in the event loops.", *quantiles("loop_lag_seconds"), unit="s"),
        graph(
            "Lag by process",
            "99 % of the due callbacks run with less delay.",
            quantile(0.99, "loop_lag_seconds", "instance"),
            unit="s",
        ),
        heat("Lag, spread", "The delay of due callbacks in the event loops.", "loop_lag_seconds"),
        graph(
            "Tasks started again",
            "Long-lived tasks that ended with an error; the log has a trace of each.",
            rate("task_restarts", "task", legend="{{task}}"),
            unit="ops",
        ),
        graph(
            "Clock skew",
            "How far each machine's clock is ahead of Redis TIME; a process beyond 5 s either way is not ready.",
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
            "Processes by version; two versions run at the same time only during a deploy.",
            ("count by (version, python) (pipeline_build_info{@})", "{{version}} on Python {{python}}"),
            width=24,
        ),
    ]
