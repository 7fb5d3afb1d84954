"""The pages, / and /console and /runbooks, as browsers get them: HTML, CSS and ES modules, without a build step.

Everything they load has an address under /pages/<version>/, where version is made of what the files hold, so that
browsers may keep it for ever. The JavaScript client is served with them, in client/. Read once, when first asked for.
"""

from __future__ import annotations

import gzip
import hashlib
import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable

ROOT = "/pages"
CLIENT = "client"
TYPES = {
    ".html": "text/html; charset=UTF-8",
    ".css": "text/css; charset=UTF-8",
    ".js": "text/javascript; charset=UTF-8",
    ".svg": "image/svg+xml",
}
IMPORTED = re.compile(r"""^(?:import|export)\b[^"';]*?(?:\bfrom\s*)?["'](\.{1,2}/[^"']+)["']""", re.MULTILINE)
# Comments of whole lines, and types, are a third of what modules weigh, packed. Line ends stay: a browser's traces
# name the lines of the sources.
COMMENTS = re.compile(
    r"^[ \t]*/\*\*(?:(?!\*/).)*\*/[ \t]*$ | ^[ \t]*//[^\n]*$ | /\*\*[ ][^\n]*?\*/[ ]?",
    re.MULTILINE | re.DOTALL | re.VERBOSE,
)
VERSION_DIGITS = 12


@dataclass(frozen=True, slots=True)
class File:
    """One file. packed: its bytes by gzip."""

    content: bytes
    packed: bytes
    content_type: str
    etag: str


@cache
def files() -> dict[str, File]:
    """Return all files by their path below the version."""
    return {path: _file(path, _served(path, content)) for path, content in sorted(_contents())}


@cache
def version() -> str:
    """Return a text that changes with any of the files."""
    digest = hashlib.sha256()
    for path, file in files().items():
        digest.update(f"{path}\0{file.etag}\0".encode())
    return digest.hexdigest()[:VERSION_DIGITS]


@cache
def document(name: str) -> File:
    """Return an HTML page, with the version filled in and every module that it will need announced."""
    base = f"{ROOT}/{version()}"
    preloads = "\n".join(f'<link rel="modulepreload" href="{base}/{path}">' for path in _modules(f"{name}.js"))
    return filled(f"{name}.html", modules=preloads)


def filled(path: str, **parts: str) -> File:
    """Return that HTML page with these parts and the version filled in."""
    text = files()[path].content.decode().replace("{{ base }}", f"{ROOT}/{version()}")
    for name, part in parts.items():
        text = text.replace(f"{{{{ {name} }}}}", part)
    return _file(path, text.encode())


def _file(path: str, content: bytes) -> File:
    # mtime: the same bytes in every process.
    packed = gzip.compress(content, 9, mtime=0)
    kind = TYPES[posixpath.splitext(path)[1]]
    return File(content, packed, kind, hashlib.sha256(content).hexdigest()[:32])


def _served(path: str, content: bytes) -> bytes:
    """Return what browsers get of a file: modules come without their comments."""
    if not path.endswith(".js"):
        return content
    return COMMENTS.sub(lambda comment: "\n" * comment[0].count("\n"), content.decode()).encode()


def _contents() -> Iterator[tuple[str, bytes]]:
    here = resources.files(__name__)
    yield from _below(here, "")
    if not here.joinpath(CLIENT).is_dir():
        # Not installed: run from the folder of the sources.
        yield from _below(here.joinpath("..", "..", "clients", "js"), f"{CLIENT}/")


def _below(folder: Traversable, prefix: str) -> Iterator[tuple[str, bytes]]:
    for entry in folder.iterdir():
        path = prefix + entry.name
        if entry.is_dir():
            yield from _below(entry, f"{path}/")
        elif posixpath.splitext(path)[1] in TYPES:
            yield path, entry.read_bytes()


def _modules(first: str) -> list[str]:
    """Return the module and all that it imports, directly or not."""
    found, unread = [first], [first]
    while unread:
        path = unread.pop()
        for target in IMPORTED.findall(files()[path].content.decode()):
            imported = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
            if imported in files() and imported not in found:
                found.append(imported)
                unread.append(imported)
    return found
