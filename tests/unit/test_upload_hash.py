"""The hash of an uploaded image: of the complete file from any position, also while other files are hashed."""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import BinaryIO

import pytest

from pipeline.usecases.upload import HASHED_AT_ONCE, sha256_of_file

SIZES = (0, 1, HASHED_AT_ONCE, 2 * HASHED_AT_ONCE + 1)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", [io.BytesIO, tempfile.TemporaryFile])
def test_complete_file_is_hashed_and_rewound(kind: type[BinaryIO], size: int) -> None:
    """The file position is at the start afterwards, because storages, filters and the image check read the file."""
    content = os.urandom(size)
    with kind() as file:
        file.write(content)
        assert sha256_of_file(file) == hashlib.sha256(content).hexdigest()
        assert file.tell() == 0
        file.seek(size // 2)
        assert sha256_of_file(file) == hashlib.sha256(content).hexdigest()
        assert file.tell() == 0


def test_files_hashed_at_the_same_time_have_their_own_hashes() -> None:
    """The files share one buffer, which one file uses at a time."""
    contents = [bytes([number]) * (2 * HASHED_AT_ONCE + number) for number in range(8)]
    with ExitStack() as stack, ThreadPoolExecutor(len(contents)) as pool:
        files = [stack.enter_context(tempfile.TemporaryFile()) for _ in contents]
        for file, content in zip(files, contents, strict=True):
            file.write(content)
        assert [*pool.map(sha256_of_file, files)] == [hashlib.sha256(content).hexdigest() for content in contents]
