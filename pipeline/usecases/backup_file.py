"""The file of a backup: a tar, each member with its SHA-256 beside it.

First comes what made it, then each asset: its images, then its document with their hashes; then what the store keeps
beside the assets and the Idempotency-Keys; last how much there is, without which a file is not whole. One that has been
changed, cut off or made up tells so: nothing in it is taken on trust.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.errors import Conflict, DependencyUnavailable, ValidationError

FORMAT = 1
FIRST, LAST = "backup.json", "end.json"
DIGEST = "PIPELINE.sha256"
MAX_MEMBER_BYTES = 256 * 1024 * 1024
# What reading a member raises that holds something else than it should.
UNREADABLE = (LookupError, TypeError, ValueError, AttributeError, OverflowError, RecursionError)


@dataclass(slots=True)
class BackupCounts:
    """How much there was. flaws: what could not be had, each in one line. damage: likewise, what is not as it was."""

    assets: int = 0
    images: int = 0
    kept: int = 0
    keys: int = 0
    flaws: list[str] = field(default_factory=list)
    damage: list[str] = field(default_factory=list)

    def shown(self) -> dict[str, int]:
        """Return the numbers."""
        return {"assets": self.assets, "images": self.images, "kept": self.kept, "keys": self.keys}

    @property
    def told(self) -> list[str]:
        """All that is wrong."""
        return self.damage + self.flaws


class Member(NamedTuple):
    """A member of the file. digest: hash of its content, hex. is_sound: that is the content that was written."""

    name: str
    content: bytes
    digest: str
    is_sound: bool

    def json(self) -> dict[str, Any]:
        """Return the object that it holds; one of UNREADABLE when it does not."""
        value = json.loads(self.content)
        if not self.is_sound or not isinstance(value, dict):
            raise ValueError("it is not what was written")
        return value


@contextmanager
def writing(path: Path) -> Iterator[tarfile.TarFile]:
    """Give a tar to write to. It has its name only when it is whole and on the disk; an older one is replaced then.

    Conflict: another process writes it. DependencyUnavailable: it cannot be written.
    """
    part = path.with_name(path.name + ".part")
    try:
        with open(_claimed(part), "r+b") as file:
            try:
                file.truncate()
                with tarfile.open(fileobj=file, mode="w|", format=tarfile.PAX_FORMAT) as tar:
                    yield tar
                file.flush()
                os.fsync(file.fileno())
                part.replace(path)
            except BaseException:
                part.unlink(missing_ok=True)
                raise
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise DependencyUnavailable(f"{path} cannot be written: {error.strerror or error}") from None


def _claimed(part: Path) -> int:
    """Return the open file, which no other process writes as long as it is open."""
    while True:
        descriptor = os.open(part, os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_named(descriptor, part):
                os.fchmod(descriptor, 0o600)
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            raise Conflict(f"Another process is writing {part}") from None
        # Its writer has just ended: it has another name by now, or none.
        os.close(descriptor)


def _is_named(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def add(tar: tarfile.TarFile, name: str, content: bytes) -> str:
    """Add a member and return the hash of its content, hex."""
    member = tarfile.TarInfo(name)
    digest = hashlib.sha256(content).hexdigest()
    member.size, member.mode, member.pax_headers = len(content), 0o600, {DIGEST: digest}
    tar.addfile(member, io.BytesIO(content))
    return digest


def members(path: Path) -> Iterator[Member]:
    """Yield the members of a backup, one in memory at a time.

    ValidationError when the file is no backup, or when it ends too early, after the members that there are.
    """
    name, count = "", 0
    try:
        with tarfile.open(path, "r|") as tar:
            for found in tar:
                if not found.isreg() or found.size > MAX_MEMBER_BYTES:
                    raise ValidationError(f"{path} is no backup: {found.name} is no file of its kind")
                file = tar.extractfile(found)
                content = file.read() if file else b""
                name, count = found.name, count + 1
                digest = hashlib.sha256(content).hexdigest()
                member = Member(name, content, digest, digest == found.pax_headers.get(DIGEST))
                if count == 1 and not _is_first(member):
                    raise ValidationError(f"{path} is no backup, or one of a newer version")
                yield member
    except (tarfile.TarError, EOFError, UnicodeError, OverflowError, ValueError) as error:
        raise ValidationError(f"{path} is no backup, or damaged: {error}") from None
    except OSError as error:
        raise DependencyUnavailable(f"{path} cannot be read: {error.strerror or error}") from None
    if name != LAST:
        raise ValidationError(f"{path} is not whole: it ends too early")


def _is_first(member: Member) -> bool:
    try:
        return member.name == FIRST and member.json()["format"] == FORMAT
    except UNREADABLE:
        return False


def check_totals(member: Member, counts: BackupCounts) -> None:
    """Add to the counts what the last member says: flaws of when it was written, and what is missing now."""
    try:
        said: Mapping[str, Any] = member.json()
        counts.flaws += map(str, said["flaws"])
        # Of images each document says which it had.
        counted = {name: found for name, found in counts.shown().items() if name != "images"}
        fewer = [name for name, found in counted.items() if said[name] != found]
        counts.damage += [f"{counted[name]} of {said[name]} {name} are left" for name in fewer]
    except UNREADABLE:
        counts.damage.append(f"{member.name} is damaged")
