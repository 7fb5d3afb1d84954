"""Writes the four dashboards of operators to grafana/dashboards: `python -m grafana.pages`. The JSON is not edited.

Every process reports the same value for a metric that ends in FLEET in pipeline/metrics.py, so these are shown by max;
the other metrics are summed. Each page queries the job and the instances chosen on it; links keep the choice.
"""

from __future__ import annotations

from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from grafana import jobs_panels, overview_panels, realtime_panels, runtime_panels
from grafana.panels import Panel, page

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


def build() -> dict[str, str]:
    """Return the JSON of each page by its uid."""
    pages = {
        "pipeline-overview": _page(
            "pipeline-overview",
            "Are the promises kept? If not, this page shows where to look.",
            overview_panels.rows(),
        ),
        "pipeline-jobs": _page(
            "pipeline-jobs",
            "The job queues: waiting jobs, durations, outcomes of attempts, repairs.",
            jobs_panels.rows(),
            **QUEUE,
        ),
        "pipeline-realtime": _page(
            "pipeline-realtime",
            "Sockets and events: open connections, the delay of events, closed connections.",
            realtime_panels.rows(),
        ),
        "pipeline-runtime": _page(
            "pipeline-runtime",
            "The calls of the plugins and the state of the processes.",
            runtime_panels.rows(),
        ),
    }
    return {uid: JSONEncoder(indent=1, sort_keys=True).encode(board) + "\n" for uid, board in pages.items()}


def _page(uid: str, description: str, rows: dict[str, list[Panel]], **variables: str) -> Dashboard:
    links = [(other, title) for other, title in PAGES.items() if other != uid]
    return page(uid, PAGES[uid], description, rows, VARIABLES | variables, links)


if __name__ == "__main__":
    for uid, text in build().items():
        (DASHBOARDS / f"{uid}.json").write_text(text)
