"""The commands `backup`, `restore` and `verify`."""

from __future__ import annotations

import asyncio
from pathlib import Path

import click

from pipeline.commands.moving import Bar, open_backends, report, run, with_json
from pipeline.settings import Settings
from pipeline.usecases import backup as backups
from pipeline.usecases import restoring
from pipeline.usecases.backup_file import BackupCounts
from pipeline.usecases.outage_retry import OutageRetry
from pipeline.usecases.verifying import LEAVING, Verification


@click.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@with_json
def backup(file: Path, as_json: bool) -> None:
    """Write all assets, their images and the other records of the store (dead letters, pauses) to FILE.

    The service may run at the same time. Only the owner of FILE can read it. The command waits for a dependency that is
    down, two minutes at a time and fifteen in total. Exit code 1: some images or documents could not be read; they are
    listed, and everything else is in FILE. 130: Ctrl-C, and FILE is unchanged.
    """

    async def work(settings: Settings, bar: Bar) -> BackupCounts:
        async with open_backends(settings) as (store, storages):
            return await backups.back_up(store, storages, file, bar, outage_retry=OutageRetry(bar.wait))

    counts = run(work, "Saving", hint="Nothing was written to FILE: run the same command again.")
    report(counts.shown(), counts.problems, as_json)


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--resume", is_flag=True, help="Continue after an interruption: the store has assets already.")
@click.option("--partial", is_flag=True, help="Restore the undamaged parts of a damaged FILE.")
@with_json
def restore(file: Path, resume: bool, partial: bool, as_json: bool) -> None:
    """Write a backup into the asset store and the storage that the settings name. Both must be empty.

    FILE is checked first; a damaged one is restored only with --partial. Photos without a result are processed when the
    service runs. Exit code 1: something is damaged, or could not be read when FILE was written; it is listed, and
    everything else is restored. 130: Ctrl-C; continue with --resume.
    """

    async def work(settings: Settings, bar: Bar) -> BackupCounts:
        async with open_backends(settings) as (store, storages):
            outage_retry = OutageRetry(bar.wait)
            return await restoring.restore(
                store, storages, file, resumes=resume, is_partial=partial, on_asset=bar, outage_retry=outage_retry
            )

    counts = run(work, "Restoring", hint="Run it again with --resume to continue.")
    report(counts.shown(), counts.problems, as_json)


@click.command()
@click.argument("file", required=False, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@with_json
def verify(file: Path | None, as_json: bool) -> None:
    """Read every image and compare it with its asset; or check a backup FILE.

    Exit code 1: an image is missing, damaged or unreadable, an image belongs to no asset, or a document is damaged.
    Images that were moved to another storage stay as long as their old URLs work; they are only counted. 130: Ctrl-C.
    """

    async def work_file(settings: Settings, bar: Bar) -> BackupCounts:
        assert file is not None
        return await asyncio.to_thread(restoring.check_backup, file, bar)

    async def work(settings: Settings, bar: Bar) -> tuple[dict[str, int], list[str]]:
        numbers, flaws = {"assets": 0, LEAVING: 0}, []

        def checked() -> None:
            numbers["assets"] += 1
            bar()

        async with open_backends(settings) as (store, storages):
            verification = Verification(store, storages, OutageRetry(bar.wait))
            async for flaw in verification.flaws(checked):
                if flaw.what == LEAVING:
                    numbers[LEAVING] += 1
                else:
                    flaws.append(flaw.text)
        numbers |= {f"images in {backend}": count for backend, count in sorted(verification.images.items())}
        return numbers, flaws

    if file is None:
        report(*run(work, "Checking"), as_json)
    else:
        counts = run(work_file, "Checking")
        report(counts.shown(), counts.problems, as_json)
