"""`plugins verify` against the mistakes planted in tests/plugins_broken/: the first line of each file says which it is
and, after "|", what `verify` is to say of it, or why it is missed.
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

# Those that begin with good_ have none.
PLANTED = sorted((ROOT / "tests/plugins_broken").glob("[!g]*.py"))
DOCS = (ROOT / "docs/plugins-verify.md").read_text()
SECONDS = 15


def planted(path: Path) -> tuple[str, str]:
    """Return the mistake and what `verify` says of it."""
    mistake, _, says = path.read_text().partition("\n")[0].removeprefix("# ").partition(" | ")
    return mistake, says


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Verdict]:
    """What `verify` says of each."""
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
    """Each is told in one line, and the plugin does not pass; of one that is missed the reason is known."""
    _, says = planted(path)
    verdict = verdicts[path.stem]
    if says.startswith("missed: "):
        assert verdict.exit_code == 0
    else:
        assert verdict.exit_code, verdict
        lines = [verdict.fault, *verdict.findings]
        assert any(says in line for line in lines), lines
        assert not any("\n" in line for line in lines)


@pytest.mark.fault("P9")
def test_verify_blames_nobody_for_what_is_no_mistake(verdicts: dict[str, Verdict]) -> None:
    """Who is busy for a moment is asked again; what fails each time is said once; the suite's calls are its own."""
    for name in ("good_busy_at_first", "good_storage"):
        assert (verdicts[name].exit_code, verdicts[name].findings) == (0, {})
    (line,) = verdicts["provider_wrong_key"].findings
    assert "at once" not in line and "categor" not in line
    assert [*verdicts["provider_wrong_key"].left_out.values()].count("as no call succeeds") == 3
    (line,) = verdicts["provider_fails_at_once"].findings
    lines = [each for verdict in verdicts.values() for each in verdict.findings]
    assert not [each for each in lines if "PluginSuite" in each]


def test_page_lists_the_planted_mistakes() -> None:
    """docs/plugins-verify.md has each with what is said of it. To mend it: put these lines between its two marks."""
    lines = ["| mistake | `verify` says |", "|---|---|"]
    for mistake, says in map(planted, PLANTED):
        lines.append(f"| {mistake.rstrip('.')} | {says} |".replace("<", r"\<"))
    table = DOCS.partition("<!-- planted -->\n")[2].partition("<!-- end of planted -->")[0]
    assert table.splitlines() == lines, "\n".join(lines)
