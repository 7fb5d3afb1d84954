"""The storage keeps what the pipeline expects (the suite), on a real SFTP server, and its URLs end."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import asyncssh
import pytest

from pipeline.errors import DependencyUnavailable, NotFound
from pipeline.hooks import PluginRequest
from pipeline.testing import Call, StorageBackendSuite
from pipeline_storage_sftp import SftpSettings, SftpStorage


class TestSftpStorage(StorageBackendSuite):
    """All that every storage must do, and what this one is for."""

    @pytest.fixture
    def server(self, loop: asyncio.AbstractEventLoop, tmp_path: Path) -> Iterator[asyncssh.SSHAcceptor]:
        """An SFTP server that lets in who has our key."""
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
        """A URL that was changed or whose time is over shows nothing; one that is made later does."""
        self._save_one(call, storage)
        url = call(storage.url, "suite/65f8/original", 60)
        assert call(storage.show, asked(url)).body == self.content
        with pytest.raises(NotFound):
            call(storage.show, asked(url.replace("65f8", "65f9")))
        now = asyncio_now()
        monkeypatch.setattr("pipeline_storage_sftp.utc_now", lambda: now + A_DAY)
        with pytest.raises(NotFound):
            call(storage.show, asked(url))
        assert call(storage.show, asked(call(storage.url, "suite/65f8/original", 60))).body == self.content
