"""The file of a backup: a tar with the SHA-256 of each member in its header.

The first member names the format and the version of the service. Then come the assets: the images of an asset, then its
document with their hashes. Then come the records of the store and the Idempotency-Keys. The last member has the totals,
and without it the file is not complete. The reader trusts nothing: it detects files that were changed, cut off or made
up.
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
# The errors when a member has another content than it should.
UNREADABLE = (LookupError, TypeError, ValueError, AttributeError, OverflowError, RecursionError)


@dataclass(slots=True)
class BackupCounts:
    """The totals of a backup.

    kept: records of the store
    flaws: images and documents that could not be read, one line each
    damage: members that are not as they were written, one line each
    """

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
    def problems(self) -> list[str]:
        """All damage and flaws."""
        return self.damage + self.flaws


class Member(NamedTuple):
    """A member of the file.

    digest: hash of its content, hex
    is_sound: the content is as it was written
    """

    name: str
    content: bytes
    digest: str
    is_sound: bool

    def json(self) -> dict[str, Any]:
        """Return the member's JSON object; one of UNREADABLE when it has none."""
        value = json.loads(self.content)
        if not self.is_sound or not isinstance(value, dict):
            raise ValueError("it is not as it was written")
        return value


@contextmanager
def writing(path: Path) -> Iterator[tarfile.TarFile]:
    """Yield a tar to write to. The file gets its name, and replaces an older one, when it is complete and on the disk.

    Conflict: another process writes the same file. DependencyUnavailable: it cannot be written.
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
    """Return the open file; no other process can write it as long as it is open."""
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
        # The process that wrote it has just ended: the file has another name by now, or none.
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

    ValidationError when the file is no backup, or, after its last member, when it ends too early.
    """
    name, count = "", 0
    try:
        with tarfile.open(path, "r|") as tar:
            for entry in tar:
                if not entry.isreg() or entry.size > MAX_MEMBER_BYTES:
                    raise ValidationError(f"{path} is no backup: {entry.name} is no file of its kind")
                file = tar.extractfile(entry)
                content = file.read() if file else b""
                name, count = entry.name, count + 1
                digest = hashlib.sha256(content).hexdigest()
                member = Member(name, content, digest, digest == entry.pax_headers.get(DIGEST))
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
    """Compare the counts with the last member; add its flaws, and the members that are missing now."""
    try:
        totals: Mapping[str, Any] = member.json()
        counts.flaws += map(str, totals["flaws"])
        # Images are compared with the documents, which list them.
        counted = {name: number for name, number in counts.shown().items() if name != "images"}
        fewer = [name for name, number in counted.items() if totals[name] != number]
        counts.damage += [f"{counted[name]} of {totals[name]} {name} are left" for name in fewer]
    except UNREADABLE:
        counts.damage.append(f"{member.name} is damaged")
