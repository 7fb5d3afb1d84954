"""The folder DATA_DIR: whether it can be used, and the signing secret that is kept there. Blocks; for the start."""

from __future__ import annotations

import contextlib
import os
import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path

from pipeline.disk import write_probe
from pipeline.errors import ConfigurationError

SECRET_NAME = "jwt_secret"
LEAST_SECRET_LENGTH = 32


def try_data_dir(data_dir: Path) -> None:
    """Make the folder if there is none, and write a file there; ConfigurationError says why it cannot be used."""
    with usable(data_dir):
        data_dir.mkdir(parents=True, exist_ok=True)
        write_probe(data_dir)


@contextlib.contextmanager
def usable(path: Path) -> Iterator[None]:
    """Turn an OSError of what is done inside into a ConfigurationError that names the path and DATA_DIR."""
    try:
        yield
    except OSError as error:
        reason = "it is no folder" if isinstance(error, FileExistsError) else error.strerror or str(error)
        raise ConfigurationError(f"DATA_DIR: {path} cannot be used: {reason}") from None


def jwt_secret(data_dir: Path) -> str:
    """Return the signing secret kept under DATA_DIR, made at the first call and readable by its owner only."""
    path = data_dir / SECRET_NAME
    with usable(path):
        data_dir.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            _make_secret(path)
        secret = path.read_bytes().decode(errors="replace").strip()
    if len(secret) < LEAST_SECRET_LENGTH or not secret.isascii():
        raise ConfigurationError(f"{path} is damaged; remove it, or set JWT_SECRET: tokens made with it become invalid")
    return secret


def _make_secret(path: Path) -> None:
    descriptor, name = tempfile.mkstemp(dir=path.parent)  # readable by its owner only
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32))
        # A link appears whole or not at all, also when two processes start at once.
        with contextlib.suppress(FileExistsError):
            os.link(name, path)
    finally:
        os.unlink(name)
