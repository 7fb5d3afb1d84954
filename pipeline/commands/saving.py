"""The commands `backup`, `restore` and `verify`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import click

from pipeline.commands.moving import places, run, tell, with_json
from pipeline.settings import Settings
from pipeline.usecases import backup as backups
from pipeline.usecases import verifying


@click.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@with_json
def backup(file: Path, as_json: bool) -> None:
    """Write all assets, their images and what the store keeps beside them (dead letters, pauses) to FILE.

    The service may run meanwhile. FILE is readable for its owner only. Exit code 1: some images could not be had; they
    are listed, and everything else is in FILE.
    """

    async def work(settings: Settings, on_asset: Callable[[], None]) -> backups.Tally:
        async with places(settings) as (store, storages):
            return await backups.back_up(store, storages, file, on_asset)

    tally = run(work, "Saving")
    tell(tally.shown(), tally.flaws, as_json)


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--resume", is_flag=True, help="Go on after an interruption: the store holds assets already.")
@with_json
def restore(file: Path, resume: bool, as_json: bool) -> None:
    """Put a backup into the asset store and the storage that the settings name, which must be empty.

    Photos that were being processed are processed once the service runs.
    """

    async def work(settings: Settings, on_asset: Callable[[], None]) -> backups.Tally:
        async with places(settings) as (store, storages):
            return await backups.restore(store, storages, file, resumes=resume, on_asset=on_asset)

    tally = run(work, "Restoring")
    tell(tally.shown(), tally.flaws, as_json)


@click.command()
@click.argument("file", required=False, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@with_json
def verify(file: Path | None, as_json: bool) -> None:
    """Read every image and compare it with what its asset says; or check a backup FILE.

    Exit code 1: an image is missing, damaged or unreadable, or no asset names it.
    """

    async def work(settings: Settings, on_asset: Callable[[], None]) -> backups.Tally:
        if file is not None:
            return await asyncio.to_thread(backups.check_backup, file, on_asset)
        tally = backups.Tally()

        def checked() -> None:
            tally.assets += 1
            on_asset()

        async with places(settings) as (store, storages):
            async for flaw in verifying.verify(store, storages, checked):
                of = f" of asset {flaw.asset_id}" if flaw.asset_id else ""
                tally.flaws.append(f"{flaw.public_id}{of} in {flaw.backend} is {flaw.what}")
        return tally

    tally = run(work, "Checking")
    numbers = tally.shown() if file is not None else {"assets": tally.assets}
    tell(numbers, tally.flaws, as_json)
