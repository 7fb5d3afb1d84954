"""Use case: under which URL an image is to be had now. Runs on the event loop.

A document says in which storage an image is and under what name; its URL is asked for whenever it is shown, replayed,
told to somebody or handed to a provider, because one made earlier may have stopped working. What was asked for is
remembered for half of the time it works, so that a page that is loaded again may use what its browser has kept.
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

# Of a storage whose URLs end, where MEDIA_URL_SECONDS says nothing.
DAY_SECONDS = 86_400
REMEMBERED_AT_MOST = 10_000


class _Made(NamedTuple):
    url: str
    fresh_until: float
    works_until: float


class ImageUrls:
    """Makes the URLs of images that storages of ours hold."""

    def __init__(self, storage: StoredImages, seconds: int = 0) -> None:
        """seconds: how long a URL has to work; 0: a day, or for ever where the storage can do that."""
        self._storage = storage
        self._seconds = seconds or DAY_SECONDS
        self._remembered: OrderedDict[ImageName, _Made] = OrderedDict()

    async def of(self, assets: Iterable[Asset]) -> Mapping[ImageName, str]:
        """Return the URLs of all images of the assets; without those that cannot be made now."""
        return await self.of_images(image for asset in assets for image in asset.images)

    async def of_image(self, image: ImageRef | None, at_least_seconds: float = 0) -> str | None:
        """Return the image's URL, None when there is none, or none that can be made now."""
        return image.url_among(await self.of_images([image], at_least_seconds)) if image is not None else None

    async def of_images(self, images: Iterable[ImageRef], at_least_seconds: float = 0) -> Mapping[ImageName, str]:
        """Return the URLs of the images; without those that cannot be made now.

        at_least_seconds: how long the URLs have to work from now on, where MEDIA_URL_SECONDS says less.
        """
        seconds = max(self._seconds, math.ceil(at_least_seconds))
        now = asyncio.get_running_loop().time()
        wanted = {image.name: image for image in images if image.name}
        urls = {}
        for name in wanted:
            found = self._remembered.get(name)
            if found and found.fresh_until > now and found.works_until >= now + at_least_seconds:
                urls[name] = found.url
        if missing := [name for name in wanted if name not in urls]:
            made = await self._storage.urls(missing, seconds)
            # One that a provider needs for longer is shown to nobody.
            if seconds == self._seconds:
                self._remember(made, now + seconds / 2, now + seconds)
            urls |= made
            lasting = {name.backend: not await self._storage.makes_urls(name.backend) for name in missing}
            urls |= {
                name: wanted[name].url
                for name in missing
                if name not in made and lasting[name.backend] and wanted[name].url
            }
        return urls

    def _remember(self, urls: Mapping[ImageName, str], fresh_until: float, works_until: float) -> None:
        for name, url in urls.items():
            self._remembered[name] = _Made(url, fresh_until, works_until)
            self._remembered.move_to_end(name)
        while len(self._remembered) > REMEMBERED_AT_MOST:
            self._remembered.popitem(last=False)
