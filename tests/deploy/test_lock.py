"""The packages of the image are pinned with hashes, satisfy setup.cfg and include no GPL encoder."""

from __future__ import annotations

import ast
import re
import tomllib
from configparser import ConfigParser
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.service import ROOT

LOCK, BUILD_LOCK = ROOT / "deploy/requirements.txt", ROOT / "deploy/build-requirements.txt"
EXTRAS = ("local", "object", "apprise", "webpush", "otel")
# Its wheels contain x265, which is under the GPL.
GPL = "pillow-heif"


def requirements_of_the_image() -> list[str]:
    """Return the requirements in setup.cfg: those of the service and those of the extras in the image."""
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    texts = [config["options"]["install_requires"], *(config["options.extras_require"][extra] for extra in EXTRAS)]
    return [line for text in texts for line in text.splitlines() if line.strip() and not line.startswith("#")]


def pinned(lock: str) -> dict[str, str]:
    """Return the version of each package in the text of a lock file."""
    found = re.findall(r"^([A-Za-z0-9_.-]+)==([^\s;]+)", lock, re.MULTILINE)
    return {canonicalize_name(name): version for name, version in found}


def unsatisfied(requirements: list[str], lock: str) -> list[str]:
    """Return the requirements that the lock does not satisfy."""
    versions = pinned(lock)
    named = [(each, versions.get(canonicalize_name(each.name), "")) for each in map(Requirement, requirements)]
    return [str(each) for each, version in named if not version or not each.specifier.contains(version)]


def test_lock_satisfies_setup_cfg() -> None:
    """The lock pins each requirement of the service and of the extras within its bounds; if not, run `make lock`."""
    assert unsatisfied(requirements_of_the_image(), LOCK.read_text()) == []
    builds_with = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    assert unsatisfied(builds_with, BUILD_LOCK.read_text()) == []


def test_stale_lock_is_found() -> None:
    """The check finds a new requirement and a raised lower bound that the lock does not satisfy."""
    lock = LOCK.read_text()
    aiohttp = pinned(lock)["aiohttp"]
    assert unsatisfied(["not-there>=1", f"aiohttp>{aiohttp}", f"aiohttp>={aiohttp}"], lock) == [
        "not-there>=1",
        f"aiohttp>{aiohttp}",
    ]


@pytest.mark.parametrize("path", [LOCK, BUILD_LOCK], ids=lambda path: path.name)
def test_lock_has_a_hash_for_each_package(path: Path) -> None:
    """Each package has a hash: pip would install a package without one from any source that offers it."""
    blocks = re.split(r"\n(?=[A-Za-z0-9])", path.read_text())
    assert all("--hash=sha256:" in block for block in blocks if "==" in block.splitlines()[0])


@pytest.mark.fault("O10")
def test_product_contains_no_gpl_encoder() -> None:
    """The product only decodes HEIC, with pi-heif; pillow-heif, which also encodes, is only for the tests."""
    assert GPL not in pinned(LOCK.read_text()) and "pi-heif" in pinned(LOCK.read_text())
    assert GPL not in {Requirement(each).name for each in requirements_of_the_image()}
    for path in [*(ROOT / "pipeline").rglob("*.py"), *(ROOT / "plugins").rglob("*.py")]:
        nodes = ast.walk(ast.parse(path.read_text()))
        names = {alias.name for node in nodes if isinstance(node, ast.Import | ast.ImportFrom) for alias in node.names}
        assert "pillow_heif" not in names, path
