"""Use case: this process saves new images in the storage that the last move of images chose. Runs on the event loop."""

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
# The delay after a storage could not be used: each try costs a call to it.
REFUSED_SECONDS = 10.0


class Choosable(Protocol):
    """The image storages; hooks/manager.py has them."""

    async def choose_storage(self, name: str) -> None:
        """Save new images in that storage from now on; DependencyUnavailable when this process cannot use it."""


class StorageChoice:
    """Follows the record that `pipeline move --storage` writes to the asset store."""

    def __init__(self, store: AssetStore, storages: Choosable, configured: str) -> None:
        """configured: the storage that STORAGE_BACKEND names"""
        self._store = store
        self._storages = storages
        self._configured = self._current = configured
        self._refused = ""

    async def run(self) -> None:
        """Follow the record, for ever."""
        while True:
            try:
                await self.look()
            except DependencyUnavailable as error:
                log.debug("move_unknown", cause=cause_of(error))
            await asyncio.sleep(REFUSED_SECONDS if self._refused else EVERY_SECONDS)

    async def look(self) -> None:
        """Choose the storage that the record names now."""
        record = await self._store.find_record(KIND, STORAGE)
        # Settings that have named a third storage since then count more than the record.
        counts = record is not None and self._configured in record.data["insteadOf"]
        wanted = str(record.data["to"]) if record is not None and counts else self._configured
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
