"""What the two pages are made of: no code and no style in HTML, no HTML in code, no address elsewhere."""

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
# What makes code or markup of a text.
FORBIDDEN = re.compile(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|DOMParser|srcdoc")


@pytest.mark.parametrize("path", MODULES)
def test_modules_import_only_what_is_served(path: str) -> None:
    """Every import names a file that is served; none is at another address."""
    for target in filter(None, chain.from_iterable(IMPORT.findall(_code(path)))):
        if path.startswith("client/") and "node-" in target:
            continue  # asked for only where there is no window
        assert target.startswith("."), target
        assert posixpath.normpath(posixpath.join(posixpath.dirname(path), target)) in pages.files()


@pytest.mark.parametrize("path", MODULES)
def test_modules_make_no_markup_of_texts(path: str) -> None:
    """What users and plugins have written can only ever become text."""
    assert not FORBIDDEN.findall(pages.files()[path].content.decode())


@pytest.mark.parametrize("name", DOCUMENTS)
def test_documents_hold_no_code_and_no_style(name: str) -> None:
    """A strict policy would not run them; what is loaded comes from this service, at addresses of this version."""
    html = pages.document(name).content.decode()
    assert not re.findall(r"<style|\son\w+=|\sstyle=|<script(?![^>]*\ssrc=)", html)
    addresses = re.findall(r'\s(?:src|href)="([^"]+)"', html)
    assert all(each.startswith((f"/pages/{pages.version()}/", "#")) for each in addresses), addresses
    assert "{{" not in html


@pytest.mark.parametrize("name", DOCUMENTS)
def test_documents_announce_every_module(name: str) -> None:
    """What the first module imports, directly or not, is fetched at once rather than one after the other."""
    html = pages.document(name).content.decode()
    announced = set(re.findall(rf'modulepreload" href="/pages/{pages.version()}/([^"]+)"', html))
    needed, unread = {f"{name}.js"}, [f"{name}.js"]
    while unread:
        path = unread.pop()
        for target in re.findall(r"""^(?:import|export)\b[^;]*?["'](\.[^"']+)["']""", _code(path), re.MULTILINE):
            imported = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
            if imported not in needed and imported in pages.files():
                needed.add(imported)
                unread.append(imported)
    assert announced == needed


def _code(path: str) -> str:
    return pages.files()[path].content.decode()
