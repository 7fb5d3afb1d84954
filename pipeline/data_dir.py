"""The folder DATA_DIR: whether it can be used, who may read it, and the signing secret that is kept there. Blocks; for
the start.

Nobody but the account of the service may read what is there. The one exception is made by the operator: a DATA_DIR with
the set-group-id bit (`chmod g+s`, as a backup account or a Kubernetes `fsGroup` needs it) stays as open to its group as
it is, and so does what is written there. All other accounts are shut out.
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
    """Make the folder if there is none, and write a file there; ConfigurationError says why it cannot be used.

    From here on all that this process and its children write is closed to other accounts, whatever the umask was.
    """
    with naming_data_dir(data_dir):
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.umask(_closed_bits(data_dir))
        write_probe(data_dir)


def close_to_others(data_dir: Path) -> None:
    """Close what an earlier version or another umask left open; what cannot be closed is logged."""
    closed, failures = 0, []
    bits = _closed_bits(data_dir)
    for path in open_paths(data_dir):
        try:
            path.chmod(stat.S_IMODE(path.stat().st_mode) & ~bits)
            closed += 1
        except FileNotFoundError:
            pass  # it has gone meanwhile
        except OSError as error:
            failures.append(f"{path}: {cause_of(error)}")
    if closed:
        log.info("data_dir_tightened", closed=closed)
    if failures:
        log.warning("data_dir_open", failed=len(failures), first=failures[0])


def open_paths(data_dir: Path) -> Iterator[Path]:
    """Yield what other accounts may read, the content of a folder before the folder itself.

    A folder below that is closed is not looked into: nobody can reach what it holds, and the images may be millions.
    As folders are closed last, a search that was cut off goes on where it was.
    """
    bits = _closed_bits(data_dir)
    yield from _open_below(data_dir, bits)
    if _is_open(data_dir.stat(), bits):
        yield data_dir


def _closed_bits(data_dir: Path) -> int:
    """Return the permissions that nobody but the owner may have there."""
    mode = data_dir.stat().st_mode
    return 0o077 & ~(mode & 0o070) if mode & stat.S_ISGID else 0o077


def _open_below(folder: Path, bits: int) -> Iterator[Path]:
    try:
        entries = os.scandir(folder)
    except OSError:  # it has gone, or this account may not look into it either
        return
    with entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                found = entry.stat(follow_symlinks=False)
                if not _is_open(found, bits):
                    continue
                if stat.S_ISDIR(found.st_mode):
                    yield from _open_below(Path(entry.path), bits)
                yield Path(entry.path)


def _is_open(found: os.stat_result, bits: int) -> bool:
    """True for a file or folder that more accounts may use than should; not for one that is everybody's, as /tmp."""
    is_shared = bool(found.st_mode & stat.S_ISVTX)
    is_ours = stat.S_ISREG(found.st_mode) or (stat.S_ISDIR(found.st_mode) and not is_shared)
    return is_ours and bool(found.st_mode & bits)


@contextlib.contextmanager
def naming_data_dir(path: Path) -> Iterator[None]:
    """Turn an OSError of what is done inside into a ConfigurationError that names the path and DATA_DIR."""
    try:
        yield
    except OSError as error:
        reason = "it is no folder" if isinstance(error, FileExistsError) else error.strerror or str(error)
        if isinstance(error, PermissionError):
            # In a container nobody sees who that is.
            reason += f"; this process runs as user {os.geteuid()}, group {os.getegid()}"
        raise ConfigurationError(f"DATA_DIR: {path} cannot be used: {reason}") from None


def jwt_secret(data_dir: Path) -> str:
    """Return the signing secret kept under DATA_DIR, made at the first call and readable by its owner only."""
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
        # A link appears whole or not at all, also when two processes start at once.
        with contextlib.suppress(FileExistsError):
            os.link(name, path)
    finally:
        os.unlink(name)
