"""Makes the asset store that the settings or a command name: MongoDB, or SQLite in DATA_DIR. Not open yet."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pipeline.assets.movable import MovableStore
from pipeline.assets.sqlite import SqliteAssetStore
from pipeline.assets.store import AssetStore
from pipeline.settings import MongoDriver, Settings
from pipeline.supervision import Supervisor

# The beginning of the address of an embedded asset store; its path follows.
SQLITE = "sqlite:"


def build_store(
    settings: Settings, supervisor: Supervisor | None = None, on_damaged: Callable[[], None] = lambda: None
) -> MovableStore:
    """Return the asset store that the settings name.

    supervisor: restarts the store's task, if it has one.
    on_damaged: see pipeline/assets/reading.py.
    """

    def opener(uri: str) -> AssetStore:
        return open_store(uri, supervisor, on_damaged, driver=settings.mongodb_driver)

    uri = settings.mongodb_uri.get_secret_value() or embedded_store(settings)
    return MovableStore(opener(uri), uri, opener)


def embedded_store(settings: Settings) -> str:
    """Return the address of the embedded asset store."""
    return f"{SQLITE}{settings.data_dir.resolve() / 'assets.sqlite'}"


def open_store(
    uri: str,
    supervisor: Supervisor | None = None,
    on_damaged: Callable[[], None] = lambda: None,
    *,
    driver: str = MongoDriver.PYMONGO,
) -> AssetStore:
    """Return the asset store of an address, sqlite:PATH or a MongoDB URI; see build_store."""
    if uri.startswith(SQLITE):
        return SqliteAssetStore(Path(uri.removeprefix(SQLITE)), supervisor, on_damaged)
    from pipeline.assets.mongo import MongoAssetStore

    return MongoAssetStore(uri, on_damaged=on_damaged, driver=driver)
