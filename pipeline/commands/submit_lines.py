"""The lines that `submit` prints for each photo: words on a terminal, ids into a pipe, JSON for programs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Protocol

from pipeline.commands.output import BAD, BOLD, complain, is_terminal, note, say, say_json

FIELDS = ("brand", "model", "colorway")


class Lines(Protocol):
    """Prints the state of each photo."""

    def accepted(self, path: Path, reply: dict[str, Any]) -> None:
        """Print that the service has accepted a photo. reply: to its upload."""

    def refused(self, path: Path, why: str) -> None:
        """Print that the service has refused a photo."""

    def finished(self, path: Path, event: dict[str, Any], seconds: float) -> None:
        """Print a photo's result.

        event: asset_processed or asset_deleted.
        seconds: since the command began.
        """

    def unfinished(self, path: Path, asset_id: str) -> None:
        """Print that the command no longer waits for a photo."""


class PeopleLines:
    """Lines for people, in words."""

    def __init__(self, *, with_events: bool = False) -> None:
        self._with_events = with_events

    def accepted(self, path: Path, reply: dict[str, Any]) -> None:
        say(f"{path.name}: accepted as {reply['assetId']}")

    def refused(self, path: Path, why: str) -> None:
        complain(why, path.name)

    def finished(self, path: Path, event: dict[str, Any], seconds: float) -> None:
        status = _status(event)
        result = f": {text}" if (text := _result(event)) else ""
        say(f"{path.name} is {status} after {seconds:.1f} s{result}", BAD if status in ("failed", "deleted") else BOLD)
        if self._with_events:
            say_json(event)

    def unfinished(self, path: Path, asset_id: str) -> None:
        """Print nothing: the command says at its end how to continue."""


class IdLines:
    """One line for each photo that was accepted, its id first; the rest goes to standard error."""

    def __init__(self, *, watches: bool) -> None:
        """watches: the line is ID STATUS FILE and comes when the photo is finished."""
        self._watches = watches

    def accepted(self, path: Path, reply: dict[str, Any]) -> None:
        if self._watches:
            note(f"{path.name}: accepted as {reply['assetId']}")
        else:
            say(reply["assetId"])

    def refused(self, path: Path, why: str) -> None:
        complain(why, path.name)

    def finished(self, path: Path, event: dict[str, Any], seconds: float) -> None:
        say(f"{event['assetId']} {_status(event)} {path}")
        if event.get("error"):
            complain(event["error"], path.name)

    def unfinished(self, path: Path, asset_id: str) -> None:
        say(f"{asset_id} processing {path}")


class JsonLines:
    """One JSON object on a line for each step: accepted, refused, the event itself, unfinished."""

    def accepted(self, path: Path, reply: dict[str, Any]) -> None:
        ids = {"assetId": reply["assetId"], "jobId": reply["jobId"]}
        say_json({"event": "accepted", "file": str(path), **ids})

    def refused(self, path: Path, why: str) -> None:
        say_json({"event": "refused", "file": str(path), "error": why})

    def finished(self, path: Path, event: dict[str, Any], seconds: float) -> None:
        say_json({**event, "file": str(path)})

    def unfinished(self, path: Path, asset_id: str) -> None:
        say_json({"event": "unfinished", "file": str(path), "assetId": asset_id})


def lines_for(*, as_json: bool, watches: bool) -> Lines:
    """Return the printer: JSON if asked for, words on a terminal, ids otherwise."""
    if as_json:
        return JsonLines()
    return PeopleLines() if is_terminal(sys.stdout) else IdLines(watches=watches)


def _status(event: dict[str, Any]) -> str:
    return str(event.get("status", "deleted"))


def _result(event: dict[str, Any]) -> str:
    """Return the found values, or the error."""
    metadata = event.get("aiMetadata") or {}
    values = [value for name in FIELDS if (value := (metadata.get(name) or {}).get("value"))]
    return ", ".join(values) or event.get("error") or ""
