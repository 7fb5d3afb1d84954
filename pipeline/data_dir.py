"""The folder DATA_DIR: whether it can be used, its permissions, and the signing secret in it. Blocks; for the start.

Only the account of the service may read its files. The operator can make one exception: a DATA_DIR with the
set-group-id bit (`chmod g+s`, as a backup account or a Kubernetes `fsGroup` needs it) stays as open to its group as it
is, and so do the files in it.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import structlog

from pipeline.disk import write_probe
from pipeline.errors import ConfigurationError
from pipeline.texts import cause_of

log = structlog.get_logger(__name__)

SECRET_NAME = "jwt_secret"
LEAST_SECRET_LENGTH = 32


def prepare_data_dir(data_dir: Path) -> None:
    """Create the folder and try to write a file; ConfigurationError says why it cannot be used.

    It also sets the umask: files of this process and its children are closed to other accounts from now on.
    """
    with naming_data_dir(data_dir):
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.umask(_closed_bits(data_dir))
        write_probe(data_dir)


def close_to_others(data_dir: Path) -> None:
    """Remove permissions that an earlier version or another umask left to other accounts; log those that stay."""
    closed, failures = 0, []
    bits = _closed_bits(data_dir)
    for path in open_paths(data_dir):
        try:
            path.chmod(stat.S_IMODE(path.stat().st_mode) & ~bits)
            closed += 1
        except FileNotFoundError:
            pass  # it was removed meanwhile
        except OSError as error:
            failures.append(f"{path}: {cause_of(error)}")
    if closed:
        log.info("data_dir_tightened", closed=closed)
    if failures:
        log.warning("data_dir_open", failed=len(failures), first=failures[0])


def open_paths(data_dir: Path) -> Iterator[Path]:
    """Yield files and folders that other accounts may read, the content of a folder before the folder itself.

    A closed subfolder is skipped: other accounts cannot reach its content, and there may be millions of images.
    Folders come last, so a search that was interrupted finds the rest the next time.
    """
    bits = _closed_bits(data_dir)
    yield from _open_below(data_dir, bits)
    if _is_open(data_dir.stat(), bits):
        yield data_dir


def _closed_bits(data_dir: Path) -> int:
    """Return the permission bits that must not be set below DATA_DIR."""
    mode = data_dir.stat().st_mode
    return 0o077 & ~(mode & 0o070) if mode & stat.S_ISGID else 0o077


def _open_below(folder: Path, bits: int) -> Iterator[Path]:
    try:
        entries = os.scandir(folder)
    except OSError:  # removed meanwhile, or closed to this account too
        return
    with entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                status = entry.stat(follow_symlinks=False)
                if not _is_open(status, bits):
                    continue
                if stat.S_ISDIR(status.st_mode):
                    yield from _open_below(Path(entry.path), bits)
                yield Path(entry.path)


def _is_open(status: os.stat_result, bits: int) -> bool:
    """True for a file or folder with one of these permission bits; not for a shared folder such as /tmp."""
    is_shared = bool(status.st_mode & stat.S_ISVTX)
    is_own = stat.S_ISREG(status.st_mode) or (stat.S_ISDIR(status.st_mode) and not is_shared)
    return is_own and bool(status.st_mode & bits)


@contextlib.contextmanager
def naming_data_dir(path: Path) -> Iterator[None]:
    """Turn an OSError of the block into a ConfigurationError that names DATA_DIR and the path."""
    try:
        yield
    except OSError as error:
        reason = "it is no folder" if isinstance(error, FileExistsError) else error.strerror or str(error)
        if isinstance(error, PermissionError):
            # In a container the operator does not see which user this is.
            reason += f"; this process runs as user {os.geteuid()}, group {os.getegid()}"
        raise ConfigurationError(f"DATA_DIR: {path} cannot be used: {reason}") from None


def jwt_secret(data_dir: Path) -> str:
    """Return the signing secret stored in DATA_DIR; the first call creates it, readable by its owner only."""
    path = data_dir / SECRET_NAME
    with naming_data_dir(path):
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
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
        # A link is atomic: of two processes that start at once, one creates the secret.
        with contextlib.suppress(FileExistsError):
            os.link(name, path)
    finally:
        os.unlink(name)
