"""The storage `sftp`: images lie on an SFTP server, which no browser can ask, so this plugin serves them itself, under
URLs that are signed and end.

The key of the signatures is made once and kept in the plugin's store, so every process of the service signs alike and a
restart breaks no URL.
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
# What the first bytes of an image say; the server keeps no content types.
TYPES = {b"\xff\xd8\xff": "image/jpeg", b"\x89PNG": "image/png", b"RIFF": "image/webp", b"GIF8": "image/gif"}


class SftpSettings(PluginSettings):
    """PLUGIN_SFTP_..."""

    host: str = Field(description="Name or address of the server.")
    port: int = Field(22, ge=1, le=65535, description="Its port.")
    user: str = Field(description="Whom we are there.")
    password: SecretStr = Field(SecretStr(""), description="The user's password; empty: only the key is shown.")
    key_file: str = Field("", description="File of our private key.")
    known_hosts: str = Field("", description="File with the server's key; default: ~/.ssh/known_hosts.")
    folder: str = Field("images", description="Where the images lie there, made when it is missing.")
    connect_seconds: float = Field(10, gt=0, description="How long the server may take to let us in.")


@hookimpl
def register_settings() -> Iterator[tuple[str, type[PluginSettings]]]:
    """Name our settings."""
    yield NAME, SftpSettings


@hookimpl
def register_storage_backends(settings: Settings) -> Iterator[tuple[str, Callable[[], StorageBackend]]]:
    """Offer `sftp`."""
    yield NAME, lambda: SftpStorage(settings.plugin(NAME, SftpSettings), settings.public_url)


class SftpStorage:
    """Images on one SFTP server, over one connection that is made again when it is lost."""

    def __init__(self, own: SftpSettings, public_url: str) -> None:
        """public_url: under which others reach the service."""
        self._own = own
        self._address = f"{public_url.rstrip('/')}/plugins/{NAME}/image"
        self._key = b""
        self._connecting = asyncio.Lock()
        self._connection: asyncssh.SSHClientConnection | None = None
        self._client: asyncssh.SFTPClient | None = None

    async def start(self, context: Context) -> None:
        """Fetch the key of the signatures, or make it, and the folder."""
        # All processes get the same, that of the first.
        kept = await context.store.put_first(KEY, secrets.token_hex(32))
        self._key = bytes.fromhex(kept)
        try:
            await (await self._sftp()).makedirs(self._own.folder, exist_ok=True)
        except DependencyUnavailable as error:
            raise NotReady(f"the SFTP server cannot be reached: {error.__cause__}") from error

    def register_routes(self, routes: Routes) -> None:
        """Serve the images to whoever has a URL of ours."""
        routes.add("GET", "/image", self.show, role="public")

    async def save(self, public_id: str, file: BinaryIO, content_type: str) -> str:
        """Store the image beside its place and move it there, so that nobody ever reads half of one."""
        client, place = await self._sftp(), self._place(public_id)
        part = f"{place}.{secrets.token_hex(4)}.part"
        file.seek(0)
        with _told():
            await client.makedirs(posixpath.dirname(place), exist_ok=True)
            try:
                async with client.open(part, "wb") as there:
                    while piece := file.read(PIECE_BYTES):
                        await there.write(piece)
                await client.posix_rename(part, place)
            except BaseException:
                with suppress(asyncssh.Error, OSError):
                    await client.remove(part)
                raise
        return await self.url(public_id, 3600)

    async def open(self, public_id: str) -> BinaryIO:
        """Return the stored image; FileNotFoundError when there is none."""
        client = await self._sftp()
        with _told():
            async with client.open(self._place(public_id), "rb") as there:
                return io.BytesIO(await there.read())

    async def delete(self, public_id: str) -> None:
        """Remove the image if it is there."""
        client = await self._sftp()
        with _told():
            with suppress(asyncssh.SFTPNoSuchFile):
                await client.remove(self._place(public_id))

    async def check(self) -> None:
        """Return when the folder can be listed."""
        client = await self._sftp()
        with _told():
            await client.stat(self._own.folder)

    async def url(self, public_id: str, seconds: int) -> str:
        """Return a URL of our own route that ends after so many seconds."""
        until = int(utc_now().timestamp()) + seconds
        query = {"id": public_id, "until": until, "signature": self._sign(public_id, until)}
        return f"{self._address}?{urlencode(query)}"

    async def list(self, prefix: str) -> AsyncIterator[StoredImage]:
        """Yield the images whose public_id begins with the prefix."""
        client = await self._sftp()
        with _told():
            async for public_id, changed_at in self._walk(client, ""):
                if public_id.startswith(prefix):
                    yield StoredImage(public_id, datetime.fromtimestamp(changed_at, UTC))

    async def show(self, request: PluginRequest) -> PluginReply:
        """Answer a URL of ours with its image, as long as the URL holds."""
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

    def _place(self, public_id: str) -> str:
        return posixpath.join(self._own.folder, public_id)

    async def _walk(self, client: asyncssh.SFTPClient, below: str) -> AsyncIterator[tuple[str, int]]:
        folder = posixpath.join(self._own.folder, below)
        async for entry in client.scandir(folder):
            name = str(entry.filename)
            if name in (".", "..") or name.endswith(".part"):
                continue
            public_id = posixpath.join(below, name)
            if stat.S_ISDIR(entry.attrs.permissions or 0):
                async for found in self._walk(client, public_id):
                    yield found
            else:
                yield public_id, int(entry.attrs.mtime or 0)

    async def _sftp(self) -> asyncssh.SFTPClient:
        """Return the connection, made now if there is none."""
        async with self._connecting:
            if self._client is None or self._connection is None or self._connection.is_closed():
                own = self._own
                options = {"known_hosts": own.known_hosts} if own.known_hosts else {}
                with _told():
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
def _told() -> Iterator[None]:
    """Turn what asyncssh raises into what the service understands."""
    try:
        yield
    except asyncssh.SFTPNoSuchFile as error:
        raise FileNotFoundError(str(error)) from error
    except FileNotFoundError:
        raise
    except (asyncssh.Error, OSError) as error:
        raise DependencyUnavailable(UNAVAILABLE) from error
