"""The handler of /media on a port, and a folder of images for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tornado.ioloop import IOLoop

from pipeline.assets.sqlite import SqliteAssetStore
from pipeline.auth import TokenVerifier
from pipeline.handlers import media
from pipeline.hooks.media_links import MediaLinks
from pipeline.hooks.storages import MediaFolder
from pipeline.metrics import Metrics
from pipeline.settings import Settings
from pipeline.usecases.image_urls import ImageUrls
from tests.factories import SECRET, make_image
from tests.handler_server import HandlerServer
from tests.memory_storage import MemoryStorage

PNG = make_image("PNG")
ID = "65b9f0a4c2d1e3f4a5b6c7d8"
NAME = f"{ID}/original-1"


class Server(HandlerServer):
    """The handler on a port, with one folder.

    links: signs the URLs.
    """

    def __init__(self, folder: Path, store: SqliteAssetStore, links: MediaLinks | None = None) -> None:
        common = {"verifier": TokenVerifier(Settings(jwt_secret=SECRET)), "metrics": Metrics(), "allowed_origins": ()}

        async def folders() -> list[MediaFolder]:
            return [MediaFolder("local", folder, links)]

        own = {"folders": folders, "store": store, "urls": ImageUrls(MemoryStorage())}
        super().__init__([("/media/(.*)", media.MediaHandler, common | own)], common)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A media folder with images; its parent folder has a file that must not be served."""
    (tmp_path / "secret.png").write_bytes(PNG)
    folder = tmp_path / "media"
    (folder / ID).mkdir(parents=True)
    (folder / NAME).write_bytes(PNG)
    (folder / ID / "original-2.png").write_bytes(b"<svg onload='alert(1)'/>")
    (folder / ID / "original-3.png").write_bytes(PNG)
    (folder / ID / "linked").symlink_to(tmp_path / "secret.png")
    (folder / ID / "loop").symlink_to(folder / ID / "loop")
    return folder


@pytest.fixture
def make_server(io_loop: IOLoop, folder: Path, store: SqliteAssetStore) -> Iterator[Callable[..., Server]]:
    """Return a function that starts a server with those links."""
    servers: list[Server] = []

    def make(links: MediaLinks | None = None) -> Server:
        servers.append(Server(folder, store, links))
        return servers[-1]

    yield make
    for server in servers:
        io_loop.run_sync(server.close)


@pytest.fixture
def server(io_loop: IOLoop, make_server: Callable[..., Server]) -> Server:
    async def start() -> Server:
        return make_server()

    return io_loop.run_sync(start)
