"""The README is one screen; the pages of docs/ are listed, begin with the reader's task, and have valid links."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import pipeline
from pipeline.metrics import Metrics
from pipeline.settings import Settings

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))
LINKING = [*PAGES, *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"))]
# Names in capitals that are no settings: of commands, tests, files of deploy/, other programs and the API.
NO_SETTINGS = {
    *("PIPELINE_URL", "PIPELINE_ADMIN_TOKEN", "TEST_MONGODB_URI", "API_VERSION", "INTERNAL_ERROR", "TCP_USER_TIMEOUT"),
    *("BASE_IMAGE", "PIPELINE_OPERATORS", "GRAFANA_PASSWORD"),
    "REDIS_ULR",  # a mistyped name, on purpose
}
# Routes that only the two pages load; a reader of docs/routes.md calls none of them.
OF_PAGES = {"/pages/{version}/{path}"}


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_readme_is_one_screen() -> None:
    """The README has at most 90 lines, no table of settings or routes, and both commands."""
    text = (ROOT / "README.md").read_text()
    assert text.count("\n") <= 90
    assert "\nmake demo " in text and "\nmake test " in text
    assert not re.search(r"^\| `(GET|POST|[A-Z_]+)", text, re.MULTILINE)


def test_index_lists_every_page_once() -> None:
    """Each page of docs/ has one line in docs/README.md."""
    listed = re.findall(r"^- \[[\w-]+\.md\]\(([\w-]+\.md)\): .+$", (ROOT / "docs/README.md").read_text(), re.MULTILINE)
    assert sorted(listed) == [page.name for page in PAGES if page.name != "README.md"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_page_begins_with_the_task_of_its_reader(page: Path) -> None:
    """The first sentence after the title is about the reader: "You write a page that ..."."""
    title, empty, first = page.read_text().split("\n")[:3]
    assert title.startswith("# ") and empty == "" and first.startswith("You ")


@pytest.mark.parametrize("page", LINKING, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(page: Path) -> None:
    """Each link of a page leads to a file and a heading that exist."""
    for target, anchor in re.findall(r"\]\(([^)#:\s]*)(?:#([^)\s]*))?\)", page.read_text()):
        found = page.parent / target if target else page
        assert found.exists(), target
        assert not anchor or anchor in anchors(found), f"{target}#{anchor}"


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md"], ids=lambda page: page.name)
def test_pages_name_settings_and_metrics_that_exist(page: Path) -> None:
    """In backticks a name in capitals with a _ is a setting, and a name that begins with pipeline_ is a metric."""
    codes = re.findall(r"`([^`\n]+)`", page.read_text())
    names = {name for code in codes for name in re.findall(r"(?<![\w.$])[A-Z]+(?:_[A-Z]+)+\b", code)} - NO_SETTINGS
    ours = {name.removesuffix("_FILE") for name in names if not name.startswith(("PLUGIN_", "OTEL_"))}
    assert ours <= {name.upper() for name in Settings.model_fields}
    metrics = {name for code in codes for name in re.findall(r"^pipeline_\w*[a-z]\b", code)}
    shown = set(re.findall(r"^# TYPE (\w+) ", Metrics().render()[0].decode(), re.MULTILINE))
    assert metrics <= shown


def test_routes_page_has_every_route() -> None:
    """docs/routes.md names each route of the contract, and no other."""
    contract = json.loads((ROOT / "contracts/analyze-queue.openapi.json").read_text())["paths"]
    codes = re.findall(r"`(?:[A-Z]+ )?(/[^`]*)`", (ROOT / "docs/routes.md").read_text())
    assert {code.split("?")[0] for code in codes} == contract.keys() - OF_PAGES


def test_recipes_name_files_and_tests_that_exist() -> None:
    """Each path and each test that CONTRIBUTING.md names in backticks exists."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    for path in re.findall(r"`((?:pipeline|plugins|tests|contracts|grafana|docs|clients)/[\w./-]*)`", text):
        assert (ROOT / path).exists(), path
    sources = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    named = set(re.findall(r"`(test_\w+)`", text))
    assert named and named <= set(re.findall(r"def (test_\w+)", sources))


def test_changelog_has_the_form_it_names() -> None:
    """The newest release is first, each has its date, and sections of Keep a Changelog 1.1 occur once in a release."""
    kinds = ("Added", "Changed", "Deprecated", "Removed", "Fixed", "Security")
    first, *releases = re.split(r"^## ", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert "keepachangelog.com/en/1.1.0" in first and releases[0].startswith("[Unreleased]\n")
    headings = [re.match(r"\[(\d+\.\d+\.\d+)\] - (\d{4}-\d\d-\d\d)\n", release) for release in releases[1:]]
    dates = [heading[2] for heading in headings if heading]
    assert len(dates) == len(headings) and dates == sorted(dates, reverse=True)
    for release in releases:
        found = re.findall(r"^### (\w+)( / .+)?$", release, re.MULTILINE)
        assert {kind for kind, _ in found} <= set(kinds) and len(found) == len(set(found))


def test_version_is_the_same_everywhere() -> None:
    """The newest release of the changelog is the version of the package, the clients, the contracts and the chart."""
    places = {
        "setup.cfg": r"^version = (.+)$",
        "clients/js/package.json": r'^  "version": "(.+)"',
        "clients/python/pyproject.toml": r'^version = "(.+)"',
        "contracts/analyze-queue.openapi.json": r'^    "version": "(.+)"',
        "contracts/rooms.asyncapi.json": r'^    "version": "(.+)"',
        "deploy/Containerfile": r"^ARG VERSION=(.+)$",
        "deploy/helm/pipeline/Chart.yaml": r'^(?:version|appVersion): "?([\d.]+)"?$',
        "CHANGELOG.md": r"^## \[(\d.+?)\]",
    }
    found = {place: re.findall(shape, (ROOT / place).read_text(), re.MULTILINE) for place, shape in places.items()}
    found["CHANGELOG.md"] = found["CHANGELOG.md"][:1]
    assert {version for versions in found.values() for version in versions} == {pipeline.__version__}, found
    assert all(found.values()), found
