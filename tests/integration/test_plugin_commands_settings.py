"""The commands `plugins` and `settings` with installed packages: what they list, and which faults they report."""

from __future__ import annotations

import re
import sys

import pytest

from tests.integration.acme_package import KEY, Invoke, folder, invoke

__all__ = ["folder", "invoke"]  # fixtures


def test_plugins_without_a_command_lists_them(invoke: Invoke) -> None:
    """The table has names, kinds, packages and versions. A broken plugin is listed with its reason."""
    done = invoke("plugins", PLUGIN_ACME_API_KEY=KEY)
    cells = [re.split("  +", line) for line in done.stdout.splitlines()]
    assert [row for row in cells if "2.0" in row] == [
        ["broken", "-", "broken", "2.0", "broken", "RuntimeError: out of order"],
        ["acme", "hook", "acme", "2.0", "selected", "-"],
        ["acme", "provider", "acme", "2.0", "available", "-"],
        ["fetcher", "provider", "acme", "2.0", "available", "-"],
        ["looker", "provider", "acme", "2.0", "available", "-"],
    ]


@pytest.mark.fault("O8")
def test_plugin_without_its_package_is_listed_with_a_command(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plugin is not available. When it is selected, the missing package is reported before its settings."""
    for package in ("apprise", "obstore", "http_ece", "rapidocr"):
        monkeypatch.setitem(sys.modules, package, None)
    table = invoke("plugins", AI_SERVICE_URL="http://127.0.0.1:1").stdout
    listed = [re.split("  +", line) for line in table.splitlines()]
    missing = {row[0]: row[-1] for row in listed if "not installed" in row}
    packages = {"apprise": "apprise", "webpush": "http_ece", "local": "rapidocr", "object": "obstore"}
    assert missing == {
        name: f"warning: needs {package}: pip install 'ai-queue-pipeline[{name}]'" for name, package in packages.items()
    }
    chosen = [re.split("  +", line) for line in invoke("plugins", NOTIFIERS="apprise").stdout.splitlines()]
    (apprise,) = [row for row in chosen if row[0] == "apprise"]
    assert apprise[4] == "broken" and apprise[5].startswith("needs apprise: pip install 'ai-queue-pipeline[apprise]'")


def rows(table: str, prefix: str) -> dict[str, list[str]]:
    """Return the rows of a printed table whose first cell has this prefix, by their first cell."""
    cells = [re.split("  +", line) for line in table.splitlines()]
    return {row[0]: row[1:] for row in cells if row and row[0].startswith(prefix)}


def test_settings_of_installed_plugins_are_listed_without_secrets(invoke: Invoke) -> None:
    """A setting is listed with its value, default and description. A secret is shown as asterisks."""
    environment = {"PLUGIN_ACME_API_KEY": KEY, "PLUGIN_ACME_COLORS": "green, grey"}
    done = invoke("settings", **environment)
    assert rows(done.stdout, "PLUGIN_ACME") == {
        "PLUGIN_ACME_CONFIDENCE": ["0.5", "0.5", "How sure it is [0 to 1]."],
        "PLUGIN_ACME_COLORS": ["green,grey", "red,blue", "What it knows."],
        "PLUGIN_ACME_API_KEY": ["**********", "-", "The key."],
    }
    assert KEY not in done.output and done.stderr == ""


def test_settings_report_plugins_with_faults(invoke: Invoke) -> None:
    """Only a plugin with at least one setting is reported. The table is printed all the same, and no value is shown."""
    untouched = invoke("settings")
    assert (untouched.exit_code, untouched.stderr) == (0, "")
    assert rows(untouched.stdout, "PLUGIN_ACME")["PLUGIN_ACME_CONFIDENCE"][:2] == ["-", "0.5"]
    faulty = invoke("settings", PLUGIN_ACME_CONFIDENCE=KEY)
    assert faulty.exit_code == 0
    assert faulty.stderr.startswith("acme: PLUGIN_ACME_CONFIDENCE: ") and "PLUGIN_ACME_API_KEY: " in faulty.stderr
    assert KEY not in faulty.output


@pytest.mark.parametrize("format_", ["env", "markdown"])
def test_settings_for_files_have_built_in_plugins_only(invoke: Invoke, format_: str) -> None:
    """docs/settings.md and .env.example do not depend on the settings and packages of a machine."""
    plain = invoke("settings", "--format", format_)
    environment = {"PLUGIN_JOURNAL_PATH": "/journal", "PLUGINS_DISABLED": "journal,webhook", "PORT": "none"}
    assert invoke("settings", "--format", format_, **environment).stdout == plain.stdout
    assert "PLUGIN_JOURNAL_PATH" in plain.stdout and "PLUGIN_WEBHOOK_SECRET" in plain.stdout
    assert "ACME" not in plain.stdout
