"""The observer `journal`: writes one JSON line for each event of a job to a file, for audits and statistics.

Off unless PLUGIN_JOURNAL_PATH is set. The file is opened for each line, so it can be rotated at any time. Runs in a
thread of the plugin.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from pipeline.hooks import JobEvent, PluginSettings, hookimpl

if TYPE_CHECKING:
    from pipeline.settings import Settings


class JournalSettings(PluginSettings):
    """The file of the journal."""

    path: Path | None = Field(None, description="File that lines are appended to; empty: no journal is written.")

    @property
    def is_active(self) -> bool:
        return self.path is not None


@hookimpl
def register_settings() -> Iterator[tuple[str, type[PluginSettings]]]:
    """Offer the settings of `journal`."""
    yield "journal", JournalSettings


@hookimpl
def job_enqueued(event: JobEvent, settings: Settings) -> None:
    """Write a line."""
    _append("enqueued", event, settings)


@hookimpl
def job_started(event: JobEvent, settings: Settings) -> None:
    """Write a line."""
    _append("started", event, settings)


@hookimpl
def job_retrying(event: JobEvent, settings: Settings) -> None:
    """Write a line."""
    _append("retrying", event, settings)


@hookimpl
def job_finished(event: JobEvent, settings: Settings) -> None:
    """Write a line."""
    _append("finished", event, settings)


def _append(step: str, event: JobEvent, settings: Settings) -> None:
    path = settings.plugin("journal", JournalSettings).path
    assert path is not None
    line = {"job": step} | asdict(event) | {"at": event.at.isoformat(timespec="milliseconds")}
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
