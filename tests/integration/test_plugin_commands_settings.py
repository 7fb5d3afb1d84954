"""`plugins` and `settings` with installed packages: what they list, and what they say of faults."""

from __future__ import annotations

import re
import sys

import pytest

from tests.integration.acme_package import KEY, Invoke, folder, invoke

__all__ = ["folder", "invoke"]  # fixtures


def test_plugins_without_a_command_still_lists(invoke: Invoke) -> None:
    """Names, kinds, packages and versions, the broken one with its reason."""
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
def test_plugins_without_their_packages_say_how_to_get_them(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are not available; and who selects one reads that first, before its settings."""
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
    """Return the rows of a printed table whose first cell begins so, by that cell."""
    cells = [re.split("  +", line) for line in table.splitlines()]
    return {row[0]: row[1:] for row in cells if row and row[0].startswith(prefix)}


def test_settings_list_those_of_installed_plugins_without_secrets(invoke: Invoke) -> None:
    """With values in force, defaults and reasons; a secret is starred."""
    environment = {"PLUGIN_ACME_API_KEY": KEY, "PLUGIN_ACME_COLORS": "green, grey"}
    done = invoke("settings", **environment)
    assert rows(done.stdout, "PLUGIN_ACME") == {
        "PLUGIN_ACME_CONFIDENCE": ["0.5", "0.5", "How sure it is [0 to 1]."],
        "PLUGIN_ACME_COLORS": ["green,grey", "red,blue", "What it knows."],
        "PLUGIN_ACME_API_KEY": ["**********", "-", "The key."],
    }
    assert KEY not in done.output and done.stderr == ""


def test_settings_say_which_plugins_are_not_in_order(invoke: Invoke) -> None:
    """Only of a plugin somebody has begun to set up; the table comes all the same, and no value shows."""
    untouched = invoke("settings")
    assert (untouched.exit_code, untouched.stderr) == (0, "")
    assert rows(untouched.stdout, "PLUGIN_ACME")["PLUGIN_ACME_CONFIDENCE"][:2] == ["-", "0.5"]
    faulty = invoke("settings", PLUGIN_ACME_CONFIDENCE=KEY)
    assert faulty.exit_code == 0
    assert faulty.stderr.startswith("acme: PLUGIN_ACME_CONFIDENCE: ") and "PLUGIN_ACME_API_KEY: " in faulty.stderr
    assert KEY not in faulty.output


@pytest.mark.parametrize("format_", ["env", "markdown"])
def test_settings_for_files_know_built_in_plugins_only(invoke: Invoke, format_: str) -> None:
    """docs/settings.md and .env.example are the same on every machine, whatever is set or installed."""
    plain = invoke("settings", "--format", format_)
    environment = {"PLUGIN_JOURNAL_PATH": "/journal", "PLUGINS_DISABLED": "journal,webhook", "PORT": "none"}
    assert invoke("settings", "--format", format_, **environment).stdout == plain.stdout
    assert "PLUGIN_JOURNAL_PATH" in plain.stdout and "PLUGIN_WEBHOOK_SECRET" in plain.stdout
    assert "ACME" not in plain.stdout
