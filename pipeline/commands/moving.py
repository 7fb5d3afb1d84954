"""The command `move`, and the code that it shares with backups.py. These commands open the asset store and the storages
themselves, with the settings of the service, which may run at the same time.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any, NamedTuple, TypeVar

import click
from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from pipeline import logs
from pipeline.assets.store import AssetStore
from pipeline.commands import service_target
from pipeline.commands.exit_codes import ExitCode
from pipeline.commands.output import BAD, bar, complain, note, say, say_json, shortened
from pipeline.errors import ConfigurationError, DependencyUnavailable, PipelineError
from pipeline.hooks.catalogue import Catalogue
from pipeline.hooks.context import ContextFactory
from pipeline.hooks.kinds import STORAGE
from pipeline.hooks.storages import Storages
from pipeline.hooks.storage_calls import StorageCalls
from pipeline.metrics import Metrics
from pipeline.stores import build_store, embedded_store, open_store
from pipeline.settings import Settings
from pipeline.texts import cause_of
from pipeline.tracing import OFF
from pipeline.usecases import image_move, moving_processes, store_copying, store_moving
from pipeline.usecases.outage_retry import OutageRetry
from pipeline.usecases.plugin_values import PluginValues
from pipeline.usecases.storages_in_use import names_in_use

T = TypeVar("T")
# After this time every process has read where new images are saved; each reads it once a second.
CHOSEN_SECONDS = 2.0
EMBEDDED = "sqlite"
# Characters beside the progress bar.
CAUSE_AT_MOST = 60
GO_ON = "Run the same command again to continue; move --abandon gives up a move that is not decided yet."


class Backends(NamedTuple):
    """The open asset store and storages."""

    store: AssetStore
    storages: Storages


@asynccontextmanager
async def open_backends(settings: Settings, storage_name: str = "") -> AsyncIterator[Backends]:
    """Open the store and the storages. storage_name: of the current one; "": as the settings say."""
    check_user(settings)
    catalogue, metrics = Catalogue(settings), Metrics()
    store = build_store(settings).as_asset_store()
    contexts = ContextFactory(settings, metrics, partial(PluginValues, store))

    def stored_in(name: str) -> StorageCalls:
        return StorageCalls(catalogue.build(STORAGE, name, metrics, contexts), settings.storage_timeout_seconds, OFF)

    storages = Storages(stored_in(storage_name or settings.storage_name), stored_in)
    try:
        await store.open()
        await storages.open_storages(await names_in_use(store))
        yield Backends(store, storages)
    finally:
        await storages.close()
        await contexts.close()
        await store.close()
        await catalogue.sandbox.close()


def check_user(settings: Settings) -> None:
    """ConfigurationError when the embedded asset store belongs to another user, whom our new files beside it would lock
    out.
    """
    file = settings.data_dir / "assets.sqlite"
    with suppress(OSError):
        if not settings.mongodb_uri.get_secret_value() and (owner := file.stat().st_uid) != os.geteuid():
            raise ConfigurationError(f"{file} belongs to the user {owner}: run this command as that user")


class Bar:
    """The progress bar of a command. Each call counts one asset."""

    def __init__(self, progress: Progress, what: str) -> None:
        self._progress = progress
        self._what = what
        self._task = progress.add_task(what, total=None)
        self._noted_cause = ""

    def __call__(self) -> None:
        self._noted_cause = ""
        self._progress.update(self._task, advance=1, description=self._what)

    def rename(self, what: str) -> None:
        """Show another text: what the command does now."""
        self._what = what
        self._progress.update(self._task, description=what)

    def wait(self, cause: str) -> None:
        """Show why the command waits, until the next asset is counted."""
        self._progress.update(self._task, description=f"{self._what} (waiting: {shortened(cause, CAUSE_AT_MOST)})")
        if self._progress.disable and cause != self._noted_cause:
            self._noted_cause = cause
            note(f"Waiting: {cause}")


def run(work: Callable[[Settings, Bar], Awaitable[T]], what: str, hint: str = "") -> T:
    """Run the work with a bar that counts assets, and return its result. Its errors and Ctrl-C end the command.

    hint: how to continue after Ctrl-C, or after a dependency was down.
    """
    settings = service_target.load()
    # SIGTERM ends the command like Ctrl-C, which cleans up.
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    logs.configure(settings.log_format, "WARNING")
    doing = TextColumn("{task.description}", markup=False)
    columns = (SpinnerColumn(), doing, MofNCompleteColumn(), TextColumn("assets"), TimeElapsedColumn())
    with bar(*columns) as progress:
        try:
            return asyncio.run(_awaited(work(settings, Bar(progress, what))))
        except KeyboardInterrupt:
            note(f"Interrupted. {hint}".rstrip())
            raise SystemExit(ExitCode.INTERRUPTED) from None
        except ConfigurationError:
            raise
        except PipelineError as error:
            cause = f": {cause_of(error)}" if error.__cause__ is not None else ""
            complain(f"{error.message}{cause}")
            if hint and isinstance(error, DependencyUnavailable):
                note(hint)
            raise SystemExit(ExitCode.FAILED) from None


async def _awaited(work: Awaitable[T]) -> T:
    return await work


def report(counts: dict[str, Any], flaws: list[str], as_json: bool) -> None:
    """Print the counts and the flaws; exit code 1 when there are flaws."""
    if as_json:
        say_json(counts | {"flaws": flaws})
    else:
        for flaw in flaws:
            say(flaw, BAD)
        say(", ".join(f"{number} {name}" for name, number in counts.items()))
    if flaws:
        raise SystemExit(ExitCode.FAILED)


with_json = click.option("--json", "as_json", is_flag=True, help="One line of JSON.")


@click.command()
@click.option("--storage", "name", help="The target of all images: a storage that the settings configure.")
@click.option("--store", "address", help="The target of all assets: mongodb://..., sqlite (embedded), or - to read it.")
@click.option("--abandon", is_flag=True, help="Give up a move to another store that was interrupted.")
@with_json
def move(name: str | None, address: str | None, abandon: bool, as_json: bool) -> None:
    """Move all images to another storage, or all assets to another store, while the service runs.

    --storage: new images are saved there from now on, until STORAGE_BACKEND is changed. Exit code 1: some images are
    missing or damaged; they are listed and not moved.

    --store: every process uses the new store as soon as it is complete. Set or unset MONGODB_URI before the next start.
    All processes must have this version. The old store is not changed.

    After an interruption run the same command again to continue. It waits for a dependency that is down, two minutes at
    a time and fifteen in total. Exit codes: 0 success; 1 failed, or something was not moved; 2 wrong use or
    configuration; 130 Ctrl-C.
    """
    if (name is not None) + (address is not None) + abandon != 1:
        raise click.UsageError("Use either --storage NAME, --store ADDRESS or --abandon.")
    if name is not None:
        _move_images(name, as_json)
    elif address is not None:
        _move_assets(address, as_json)
    else:
        _abandon()


def _move_images(name: str, as_json: bool) -> None:
    async def work(settings: Settings, bar: Bar) -> image_move.Moved:
        async with open_backends(settings, name) as (store, storages):
            # Before the first upload is saved there.
            await image_move.probe(storages)
            await image_move.choose_storage(store, name, instead_of=settings.storage_name)
            await asyncio.sleep(CHOSEN_SECONDS)
            outage_retry, seconds = OutageRetry(bar.wait), settings.media_url_seconds
            return await image_move.move_images(store, storages, bar, outage_retry=outage_retry, url_seconds=seconds)

    moved = run(work, "Moving", hint="Run the same command again to continue.")
    report({"assets": moved.assets, "images": moved.images}, moved.left, as_json)


def _move_assets(address: str, as_json: bool) -> None:
    async def work(settings: Settings, bar: Bar) -> store_copying.Copied | None:
        to = _address(address, settings)
        if (uri := await _current_uri(settings)) == to:
            return None
        old, new = open_store(uri), open_store(to)
        try:
            await old.open()
            await new.open()
            outage_retry = OutageRetry(bar.wait)
            return await store_moving.StoreMove(old, new, to, outage_retry, on_asset=bar, on_phase=bar.rename).run()
        finally:
            await new.close()
            await old.close()

    copied = run(work, "Moving", hint=GO_ON)
    if copied is None:
        note("The assets are in that store already.")
        return
    if not as_json:
        change = "Unset MONGODB_URI" if address == EMBEDDED else "Set MONGODB_URI to the new address"
        say(f"{change} before the next start. The old store still has all data: delete it.")
    report({"assets": copied.assets, "kept": copied.records, "keys": copied.keys}, copied.late, as_json)


def _abandon() -> None:
    async def work(settings: Settings, bar: Bar) -> bool:
        old = open_store(await _current_uri(settings))
        try:
            await old.open()
            return await moving_processes.abandon(old)
        finally:
            await old.close()

    say("Abandoned." if run(work, "Abandoning") else "No move is under way.")


async def _current_uri(settings: Settings) -> str:
    """Return the address of the store in use, which may differ from the settings after a move."""
    check_user(settings)
    store = build_store(settings)
    try:
        await store.open()
        return store.uri
    finally:
        await store.close()


def _address(given: str, settings: Settings) -> str:
    if given == "-":  # every user of the machine can read a command line, and a password in it
        given = sys.stdin.readline().strip()
    if given == EMBEDDED:
        return embedded_store(settings)
    if not given.startswith(("mongodb://", "mongodb+srv://")):
        raise click.BadParameter("An address is mongodb://..., mongodb+srv://... or sqlite", param_hint="--store")
    return given
