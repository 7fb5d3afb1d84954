"""The command `move`, and what it shares with those of saving.py: they open the asset store and the storages
themselves, from the same settings as the service, which may run meanwhile.
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
from pipeline.commands import running
from pipeline.commands.exit_codes import ExitCode
from pipeline.commands.shown import BAD, bar, complain, note, say, say_json, shortened
from pipeline.errors import ConfigurationError, DependencyUnavailable, PipelineError
from pipeline.hooks.catalogue import Catalogue
from pipeline.hooks.context import ContextFactory
from pipeline.hooks.kinds import STORAGE
from pipeline.hooks.storages import Storages
from pipeline.hooks.storage_calls import Storing
from pipeline.metrics import Metrics
from pipeline.stores import build_store, embedded_store, open_store
from pipeline.settings import Settings
from pipeline.texts import cause_of
from pipeline.tracing import OFF
from pipeline.usecases import image_move, store_copying, store_moving
from pipeline.usecases.outage_retry import OutageRetry
from pipeline.usecases.plugin_values import PluginValues
from pipeline.usecases.storages_in_use import names_in_use

T = TypeVar("T")
# Every process has looked where new images go by then.
CHOSEN_SECONDS = 2 * 1.0
EMBEDDED = "sqlite"
# Beside the bar.
CAUSE_AT_MOST = 60
GO_ON = "Run the same command again to go on; move --abandon gives up what is not decided yet."


class Backends(NamedTuple):
    """Where documents and images are."""

    store: AssetStore
    storages: Storages


@asynccontextmanager
async def open_backends(settings: Settings, storage_name: str = "") -> AsyncIterator[Backends]:
    """Open the store, and the storages, the current one by that name."""
    check_user(settings)
    catalogue, metrics = Catalogue(settings), Metrics()
    store = build_store(settings).as_asset_store()
    contexts = ContextFactory(settings, metrics, partial(PluginValues, store))

    def stored_in(name: str) -> Storing:
        return Storing(catalogue.build(STORAGE, name, metrics, contexts), settings.storage_timeout_seconds, OFF)

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
    """ConfigurationError when the embedded asset store is another user's: files made beside it would shut that out."""
    file = settings.data_dir / "assets.sqlite"
    with suppress(OSError):
        if not settings.mongodb_uri.get_secret_value() and (owner := file.stat().st_uid) != os.geteuid():
            raise ConfigurationError(f"{file} belongs to the user {owner}: run this command as that user")


class Bar:
    """The bar that shows how far a command is; to call it is to count an asset."""

    def __init__(self, progress: Progress, what: str) -> None:
        self._progress = progress
        self._what = what
        self._task = progress.add_task(what, total=None)
        self._told = ""

    def __call__(self) -> None:
        self._told = ""
        self._progress.update(self._task, advance=1, description=self._what)

    def rename(self, what: str) -> None:
        """Say what it does now."""
        self._what = what
        self._progress.update(self._task, description=what)

    def wait(self, cause: str) -> None:
        """Say that something is away, for as long as no asset is counted."""
        self._progress.update(self._task, description=f"{self._what} (waiting: {shortened(cause, CAUSE_AT_MOST)})")
        if self._progress.disable and cause != self._told:
            self._told = cause
            note(f"Waiting: {cause}")


def run(work: Callable[[Settings, Bar], Awaitable[T]], what: str, hint: str = "") -> T:
    """Return what the work returns, with a bar that counts assets; its errors end the command, and so does Ctrl-C.

    hint: how to go on after that, or when something was away.
    """
    settings = running.load()
    # As Ctrl-C: what was begun is put in order.
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


def tell(tally: dict[str, Any], flaws: list[str], as_json: bool) -> None:
    """Print what there was; exit code 1 when something is wrong."""
    if as_json:
        say_json(tally | {"flaws": flaws})
    else:
        for flaw in flaws:
            say(flaw, BAD)
        say(", ".join(f"{number} {name}" for name, number in tally.items()))
    if flaws:
        raise SystemExit(ExitCode.FAILED)


with_json = click.option("--json", "as_json", is_flag=True, help="One line of JSON.")


@click.command()
@click.option("--storage", "name", help="Where all images go: a storage that the settings set up.")
@click.option("--store", "address", help="Where all assets go: mongodb://..., sqlite (embedded), or - to read it.")
@click.option("--abandon", is_flag=True, help="Give up a move to another store that was interrupted.")
@with_json
def move(name: str | None, address: str | None, abandon: bool, as_json: bool) -> None:
    """Move all images to another storage, or all assets to another store, while the service runs.

    --storage: new images go there from now on, whatever STORAGE_BACKEND says until it is changed. Exit code 1: some
    images are missing or damaged; they are listed and stay where they are.

    --store: every process uses the other store as soon as it has everything; set MONGODB_URI, or unset it, before the
    next start. All processes must be of this version. The old store stays as it was.

    Run again after an interruption, each goes on. What is away is waited for, two minutes at a time and fifteen in
    all. Exit codes: 0 well; 1 failed, or something is left; 2 wrong use or configuration; 130 Ctrl-C.
    """
    if (name is not None) + (address is not None) + abandon != 1:
        raise click.UsageError("Say either --storage NAME, --store ADDRESS or --abandon.")
    if name is not None:
        _move_images(name, as_json)
    elif address is not None:
        _move_assets(address, as_json)
    else:
        _abandon()


def _move_images(name: str, as_json: bool) -> None:
    async def work(settings: Settings, bar: Bar) -> image_move.Moved:
        async with open_backends(settings, name) as (store, storages):
            # Before any process saves an upload there.
            await image_move.probe(storages)
            await image_move.choose_storage(store, name, instead_of=settings.storage_name)
            await asyncio.sleep(CHOSEN_SECONDS)
            outage_retry, seconds = OutageRetry(bar.wait), settings.media_url_seconds
            return await image_move.move_images(store, storages, bar, outage_retry=outage_retry, url_seconds=seconds)

    moved = run(work, "Moving", hint="Run the same command again to go on.")
    tell({"assets": moved.assets, "images": moved.images}, moved.left, as_json)


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
        note("The asset store is there already.")
        return
    if not as_json:
        change = "Unset MONGODB_URI" if address == EMBEDDED else "Set MONGODB_URI to the new address"
        say(f"{change} before the next start. The old store still holds everything as it was: remove it.")
    tell({"assets": copied.assets, "kept": copied.records, "keys": copied.keys}, copied.late, as_json)


def _abandon() -> None:
    async def work(settings: Settings, bar: Bar) -> bool:
        old = open_store(await _current_uri(settings))
        try:
            await old.open()
            return await store_moving.abandon(old)
        finally:
            await old.close()

    say("Abandoned." if run(work, "Abandoning") else "No move is under way.")


async def _current_uri(settings: Settings) -> str:
    """Return the address of the store that holds the truth."""
    check_user(settings)
    store = build_store(settings)
    try:
        await store.open()
        return store.uri
    finally:
        await store.close()


def _address(given: str, settings: Settings) -> str:
    if given == "-":  # on the command line every user of the machine would see a password
        given = sys.stdin.readline().strip()
    if given == EMBEDDED:
        return embedded_store(settings)
    if not given.startswith(("mongodb://", "mongodb+srv://")):
        raise click.BadParameter("An address is mongodb://..., mongodb+srv://... or sqlite", param_hint="--store")
    return given
