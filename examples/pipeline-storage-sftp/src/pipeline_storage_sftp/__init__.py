"""The storage `sftp`: images on an SFTP server. A browser cannot use SFTP, so the plugin serves the images itself,
under signed URLs that expire.

The key of the signatures is created once and stored in the plugin's store, so all processes of the service use the same
key and URLs stay valid after a restart.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import io
import posixpath
import secrets
import stat
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, BinaryIO
from urllib.parse import urlencode

import asyncssh
from pydantic import Field, SecretStr

from pipeline.errors import DependencyUnavailable, NotFound, NotReady
from pipeline.hooks import (
    Context,
    PluginReply,
    PluginRequest,
    PluginSettings,
    Routes,
    StorageBackend,
    StoredImage,
    hookimpl,
    utc_now,
)

if TYPE_CHECKING:
    from pipeline.settings import Settings

API_VERSION = 2
NAME = "sftp"
KEY = "signing-key"
UNAVAILABLE = "Image storage unavailable"
PIECE_BYTES = 256 * 1024
# The content type by the first bytes of an image; the server stores no content types.
TYPES = {b"\xff\xd8\xff": "image/jpeg", b"\x89PNG": "image/png", b"RIFF": "image/webp", b"GIF8": "image/gif"}


class SftpSettings(PluginSettings):
    """PLUGIN_SFTP_..."""

    host: str = Field(description="Name or address of the server.")
    port: int = Field(22, ge=1, le=65535, description="Its port.")
    user: str = Field(description="User name on the server.")
    password: SecretStr = Field(SecretStr(""), description="The user's password; empty: only the key is used.")
    key_file: str = Field("", description="File with the private key.")
    known_hosts: str = Field("", description="File with the server's key; default: ~/.ssh/known_hosts.")
    folder: str = Field("images", description="Folder of the images, created if it is missing.")
    connect_seconds: float = Field(10, gt=0, description="Longest time of a login.")


@hookimpl
def register_settings() -> Iterator[tuple[str, type[PluginSettings]]]:
    """Offer the settings of `sftp`."""
    yield NAME, SftpSettings


@hookimpl
def register_storage_backends(settings: Settings) -> Iterator[tuple[str, Callable[[], StorageBackend]]]:
    """Offer `sftp`."""
    yield NAME, lambda: SftpStorage(settings.plugin(NAME, SftpSettings), settings.public_url)


class SftpStorage:
    """Images on one SFTP server, over one connection, which is reopened when it is lost."""

    def __init__(self, own: SftpSettings, public_url: str) -> None:
        """public_url: of the service."""
        self._own = own
        self._address = f"{public_url.rstrip('/')}/plugins/{NAME}/image"
        self._key = b""
        self._connecting = asyncio.Lock()
        self._connection: asyncssh.SSHClientConnection | None = None
        self._client: asyncssh.SFTPClient | None = None

    async def start(self, context: Context) -> None:
        """Load or create the key of the signatures, and create the folder."""
        # All processes get the key of the first one.
        self._key = bytes.fromhex(await context.store.put_first(KEY, secrets.token_hex(32)))
        try:
            await (await self._sftp()).makedirs(self._own.folder, exist_ok=True)
        except DependencyUnavailable as error:
            raise NotReady(f"the SFTP server cannot be reached: {error.__cause__}") from error

    def register_routes(self, routes: Routes) -> None:
        """Serve the images to every client with a signed URL."""
        routes.add("GET", "/image", self.show, role="public")

    async def save(self, public_id: str, file: BinaryIO, content_type: str) -> str:
        """Write the image to a temporary file and rename it, so that no reader gets half an image."""
        client, path = await self._sftp(), self._path(public_id)
        part = f"{path}.{secrets.token_hex(4)}.part"
        file.seek(0)
        with _translated():
            await client.makedirs(posixpath.dirname(path), exist_ok=True)
            try:
                async with client.open(part, "wb") as remote:
                    while piece := file.read(PIECE_BYTES):
                        await remote.write(piece)
                await client.posix_rename(part, path)
            except BaseException:
                with suppress(asyncssh.Error, OSError):
                    await client.remove(part)
                raise
        return await self.url(public_id, 3600)

    async def open(self, public_id: str) -> BinaryIO:
        """Return the stored image; FileNotFoundError when there is none."""
        client = await self._sftp()
        with _translated():
            async with client.open(self._path(public_id), "rb") as remote:
                return io.BytesIO(await remote.read())

    async def delete(self, public_id: str) -> None:
        """Remove the image if it is there."""
        client = await self._sftp()
        with _translated():
            with suppress(asyncssh.SFTPNoSuchFile):
                await client.remove(self._path(public_id))

    async def check(self) -> None:
        """Return when the folder can be reached."""
        client = await self._sftp()
        with _translated():
            await client.stat(self._own.folder)

    async def url(self, public_id: str, seconds: int) -> str:
        """Return a URL of the plugin's route that expires after so many seconds."""
        until = int(utc_now().timestamp()) + seconds
        query = {"id": public_id, "until": until, "signature": self._sign(public_id, until)}
        return f"{self._address}?{urlencode(query)}"

    async def list(self, prefix: str) -> AsyncIterator[StoredImage]:
        """Yield the images whose public_id begins with the prefix."""
        client = await self._sftp()
        with _translated():
            async for public_id, changed_at in self._walk(client, ""):
                if public_id.startswith(prefix):
                    yield StoredImage(public_id, datetime.fromtimestamp(changed_at, UTC))

    async def show(self, request: PluginRequest) -> PluginReply:
        """Answer a signed URL with its image until the URL expires."""
        public_id, until = request.query.get("id", ""), request.query.get("until", "")
        signature = request.query.get("signature", "")
        seconds_left = int(until) - int(utc_now().timestamp()) if until.isascii() and until.isdecimal() else 0
        if seconds_left <= 0 or not hmac.compare_digest(signature.encode(), self._sign(public_id, int(until)).encode()):
            raise NotFound("No such image")
        try:
            content = (await self.open(public_id)).read()
        except FileNotFoundError:
            raise NotFound("No such image") from None
        content_type = next((kind for start, kind in TYPES.items() if content.startswith(start)), "image/avif")
        caching = {"Cache-Control": f"private, max-age={seconds_left}, immutable"}
        return PluginReply(200, body=content, content_type=content_type, headers=caching)

    async def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()
            await self._connection.wait_closed()

    def _sign(self, public_id: str, until: int) -> str:
        return hmac.new(self._key, f"{public_id}\n{until}".encode(), hashlib.sha256).hexdigest()

    def _path(self, public_id: str) -> str:
        return posixpath.join(self._own.folder, public_id)

    async def _walk(self, client: asyncssh.SFTPClient, below: str) -> AsyncIterator[tuple[str, int]]:
        folder = posixpath.join(self._own.folder, below)
        async for entry in client.scandir(folder):
            name = str(entry.filename)
            if name in (".", "..") or name.endswith(".part"):
                continue
            public_id = posixpath.join(below, name)
            if stat.S_ISDIR(entry.attrs.permissions or 0):
                async for image in self._walk(client, public_id):
                    yield image
            else:
                yield public_id, int(entry.attrs.mtime or 0)

    async def _sftp(self) -> asyncssh.SFTPClient:
        """Return the client of the connection, which is opened now if there is none."""
        async with self._connecting:
            if self._client is None or self._connection is None or self._connection.is_closed():
                own = self._own
                options = {"known_hosts": own.known_hosts} if own.known_hosts else {}
                with _translated():
                    self._connection = await asyncssh.connect(
                        own.host,
                        own.port,
                        username=own.user,
                        password=own.password.get_secret_value() or None,
                        client_keys=[own.key_file] if own.key_file else None,
                        connect_timeout=own.connect_seconds,
                        keepalive_interval=15,
                        **options,
                    )
                    self._client = await self._connection.start_sftp_client()
            return self._client


@contextmanager
def _translated() -> Iterator[None]:
    """Raise the service's errors for those of asyncssh."""
    try:
        yield
    except asyncssh.SFTPNoSuchFile as error:
        raise FileNotFoundError(str(error)) from error
    except FileNotFoundError:
        raise
    except (asyncssh.Error, OSError) as error:
        raise DependencyUnavailable(UNAVAILABLE) from error
