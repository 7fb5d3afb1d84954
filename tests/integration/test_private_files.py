"""Files under DATA_DIR can be read by the account of the service only, with any umask."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest

from tests.factories import SECRET, make_image, make_token
from tests.service import ROOT, AiService, Service

pytestmark = pytest.mark.fault("U18")


def open_paths(folder: Path, bits: int = 0o077) -> list[str]:
    """Return the paths of the folder that have one of these permission bits, as `name mode`."""
    found = []
    for path, mode in modes(folder).items():
        if not stat.S_ISLNK(mode) and mode & bits:
            found.append(f"{path.relative_to(folder)} {mode:o}")
    return found


def modes(folder: Path) -> dict[Path, int]:
    """Return the modes of the folder and of each path in it. A running service may remove files meanwhile."""
    found = {}
    for path in (folder, *folder.rglob("*")):
        with suppress(FileNotFoundError):
            found[path] = path.lstat().st_mode
    return found


@contextmanager
def umask(value: int) -> Iterator[None]:
    """Start processes with this umask until the block ends."""
    before = os.umask(value)
    try:
        yield
    finally:
        os.umask(before)


def upload(service: Service, *, secret: str = SECRET, pad_bytes: int = 0) -> None:
    """Upload a photo and wait for its result. The service writes a photo of more than 128 kB to a file first."""
    headers = {"Authorization": f"Bearer {make_token(secret=secret)}"}
    with httpx.Client(base_url=service.url, headers=headers, timeout=60) as client:
        files = {"image": ("photo.jpg", make_image() + bytes(pad_bytes), "image/jpeg")}
        reply = client.post("/api/assets/analyze-queue", files=files, data={"category": "lego"})
        assert reply.status_code == 202, reply.text
        asset = client.get(f"/api/assets/{reply.json()['data']['assetId']}?wait=30").json()["data"]
        assert asset["status"] == "active"


@pytest.mark.parametrize("mask", ["022", "000"])
def test_no_file_in_the_data_folder_is_open_to_others(tmp_path: Path, ai_service: AiService, mask: str) -> None:
    """The files of SQLite, Redis, images, uploads and the generated secret have no permissions for others."""
    with umask(int(mask, 8)):
        with Service(tmp_path / "a" / "data", ai_service.url, JWT_SECRET="") as service:
            secret = (service.data_dir / "jwt_secret").read_text()
            for pad_bytes in (0, 600_000):
                upload(service, secret=secret, pad_bytes=pad_bytes)
            names = {path.name for path in service.data_dir.rglob("*")}
            assert {"assets.sqlite", "assets.sqlite-wal", "jwt_secret", "service.json", "server.log"} <= names
            assert open_paths(service.data_dir) == []
        assert open_paths(service.data_dir) == []


def test_start_removes_permissions_for_others_from_older_files(tmp_path: Path, ai_service: AiService) -> None:
    """Files of an earlier version and of a plugin lose these permissions. The target of a link does not."""
    folder, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    with Service(folder, ai_service.url):
        pass
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    (folder / "acme").mkdir()
    (folder / "acme" / "cache").write_text("data of a plugin")
    elsewhere.write_text("data of another program")
    elsewhere.chmod(0o644)
    (folder / "link").symlink_to(elsewhere)
    with Service(folder, ai_service.url) as service:
        assert open_paths(folder) == []
        assert service.wait_log("data_dir_tightened")["closed"] > 5
    assert stat.S_IMODE(elsewhere.stat().st_mode) == 0o644


def test_folder_with_the_set_group_id_bit_stays_open_to_its_group(tmp_path: Path, ai_service: AiService) -> None:
    """The operator sets the bit for a backup account: the group may read older files and new ones."""
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "earlier").write_text("older data")
    (folder / "earlier").chmod(0o644)
    folder.chmod(0o2755)
    with umask(0o022), Service(folder, ai_service.url) as service:
        upload(service, pad_bytes=600_000)
        assert open_paths(folder, 0o007) == []
        unreadable = [path.name for path, mode in modes(folder).items() if not mode & stat.S_IRGRP]
        assert unreadable == []


def test_check_reports_files_that_are_open_to_others(tmp_path: Path, ai_service: AiService) -> None:
    """The warning has the number of files, one name and the command that repairs them. `check` changes no file."""
    with Service(tmp_path / "data", ai_service.url) as service:
        pass
    (service.data_dir / "assets.sqlite").chmod(0o644)
    command = [sys.executable, "run.py", "check", "--json"]
    done = subprocess.run(command, cwd=ROOT, env=service.environment, capture_output=True, text=True, timeout=60)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    (warning,) = [each for each in found if each["what"] == "data folder" and each["mark"] == "warning"]
    assert "other accounts may read 1 files" in warning["detail"] and "assets.sqlite" in warning["detail"]
    assert "chmod" in warning["mend"]
    assert (service.data_dir / "assets.sqlite").stat().st_mode & 0o044
