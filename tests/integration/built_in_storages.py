"""The built-in storages `local` and `cloudinary`, ready for a test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.plugins.storage_cloudinary import CloudinaryStorage
from pipeline.plugins.storage_local import LocalStorage
from tests.fake_cloudinary import FakeCloudinary


@pytest.fixture
def cloudinary_storage(cloudinary: FakeCloudinary) -> Iterator[CloudinaryStorage]:
    """The storage with the account of the fake Cloudinary."""
    storage = CloudinaryStorage(cloudinary.cloudinary_url, budget_seconds=5, connections=16)
    yield storage
    storage.close()


@pytest.fixture
def local_storage(tmp_path: Path) -> LocalStorage:
    """The storage in an empty folder."""
    return LocalStorage(tmp_path / "media", "http://127.0.0.1:8080")
