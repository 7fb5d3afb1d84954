"""Use case: this process saves new images where the last move of images says. Runs on the event loop."""

from __future__ import annotations

import asyncio
from typing import Protocol

import structlog

from pipeline.assets.store import AssetStore
from pipeline.errors import DependencyUnavailable
from pipeline.texts import cause_of
from pipeline.usecases.image_move import KIND, STORAGE

log = structlog.get_logger(__name__)

EVERY_SECONDS = 1.0
# After a storage could not be used: to look costs a call to it.
REFUSED_SECONDS = 10.0


class Choosable(Protocol):
    """What is needed of the storages; hooks/manager.py has it."""

    async def choose_storage(self, name: str) -> None:
        """Save new images there from now on; DependencyUnavailable when it cannot be had here."""


class StorageChoice:
    """Follows the record that `pipeline move --storage` leaves in the asset store."""

    def __init__(self, store: AssetStore, storages: Choosable, configured: str) -> None:
        """configured: the storage that STORAGE_BACKEND names."""
        self._store = store
        self._storages = storages
        self._configured = self._current = configured
        self._refused = ""

    async def run(self) -> None:
        """Follow it for ever."""
        while True:
            try:
                await self.look()
            except DependencyUnavailable as error:
                log.debug("move_unknown", cause=cause_of(error))
            await asyncio.sleep(REFUSED_SECONDS if self._refused else EVERY_SECONDS)

    async def look(self) -> None:
        """Do as the record says now."""
        found = await self._store.find_record(KIND, STORAGE)
        # Who names a third storage in the settings since then means that one.
        counts = found is not None and self._configured in found.data["insteadOf"]
        wanted = str(found.data["to"]) if found is not None and counts else self._configured
        if wanted == self._current:
            self._refused = ""
            return
        try:
            await self._storages.choose_storage(wanted)
        except DependencyUnavailable as error:
            if self._refused != wanted:
                log.error("storage_not_chosen", storage=wanted, cause=cause_of(error))
            self._refused = wanted
            return
        log.info("storage_chosen", storage=wanted, configured=self._configured)
        self._current, self._refused = wanted, ""
