"""The command `submit`, and the upload of `demo`: uploads photos and waits for their results."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import click
from rich.progress import BarColumn, DownloadColumn, TextColumn, TransferSpeedColumn

from pipeline import settings as settings_module
from pipeline.client import ClientError, Operator, Unavailable, event_of
from pipeline.commands import service_target
from pipeline.commands.exit_codes import ExitCode, Unfinished
from pipeline.commands.progress_marks import Marks
from pipeline.commands.service_target import with_url, with_user_token
from pipeline.commands.output import NAME_AT_MOST, bar, complain, note, shortened
from pipeline.commands.submit_lines import Lines, PeopleLines, lines_for
from pipeline.errors import ConfigurationError

# Longest time without progress: longer than a job may take (JOB_TIMEOUT_SECONDS is 120), since its start is progress.
PATIENCE_SECONDS = 180.0
# After this time the command names the plugins that hold photos up.
HELD_SECONDS = 10.0
# Before the command gives up, it reads at most so many of the waiting assets.
READ_AT_MOST = 50
# Frames that may show progress. asset_held shows none.
STEPS = ("asset_queued", "asset_started", "asset_retrying", "asset_progress")


def _categories(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Return the shell's completions: the categories of the local settings."""
    try:
        return [name for name in settings_module.load().categories if name.startswith(incomplete)]
    except ConfigurationError:
        return []


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--category",
    required=True,
    shell_complete=_categories,
    help="The category of the photos; the service knows the allowed ones.",
)
@click.option("--watch", is_flag=True, help="Wait for the results and print them.")
@click.option(
    "--patience",
    "patience_seconds",
    default=PATIENCE_SECONDS,
    show_default=True,
    type=service_target.Number(min=1, max=86_400),
    help="With --watch: give up after this many seconds without any sign of progress.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON line for each step.")
@with_url
@with_user_token
def submit(
    files: tuple[Path, ...],
    category: str,
    watch: bool,
    patience_seconds: float,
    as_json: bool,
    url: str | None,
    token: str | None,
) -> None:
    """Upload photos; with --watch wait for their results, as long as they make progress.

    Into a pipe or a file it prints one line for each accepted photo: its id, with --watch ID STATUS FILE.

    Exit codes: 0 all were accepted, with --watch also finished; 1 one was refused or failed; 2 wrong use or
    configuration; 3 none failed, but some were not finished in time; 130 Ctrl-C. The service continues with unfinished
    photos.
    """
    # A service elsewhere may have other categories, and checks them itself.
    if url is None and category not in (known := settings_module.load().categories):
        raise click.BadParameter(f"{category!r}: must be one of: {', '.join(known)}", param_hint="--category")
    submission = Submission(
        [(path, category) for path in files], lines_for(as_json=as_json, watches=watch), patience_seconds
    )
    sys.exit(submission.run(*service_target.target(url, token, service_target.DEMO_USER), watch=watch))


