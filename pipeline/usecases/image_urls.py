"""Use case: the current URL of an image. Runs on the event loop.

A document has the storage and the name of an image. The URL is requested from the storage whenever it is needed,
because an earlier URL may have stopped working. It is cached for half the time it works, so that a page that is loaded
again can use its browser's cache.
"""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from pipeline.assets.asset import Asset, ImageRef
from pipeline.images import ImageName
from pipeline.usecases.storage import StoredImages

# How long URLs work by default, when MEDIA_URL_SECONDS is not set.
DAY_SECONDS = 86_400
CACHED_AT_MOST = 10_000


class _Cached(NamedTuple):
    url: str
    fresh_until: float
    works_until: float


class ImageUrls:
    """Makes the URLs of stored images."""

    def __init__(self, storage: StoredImages, seconds: int = 0) -> None:
        """seconds: how long a URL has to work; 0: a day, or for ever if the storage has such URLs"""
        self._storage = storage
        self._seconds = seconds or DAY_SECONDS
        self._cached: OrderedDict[ImageName, _Cached] = OrderedDict()

    async def of(self, assets: Iterable[Asset]) -> Mapping[ImageName, str]:
        """Return the URLs of all images of the assets, except those that cannot be made now."""
        return await self.of_images(image for asset in assets for image in asset.images)

    async def of_image(self, image: ImageRef | None, at_least_seconds: float = 0) -> str | None:
        """Return the image's URL, None when it has none or none can be made now."""
        return image.url_among(await self.of_images([image], at_least_seconds)) if image is not None else None

    async def of_images(self, images: Iterable[ImageRef], at_least_seconds: float = 0) -> Mapping[ImageName, str]:
        """Return the URLs of the images, except those that cannot be made now.

        at_least_seconds: how long the URLs have to work from now on, if MEDIA_URL_SECONDS is less
        """
        seconds = max(self._seconds, math.ceil(at_least_seconds))
        now = asyncio.get_running_loop().time()
        wanted = {image.name: image for image in images if image.name}
        urls = {}
        for name in wanted:
            cached = self._cached.get(name)
            if cached and cached.fresh_until > now and cached.works_until >= now + at_least_seconds:
                urls[name] = cached.url
        if missing := [name for name in wanted if name not in urls]:
            made = await self._storage.urls(missing, seconds)
            # URLs that work longer, for a provider, are never shown to clients.
            if seconds == self._seconds:
                self._cache(made, now + seconds / 2, now + seconds)
            urls |= made
            lasting = {name.backend: not await self._storage.makes_urls(name.backend) for name in missing}
            urls |= {
                name: wanted[name].url
                for name in missing
                if name not in made and lasting[name.backend] and wanted[name].url
            }
        return urls

    def _cache(self, urls: Mapping[ImageName, str], fresh_until: float, works_until: float) -> None:
        for name, url in urls.items():
            self._cached[name] = _Cached(url, fresh_until, works_until)
            self._cached.move_to_end(name)
        while len(self._cached) > CACHED_AT_MOST:
            self._cached.popitem(last=False)
