"""The files of the two pages: no code and no style in HTML, no HTML in code, no address of another server."""

from __future__ import annotations

import posixpath
import re
from itertools import chain

import pytest

from pipeline import pages

MODULES = sorted(path for path in pages.files() if path.endswith(".js"))
DOCUMENTS = ("index", "console")
IMPORT = re.compile(
    r"""^import\b[^;"']*["']([^"']+)["']|^export\b[^;"'=(]*\bfrom\s*["']([^"']+)["']|\bimport\(["']([^"']+)["']\)""",
    re.MULTILINE,
)
# These turn a text into code or markup.
FORBIDDEN = re.compile(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|DOMParser|srcdoc")


@pytest.mark.parametrize("path", MODULES)
def test_modules_import_only_served_files(path: str) -> None:
    """Every import names a file that the service serves, and no other address."""
    for target in filter(None, chain.from_iterable(IMPORT.findall(_code(path)))):
        if path.startswith("client/") and "node-" in target:
            continue  # imported only outside of a browser
        assert target.startswith("."), target
        assert posixpath.normpath(posixpath.join(posixpath.dirname(path), target)) in pages.files()


@pytest.mark.parametrize("path", MODULES)
def test_modules_make_no_markup_of_texts(path: str) -> None:
    """Texts of users and plugins are shown as text, because no module has a function that makes markup."""
    assert not FORBIDDEN.findall(pages.files()[path].content.decode())


@pytest.mark.parametrize("name", DOCUMENTS)
def test_documents_contain_no_code_and_no_style(name: str) -> None:
    """A strict content policy would block inline code; all loaded files are files of this version of the service."""
    html = pages.document(name).content.decode()
    assert not re.findall(r"<style|\son\w+=|\sstyle=|<script(?![^>]*\ssrc=)", html)
    addresses = re.findall(r'\s(?:src|href)="([^"]+)"', html)
    assert all(each.startswith((f"/pages/{pages.version()}/", "#")) for each in addresses), addresses
    assert "{{" not in html


@pytest.mark.parametrize("name", DOCUMENTS)
def test_documents_preload_every_module(name: str) -> None:
    """The browser loads at once all modules that the first one imports directly or indirectly."""
    html = pages.document(name).content.decode()
    preloaded = set(re.findall(rf'modulepreload" href="/pages/{pages.version()}/([^"]+)"', html))
    needed, unread = {f"{name}.js"}, [f"{name}.js"]
    while unread:
        path = unread.pop()
        for target in re.findall(r"""^(?:import|export)\b[^;]*?["'](\.[^"']+)["']""", _code(path), re.MULTILINE):
            imported = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
            if imported not in needed and imported in pages.files():
                needed.add(imported)
                unread.append(imported)
    assert preloaded == needed


def _code(path: str) -> str:
    """Return the code of a served module."""
    return pages.files()[path].content.decode()
