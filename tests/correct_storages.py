"""Correct storages. Each broken storage in tests/plugins_broken/ is one of these with one mistake."""

from __future__ import annotations

import io
from typing import BinaryIO
from urllib.parse import quote

from pipeline.errors import NotFound
from pipeline.hooks import Context, PluginReply, PluginRequest, Routes


class CorrectStorage:
    """Stores images in memory."""

    def __init__(self) -> None:
        self.images: dict[str, bytes] = {}

    def save(self, public_id: str, file: BinaryIO, content_type: str) -> str:
        file.seek(0)
        self.images[public_id] = file.read()
        return f"https://images.example/{public_id}"

    def open(self, public_id: str) -> BinaryIO:
        if public_id not in self.images:
            raise FileNotFoundError(public_id)
        return io.BytesIO(self.images[public_id])

    def delete(self, public_id: str) -> None:
        self.images.pop(public_id, None)

    def check(self) -> None:
        pass


class ServedStorage(CorrectStorage):
    """Serves its images by its own route. The name of the plugin is `broken`."""

    async def start(self, context: Context) -> None:
        self.base = context.settings.public_url

    def save(self, public_id: str, file: BinaryIO, content_type: str) -> str:
        super().save(public_id, file, content_type)
        return f"{self.base}/plugins/broken/images/{quote(public_id, safe='')}"

    def register_routes(self, routes: Routes) -> None:
        routes.add("GET", "/images/{id}", self.show, role="public")

    async def show(self, request: PluginRequest) -> PluginReply:
        if request.path_params["id"] not in self.images:
            raise NotFound("There is no such image")
        return PluginReply(body=self.images[request.path_params["id"]], content_type="image/gif")
