"""docs/deploy.md names only settings, files and links that exist."""

from __future__ import annotations

import re

from pipeline.settings import Settings
from tests.service import ROOT

TEXT = (ROOT / "docs/deploy.md").read_text()
# Variables of deploy/.env, of the Containerfile and of placeholders.
OTHERS = {"PIPELINE_OPERATORS", "PIPELINE_SITE", "PIPELINE_UPSTREAMS", "GRAFANA_PASSWORD", "BASE_IMAGE"}


def test_deploy_docs_name_settings_that_exist() -> None:
    """Each name in capitals with a _ between backticks is a setting or a variable of a file of deploy/."""
    named = {name for code in re.findall(r"`([^`\n]+)`", TEXT) for name in re.findall(r"\b[A-Z]+_[A-Z_]+\b", code)}
    settings = {name.removesuffix("_FILE").lower(): name for name in named if not name.startswith("PLUGIN_")}
    unknown = {name for setting, name in settings.items() if setting not in Settings.model_fields}
    assert unknown <= OTHERS


def test_deploy_docs_show_env_files_without_comments_behind_values() -> None:
    """Each comment has its own line: Docker and systemd read a comment behind a value as part of the value."""
    blocks = [block for block in re.findall(r"```\w*\n(.*?)```", TEXT, re.DOTALL) if "PUBLIC_URL=" in block]
    assert len(blocks) >= 2
    for line in "".join(blocks).splitlines():
        assert re.fullmatch(r"#.*|[A-Z_]+=\S*", line), line


def test_deploy_docs_install_no_unpublished_package() -> None:
    """No command installs the package by its name: no index has it, so the name could be another author's package."""
    for path in (*ROOT.glob("docs/*.md"), ROOT / "README.md", *ROOT.glob("deploy/systemd/*")):
        assert not re.search(r"pip install '?ai-queue-pipeline", path.read_text()), path


def test_deploy_docs_link_to_files_that_exist() -> None:
    """Each file that a link or a command names exists."""
    for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", TEXT):
        assert (ROOT / "docs" / link).exists(), link
    for path in re.findall(r"(?<![\w/.])deploy/[\w./@-]+", TEXT):
        assert path in ("deploy/.env", "deploy/service.env") or (ROOT / path).exists(), path