class Submission:
    """The upload of some photos, and the wait for their results."""

    def __init__(self, photos: Sequence[tuple[Path, str]], lines: Lines, patience_seconds: float) -> None:
        """
        photos: file and category of each.
        lines: prints the results.
        """
        self._photos = photos
        self._lines = lines
        self._patience_seconds = patience_seconds
        # Asset id -> file, of unfinished photos.
        self._waiting: dict[str, Path] = {}
        # Events that came before the reply to their upload.
        self._early: dict[str, dict[str, Any]] = {}
        self._marks = Marks()
        self._has_failed = False
        self._is_sent = False
        self._since: str | None = None
        self._moved = asyncio.Event()
        self._started_at = time.monotonic()

    def run(self, url: str, token: str, *, watch: bool) -> ExitCode:
        """Upload all photos and, if `watch`, wait for their results; return the exit code."""
        try:
            asyncio.run(self._run(url, token, watch=watch))
        except KeyboardInterrupt:
            self._give_up("Interrupted")
            return ExitCode.INTERRUPTED
        except Unfinished as error:
            self._give_up(str(error))
            return ExitCode.FAILED if self._has_failed else ExitCode.UNFINISHED
        except ClientError as error:
            if not self._waiting:
                raise
            self._give_up(str(error))
            return ExitCode.FAILED
        return ExitCode.FAILED if self._has_failed else ExitCode.WELL

    async def _run(self, url: str, token: str, *, watch: bool) -> None:
        async with Operator(url, token, progress=True, on_notice=note) as client:
            if not watch:
                await self._upload(client)
                self._waiting.clear()
                return
            await client.listen()
            self._since = client.since
            # Before the upload: the service closes a connection whose events are not read for long.
            async with _beside(self._read_events(client), self._note_held_plugins(client)) as tasks:
                await self._upload(client)
                self._is_sent = True
                await self._wait(client, tasks)

    # the upload

    async def _upload(self, client: Operator) -> None:
        name = TextColumn("{task.description}", markup=False)
        with bar(name, BarColumn(), DownloadColumn(), TransferSpeedColumn()) as sending:
            sent = sending.add_task("", total=sum(_size(path) for path, _ in self._photos))
            for number, (path, category) in enumerate(self._photos):
                count = f"{number + 1}/{len(self._photos)}"
                sending.update(sent, description=f"{count} {shortened(path.name, NAME_AT_MOST)}")
                try:
                    reply = await client.upload(path, category, on_progress=lambda size: sending.advance(sent, size))
                except ClientError as error:
                    self._has_failed = True
                    self._lines.refused(path, str(error))
                    if isinstance(error, Unavailable):
                        # The client has retried this one for a while; the next ones would fail in the same way.
                        self._skip([path for path, _ in self._photos[number + 1 :]])
                        return
                else:
                    self._accept(path, reply)

    def _skip(self, paths: Sequence[Path]) -> None:
        for path in paths:
            self._lines.refused(path, "Not sent: the service could not take the one before")

    def _accept(self, path: Path, reply: dict[str, Any]) -> None:
        asset_id = reply["assetId"]
        self._waiting[asset_id] = path
        self._lines.accepted(path, reply)
        self._moved.set()
        if (event := self._early.pop(asset_id, None)) is not None:
            self._finish(asset_id, event)

    # the results

    async def _read_events(self, client: Operator) -> None:
        async for event in client.events():
            asset_id = event.get("assetId", "")
            if event["event"] in ("asset_processed", "asset_deleted"):
                self._finish(asset_id, event)
            elif event["event"] in STEPS and self._is_ours(asset_id) and self._marks.has_moved(asset_id, event):
                self._moved.set()

    def _is_ours(self, asset_id: str) -> bool:
        return asset_id in self._waiting or not self._is_sent

    def _finish(self, asset_id: str, event: dict[str, Any]) -> None:
        path = self._waiting.pop(asset_id, None)
        if path is None:
            if not self._is_sent:
                self._early[asset_id] = event
            return
        self._has_failed = self._has_failed or event.get("status", "deleted") in ("failed", "deleted")
        self._lines.finished(path, event, time.monotonic() - self._started_at)
        self._moved.set()

    async def _wait(self, client: Operator, tasks: Sequence[asyncio.Task[None]]) -> None:
        """Return when all photos are finished; Unfinished when none makes progress any more."""
        while self._waiting:
            self._moved.clear()
            moving = asyncio.create_task(self._moved.wait())
            # The task of the events ends only when the service refuses it.
            await asyncio.wait({moving, tasks[0]}, timeout=self._patience_seconds, return_when=asyncio.FIRST_COMPLETED)
            moving.cancel()
            if tasks[0].done():
                tasks[0].result()
            if not self._moved.is_set() and not await self._look(client):
                raise Unfinished(f"No sign of progress within {self._patience_seconds:g} s")

    async def _look(self, client: Operator) -> bool:
        """Read the waiting assets, because long polling brings no progress; return whether any made progress."""
        has_moved = False
        for asset_id in list(self._waiting)[:READ_AT_MOST]:
            with suppress(ClientError):
                asset = await client.asset(asset_id)
                if (event := event_of(asset)) is not None:
                    self._finish(asset_id, event)
                    has_moved = True
                has_moved = self._marks.has_moved(asset_id, asset["progress"] or {}) or has_moved
        return has_moved

    async def _note_held_plugins(self, client: Operator) -> None:
        """Print once, during the wait, which plugins are not called and why."""
        while True:
            await asyncio.sleep(HELD_SECONDS)
            with suppress(ClientError):
                if held := await client.held_plugins():
                    note("Still waiting: " + "; ".join(held))
                    return

    def _give_up(self, why: str) -> None:
        """Print the unfinished photos and how to continue."""
        for asset_id, path in self._waiting.items():
            self._lines.unfinished(path, asset_id)
        if not self._waiting:
            complain(why, "Stopped")
            return
        command = service_target.this_command()
        since = f" --since {self._since}" if self._since else ""
        count = f"{len(self._waiting)} of {len(self._photos)} photos are not finished"
        complain(f"{why}; {count}, and the service continues with them", "Stopped")
        note(f"To see their results: {command} watch{since}")
        note(f"Their ids: {' '.join(self._waiting)}")


@asynccontextmanager
async def _beside(*works: Any) -> AsyncIterator[Sequence[asyncio.Task[None]]]:
    """Run these coroutines as tasks until the end of the block."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # the upload reports it
        return 0


def submit_for_demo(url: str, token: str, photos: Sequence[tuple[Path, str]]) -> ExitCode:
    """Upload the demo's photos, and print each event for people."""
    return Submission(photos, PeopleLines(with_events=True), PATIENCE_SECONDS).run(url, token, watch=True)
