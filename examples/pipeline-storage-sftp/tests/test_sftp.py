"""The storage passes the suite on a real SFTP server, and its URLs expire."""

import asyncio
import io
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import asyncssh
import pytest

from pipeline.errors import DependencyUnavailable, NotFound
from pipeline.hooks import PluginRequest, utc_now
from pipeline.testing import Call, StorageBackendSuite
from pipeline_storage_sftp import SftpSettings, SftpStorage


class TestSftpStorage(StorageBackendSuite):
    """The tests for every storage, and those of this one."""

    @pytest.fixture
    def server(self, loop: asyncio.AbstractEventLoop, tmp_path: Path) -> Iterator[asyncssh.SSHAcceptor]:
        """An SFTP server that accepts our key."""
        key = asyncssh.generate_private_key("ssh-ed25519")
        key.write_private_key(tmp_path / "key")
        key.write_public_key(tmp_path / "authorized")
        host_key = asyncssh.generate_private_key("ssh-ed25519")

        async def listen() -> asyncssh.SSHAcceptor:
            return await asyncssh.listen(
                "127.0.0.1",
                0,
                server_host_keys=[host_key],
                authorized_client_keys=str(tmp_path / "authorized"),
                sftp_factory=lambda channel: asyncssh.SFTPServer(channel, chroot=str(tmp_path / "files")),
            )

        (tmp_path / "files").mkdir()
        server = loop.run_until_complete(listen())
        public_key = host_key.export_public_key().decode().strip()
        (tmp_path / "known").write_text(f"[127.0.0.1]:{server.get_port()} {public_key}\n")
        yield server
        server.close()
        loop.run_until_complete(server.wait_closed())

    @pytest.fixture
    def storage(self, server: asyncssh.SSHAcceptor, tmp_path: Path) -> SftpStorage:
        return SftpStorage(
            SftpSettings(
                host="127.0.0.1",
                port=server.get_port(),
                user="images",
                key_file=str(tmp_path / "key"),
                known_hosts=str(tmp_path / "known"),
            ),
            "https://photos.example",
        )

    def test_url_shows_its_image_until_it_ends(
        self, storage: SftpStorage, call: Call, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A changed or expired URL shows nothing; a later URL shows the image."""
        self._save(call, storage, "suite/65f9/original", io.BytesIO(self.content), self.content_type)
        url = call(storage.url, "suite/65f9/original", 60)
        assert call(storage.show, request_of(url)).body == self.content
        for wrong in (url.replace("65f9", "65f8"), url.replace("until=", "until=1"), url[:-1], url.split("?")[0]):
            with pytest.raises(NotFound):
                call(storage.show, request_of(wrong))
        tomorrow = utc_now() + timedelta(days=1)
        monkeypatch.setattr("pipeline_storage_sftp.utc_now", lambda: tomorrow)
        with pytest.raises(NotFound):
            call(storage.show, request_of(url))
        assert call(storage.show, request_of(call(storage.url, "suite/65f9/original", 60))).body == self.content

    def test_lost_connection_is_reopened_and_missing_server_reported(
        self, storage: SftpStorage, server: asyncssh.SSHAcceptor, call: Call, loop: asyncio.AbstractEventLoop
    ) -> None:
        """A lost connection is reopened; without a server the storage raises DependencyUnavailable."""
        call(storage.check)
        assert storage._connection is not None
        storage._connection.abort()
        loop.run_until_complete(storage._connection.wait_closed())
        call(storage.check)
        server.close()
        storage._connection.abort()
        loop.run_until_complete(storage._connection.wait_closed())
        with pytest.raises(DependencyUnavailable):
            call(storage.check)


def request_of(url: str) -> PluginRequest:
    """Return the request that the plugin's route gets when a browser opens the URL."""
    return PluginRequest("GET", query=dict(parse_qsl(urlsplit(url).query)))
