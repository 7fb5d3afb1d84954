"""docs/deploy.md names only settings, files and links that there are."""

from __future__ import annotations

import re

from pipeline.settings import Settings
from tests.service import ROOT

TEXT = (ROOT / "docs/deploy.md").read_text()
# Of deploy/.env, of the Containerfile and of placeholders.
OTHERS = {"PIPELINE_OPERATORS", "PIPELINE_SITE", "PIPELINE_UPSTREAMS", "GRAFANA_PASSWORD", "BASE_IMAGE"}


def test_deploy_docs_name_settings_that_exist() -> None:
    """Whatever is written in capitals with a _ between backticks is a setting, or stands in a file of deploy/."""
    named = {name for code in re.findall(r"`([^`\n]+)`", TEXT) for name in re.findall(r"\b[A-Z]+_[A-Z_]+\b", code)}
    unknown = {name for name in named if name.lower() not in Settings.model_fields and not name.startswith("PLUGIN_")}
    assert unknown <= OTHERS


def test_deploy_docs_link_to_files_that_exist() -> None:
    """No link and no command leads to a file that is not there."""
    for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", TEXT):
        assert (ROOT / "docs" / link).exists(), link
    for path in re.findall(r"(?<![\w/.])deploy/[\w./@-]+", TEXT):
        assert path in ("deploy/.env", "deploy/service.env") or (ROOT / path).exists(), path
