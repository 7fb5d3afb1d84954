"""`plugins verify` on the mistakes planted in tests/plugins_broken/.

The first line of each file names its mistake and, after "|", the finding of `verify`, or why `verify` misses it.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.commands.verifying import Verdict, _how_it_ended
from tests.service import ROOT, inherited

# A file that begins with good_ has no mistake.
PLANTED = sorted((ROOT / "tests/plugins_broken").glob("[!g]*.py"))
DOCS = (ROOT / "docs/plugins-verify.md").read_text()
SECONDS = 15


def planted(path: Path) -> tuple[str, str]:
    """Return the mistake of the file and the expected finding."""
    mistake, _, finding = path.read_text().partition("\n")[0].removeprefix("# ").partition(" | ")
    return mistake, finding


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Verdict]:
    """The verdict of `verify` about each file."""
    limits = {"NOTIFIER_TIMEOUT_SECONDS": "1", "HOOK_TIMEOUT_SECONDS": "1", "FILTERS_REQUIRED": "broken"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.planted", str(ROOT / "tests/plugins_broken"), ".", "8", str(SECONDS)],
        cwd=tmp_path_factory.mktemp("planted"),
        env=inherited() | limits | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    verdicts = {}
    for name, (*messages, end) in json.loads(done.stdout).items():
        verdict = verdicts[name] = Verdict(name)
        for message in messages:
            verdict.add(message)
        code = -signal.SIGKILL if end["exit"] == -signal.SIGKILL else end["exit"]
        verdict.ended(_how_it_ended(code, SECONDS, verdict.at, ""))
    return verdicts


@pytest.mark.fault("P9")
@pytest.mark.parametrize("path", PLANTED, ids=lambda path: path.stem)
def test_verify_finds_planted_mistakes(verdicts: dict[str, Verdict], path: Path) -> None:
    """A mistake is reported in one line, and its plugin fails. For a missed mistake the file gives the reason."""
    _, finding = planted(path)
    verdict = verdicts[path.stem]
    if finding.startswith("missed: "):
        assert verdict.exit_code == 0
    else:
        assert verdict.exit_code, verdict
        lines = [verdict.fault, *verdict.findings]
        assert any(finding in line for line in lines), lines
        assert not any("\n" in line for line in lines)


@pytest.mark.fault("P9")
def test_verify_reports_nothing_that_is_no_mistake(verdicts: dict[str, Verdict]) -> None:
    """A plugin that is busy at first is called a second time. A call that fails each time is reported once."""
    for name in ("good_busy_at_first", "good_storage"):
        assert (verdicts[name].exit_code, verdicts[name].findings) == (0, {})
    (line,) = verdicts["provider_wrong_key"].findings
    assert "at once" not in line and "categor" not in line
    assert [*verdicts["provider_wrong_key"].left_out.values()].count("as no call succeeds") == 3
    (line,) = verdicts["provider_fails_at_once"].findings
    lines = [each for verdict in verdicts.values() for each in verdict.findings]
    assert not [each for each in lines if "PluginSuite" in each]


def test_page_lists_the_planted_mistakes() -> None:
    """docs/plugins-verify.md lists each mistake with its finding. To repair it, put the lines between its two marks."""
    lines = ["| mistake | `verify` says |", "|---|---|"]
    for mistake, finding in map(planted, PLANTED):
        lines.append(f"| {mistake.rstrip('.')} | {finding} |".replace("<", r"\<"))
    table = DOCS.partition("<!-- planted -->\n")[2].partition("<!-- end of planted -->")[0]
    assert table.splitlines() == lines, "\n".join(lines)
