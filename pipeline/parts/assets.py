"""The asset store, the plugins, and the images in their storages."""

from __future__ import annotations

from functools import partial

from pipeline.hooks.manager import build_plugins
from pipeline.parts.base import BaseParts
from pipeline.parts.rooms import RoomParts
from pipeline.stores import build_store
from pipeline.usecases.cleaning import PictureCheck
from pipeline.usecases.image_urls import ImageUrls
from pipeline.usecases.orphaned_images import OrphanedImages
from pipeline.usecases.plugin_values import PluginValues
from pipeline.usecases.storage_choice import StorageChoice
from pipeline.usecases.storages_in_use import StoragesInUse


class AssetParts:
    """Assets and images, and the plugins that store and analyze them."""

    def __init__(self, base: BaseParts, rooms: RoomParts) -> None:
        settings = base.settings
        self.movable_store = build_store(settings, base.supervisor, base.metrics.damaged_assets.inc)
        self.store = self.movable_store.as_asset_store()
        self.plugins = build_plugins(
            settings,
            base.metrics,
            rooms.fanout,
            base.tracing,
            PictureCheck(settings, base.pool),
            partial(PluginValues, self.store),
        )
        self.storage_choice = StorageChoice(self.store, self.plugins, settings.storage_name)
        self.storages_in_use = StoragesInUse(self.store, self.plugins)
        self.orphaned_images = OrphanedImages(self.store, self.plugins)
        self.image_urls = ImageUrls(self.plugins, settings.media_url_seconds)
