"""The panels of the page `Pipeline realtime`: events and sockets."""

from __future__ import annotations

from grafana.panels import Panel, graph, heat, quantiles, rate


def rows() -> dict[str, list[Panel]]:
    """Return the rows of the page, from top to bottom."""
    return {
        "Events": _events(),
        "Sockets": _sockets(),
    }


def _events() -> list[Panel]:
    return [
        graph("From result to event", "From commit to send; 1 s is promised.", *quantiles("event_seconds"), unit="s"),
        heat("From result to event, spread", "From a result's commit to its event being sent.", "event_seconds"),
        graph(
            "Events and frames",
            "Events sent to rooms, and frames written to sockets.",
            rate("events_published", legend="events"),
            rate("socket_frames_sent", legend="frames"),
            unit="ops",
        ),
        graph(
            "Late at other processes",
            "Events that Redis did not accept within a second: sent later or, if too many, read from the store.",
            rate("fanout_errors", legend="late"),
            rate("events_dropped", legend="left to the store"),
            unit="ops",
        ),
        graph(
            "Replays", "Reads of the events that a socket missed, by outcome.", rate("replays", "outcome"), unit="ops"
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
            "By close code: 1012 shutdown, 4401 and 4403 bad token, 4503 reads too slowly, 4504 no answer to a ping.",
            rate("sockets_closed", "code"),
            unit="ops",
            width=6,
        ),
        graph(
            "Outboxes",
            "Bytes that wait to be sent to slow clients, by process.",
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
