"""docs/console.md names only tests and routes that exist."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/console.md").read_text()


def test_console_docs_name_existing_tests() -> None:
    """Each test that the table names as its proof is in tests/browser."""
    files = (ROOT / "tests/browser").glob("*.py")
    existing = {name for path in files for name in re.findall(r"def (test_\w+)", path.read_text())}
    named = set(re.findall(r"`(test_\w+)`", TEXT))
    assert named
    assert named <= existing


def test_console_docs_name_existing_routes() -> None:
    """Each route of the table of views is in the contract."""
    paths = json.loads((ROOT / "contracts/analyze-queue.openapi.json").read_text())["paths"]
    named = re.findall(r"`(GET|POST|DELETE) (/api/[^`]+)`", TEXT)
    assert named
    assert [each for each in named if each[0].lower() not in paths.get(each[1], {})] == []
