"""Source: a file that is read in blocks. Copy: the parts of it in the clean copy. Pure."""

from __future__ import annotations

import os
import re
from typing import BinaryIO

BLOCK_BYTES = 256 * 1024
# How many parts a file may have: a GIF has one in 255 bytes, a PNG one in 8 kB, and a photo in tiles has a thousand.
# Each part takes a microsecond, so a file of nothing but parts would keep a thread for seconds.
PARTS = 20_000
BYTES_A_PART = 100


class TooManyParts(ValueError):
    """The file has more parts than were allowed."""


class Source:
    """Returns bytes of a file by their offset. Has at most one block, or one requested part, in memory."""

    def __init__(self, file: BinaryIO, parts: int | None = None) -> None:
        """parts: the most parts allowed; default: as many as a picture of that size may have."""
        self._file = file
        self.size = file.seek(0, os.SEEK_END)
        self._parts_left = PARTS + self.size // BYTES_A_PART if parts is None else parts
        self._block, self._start = b"", 0

    def count(self, parts: int = 1) -> None:
        """Count so many parts; TooManyParts when there are more than allowed."""
        self._parts_left -= parts
        if self._parts_left < 0:
            raise TooManyParts("more parts than any picture has")

    def block(self, at: int, least: int = 1) -> tuple[bytes, int]:
        """Return a block with `least` bytes from that offset on, fewer at the file's end, and the block's offset."""
        if not self._start <= at or at + least > self._start + len(self._block):
            self._file.seek(at)
            self._block, self._start = self._file.read(max(least, BLOCK_BYTES)), at
        return self._block, self._start

    def take(self, at: int, count: int) -> bytes:
        """Return so many bytes, fewer at the file's end."""
        block, start = self.block(at, count)
        return block[at - start : at - start + count]

    def find(self, pattern: re.Pattern[bytes], at: int) -> int:
        """Return the offset of the first two bytes that match the pattern; the file's size when none do."""
        while at < self.size:
            block, start = self.block(at, 2)
            if found := pattern.search(block, at - start):
                return start + found.start()
            at = max(at + 1, start + len(block) - 1)
        return self.size


class Copy:
    """The parts of a clean copy in their order: ranges of the source, and new bytes."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._parts: list[tuple[int, int] | bytes] = []

    def keep(self, start: int, end: int) -> None:
        """Append that range of the source, as far as it goes."""
        end = min(end, self._source.size)
        if start >= end:
            return
        if self._parts and isinstance(last := self._parts[-1], tuple) and last[1] == start:
            self._parts[-1] = (last[0], end)
        else:
            self._parts.append((start, end))

    def put(self, content: bytes, start: int, end: int) -> None:
        """Append these bytes in place of that range of the source."""
        if len(content) == end - start and self._source.take(start, end - start) == content:
            self.keep(start, end)
        elif content:
            self._parts.append(content)

    def blank(self, start: int, end: int) -> None:
        """Append zeros in place of that range of the source."""
        end = min(end, self._source.size)
        for at in range(start, end, BLOCK_BYTES):
            count = min(BLOCK_BYTES, end - at)
            self.put(ZEROS[:count] if count < BLOCK_BYTES else ZEROS, at, at + count)

    def follow(self, other: Copy) -> None:
        """Append all parts of the other copy."""
        for part in other._parts:
            if isinstance(part, tuple):
                self.keep(*part)
            else:
                self._parts.append(part)

    @property
    def is_changed(self) -> bool:
        """True when the copy differs from the source."""
        return self._parts != [(0, self._source.size)]

    def write(self, target: BinaryIO) -> None:
        """Write the copy."""
        for part in self._parts:
            if isinstance(part, bytes):
                target.write(part)
                continue
            start, end = part
            while start < end:
                block = self._source.take(start, min(BLOCK_BYTES, end - start))
                if not block:
                    raise ValueError("the file became shorter")
                target.write(block)
                start += len(block)


ZEROS = bytes(BLOCK_BYTES)
