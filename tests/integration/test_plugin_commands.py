"""The plugin authors' commands: `plugins verify` on plugins that are really installed, and the settings they bring."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pipeline.cli import main
from tests.service import ROOT, AiService, inherited

Invoke = Callable[..., Result]

ACME = """
    import io
    import urllib.request
    import warnings

    from PIL import Image
    from pydantic import Field, SecretStr

    from pipeline.hooks import Analysis, Attribute, PluginSettings, hookimpl


    class AcmeSettings(PluginSettings):
        confidence: float = Field(0.5, description="How sure it is [0 to 1].")
        colors: tuple[str, ...] = Field(("red", "blue"), description="What it knows.")
        api_key: SecretStr = Field(description="The key.")


    class Acme:
        def __init__(self, own):
            self.own = own

        async def analyze(self, request):
            assert request.image in (None, b"not an image")
            return self.ask(self.own.api_key.get_secret_value(), request)

        def ask(self, key, request):
            if request.image and self.own.confidence > 1:
                raise ValueError("a stray error")
            return Analysis(brand=Attribute("Acme", self.own.confidence))


    class Looker:
        needs_image = True

        def analyze(self, request):
            warnings.warn("old-fashioned", DeprecationWarning)
            if request.image != b"not an image":
                assert Image.open(io.BytesIO(request.image)).width > 100
            return Analysis()


    class Fetcher:
        def analyze(self, request):
            with urllib.request.urlopen(request.image_url) as photo:
                assert Image.open(photo).width > 100
            return Analysis()


    @hookimpl
    def register_settings():
        yield "acme", AcmeSettings


    @hookimpl
    def register_ai_providers(settings):
        yield "acme", lambda: Acme(settings.plugin("acme", AcmeSettings))
        yield "looker", Looker
        yield "fetcher", Fetcher


    @hookimpl
    def job_finished(event):
        pass
"""
KEY = "acme-key-7f3a"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder on the import path with the package `acme` and one that is broken, for pytest as well."""
    for name, source in (("acme", ACME), ("broken", "raise RuntimeError('out of order')")):
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(source))
        about = tmp_path / f"{name}-2.0.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 2.0\n")
        (about / "entry_points.txt").write_text(f"[ai_queue_pipeline]\n{name} = {name}\n")
    with (tmp_path / "broken-2.0.dist-info/entry_points.txt").open("a") as file:
        file.write("[pytest11]\nbroken = broken\n")
    return tmp_path


def run(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own."""
    own = {"DATA_DIR": str(folder / "data"), "PYTHONPATH": str(folder), "COLUMNS": "200"}
    command = [sys.executable, str(ROOT / "run.py"), *arguments]
    return subprocess.run(
        command, cwd=folder, env=inherited() | own | environment, capture_output=True, text=True, timeout=120
    )


@pytest.fixture
def invoke(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Invoke:
    """Return a function that runs a command here: quicker, for all that does not start pytest."""
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "acme", raising=False)

    def invoke(*arguments: str, **environment: str) -> Result:
        return CliRunner().invoke(main, arguments, env={"DATA_DIR": str(folder / "data")} | environment)

    return invoke


def test_verify_holds_a_provider_to_the_suite_as_configured(folder: Path) -> None:
    """Exit code 0 when it passes; 1 when a setting makes it break the contract, which the output names, without the
    plugin's secrets.
    """
    good = run(folder, "plugins", "verify", "acme", PLUGIN_ACME_API_KEY=KEY)
    assert (good.returncode, "5 passed" in good.stdout) == (0, True), good.stdout + good.stderr
    assert "analyzes photos" in good.stderr
    assert "left out: check, routes (optional, and it has none)\n" in good.stdout
    bad = run(folder, "plugins", "verify", "acme", PLUGIN_ACME_API_KEY=KEY, PLUGIN_ACME_CONFIDENCE="93")
    assert bad.returncode == 1
    assert "found: brand has a confidence of 93, not 0 to 1" in bad.stdout and "4 failed, 1 passed" in bad.stdout
    assert KEY not in good.stdout + good.stderr + bad.stdout + bad.stderr


@pytest.mark.parametrize("name", ["looker", "fetcher"])
def test_verify_shows_providers_a_real_photo(folder: Path, name: str) -> None:
    """Those that want the bytes get them, and those that fetch the photo find it; a warning is no failure."""
    done = run(folder, "plugins", "verify", name)
    assert (done.returncode, "5 passed" in done.stdout) == (0, True), done.stdout + done.stderr


def test_verify_asks_the_configured_ai_service(folder: Path, ai_service: AiService) -> None:
    """It is the real thing that is called, not a stand-in."""
    done = run(folder, "plugins", "verify", "http", AI_SERVICE_URL=ai_service.url)
    assert done.returncode == 0, done.stdout + done.stderr
    # One, four categories and an unknown one, five at once and two of them alone, one broken.
    assert ai_service.state()["calls"] == 14
    assert "analyze was called 14 times" in done.stdout and "note:" not in done.stdout


def test_verify_leaves_nothing_in_a_storage(folder: Path) -> None:
    """It says that it writes and deletes, and afterwards all is as before."""
    (folder / "data/media/assets").mkdir(parents=True)
    (folder / "data/media/assets/original.jpg").write_bytes(b"kept")
    done = run(folder, "plugins", "verify", "local", "--kind", "storage")
    assert (done.returncode, "11 passed" in done.stdout) == (0, True), done.stdout + done.stderr
    assert "writes and deletes images under suite/" in done.stderr
    files = [path.name for path in (folder / "data/media").rglob("*") if path.is_file()]
    assert files == ["original.jpg"]


def test_verify_holds_a_notifier_to_the_suite(folder: Path) -> None:
    """A warning goes before: what it delivers, it delivers."""
    done = run(folder, "plugins", "verify", "websocket")
    assert (done.returncode, "4 passed" in done.stdout) == (0, True), done.stdout + done.stderr
    assert "delivers" in done.stderr and "for real" in done.stderr


def test_verify_without_pytest_says_how_to_get_it(folder: Path) -> None:
    """A service in production has none."""
    (folder / "pytest.py").write_text("raise ImportError('not installed')")
    done = run(folder, "plugins", "verify", "acme", PLUGIN_ACME_API_KEY=KEY)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.strip().endswith("pip install pytest")


@pytest.mark.parametrize(
    ("arguments", "environment", "words"),
    [
        (["acne"], {}, ["no plugin 'acne'", "acme, anthropic, apprise", "websocket (did you mean acme?)"]),
        (["webhok", "--kind", "notifier"], {}, ["apprise, webhook, webpush, websocket (did you mean webhook?)"]),
        (["acme", "--kind", "storage"], {}, ["no storage 'acme'", "cloudinary, cloudinary_private, local, object"]),
        (["local"], {}, ["a provider 'local' and a storage 'local'", "--kind"]),
        (["broken"], {}, ["'broken' is broken", "RuntimeError: out of order"]),
        (["looker"], {"PLUGINS_DISABLED": "acme"}, ["no plugin 'looker'"]),
        (["acme"], {"PLUGINS_DISABLED": "acme"}, ["'acme' is disabled"]),
        (["journal"], {}, ["'journal' is not active as it is set up"]),
        (["acme"], {}, ["PLUGIN_ACME_API_KEY", "required"]),
        (["acme"], {"PLUGIN_ACME_API_KYE": KEY}, ["did you mean PLUGIN_ACME_API_KEY?"]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else None,
)
def test_verify_of_what_cannot_be_verified_is_one_line(
    invoke: Invoke, arguments: list[str], environment: dict[str, str], words: list[str]
) -> None:
    """Exit code 2, what is wrong and what there is."""
    done = invoke("plugins", "verify", *arguments, **environment)
    assert (done.exit_code, done.stdout, len(done.stderr.strip().splitlines())) == (2, "", 1), done.output
    assert all(word in done.stderr for word in words), done.stderr
    assert KEY not in done.stderr


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


def test_verify_takes_observers_and_tells_programs(folder: Path) -> None:
    """By the name of the entry point; the result as JSON, progress beside it."""
    done = run(folder, "plugins", "verify", "acme", "--kind", "hook", "--json", PLUGIN_ACME_API_KEY=KEY)
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout)
    assert (told["name"], told["passed"], told["findings"], told["fault"]) == ("acme", 5, [], None)
    assert "observer accepts every event" in done.stderr


def test_verify_ends_in_time_whatever_the_plugin_does(folder: Path) -> None:
    """It is ended, and what it did last is named; meanwhile there is a word every few seconds."""
    (folder / "acme.py").write_text("import time\ntime.sleep(600)\n")
    done = run(folder, "plugins", "verify", "acme", "--timeout", "7")
    assert done.returncode == 1
    assert "found: it does not come back within 7 s (load): set a timeout" in done.stdout
    assert "... 5 s" in done.stderr


HANGING = """
    import time
    import pytest
    from pipeline.hooks import Analysis
    from pipeline.testing import AIProviderSuite

    class TestHanging(AIProviderSuite):
        call_seconds = 0.1

        @pytest.fixture
        def provider(self):
            class Hanging:
                def analyze(self, request):
                    time.sleep(600)
            return Hanging()
"""


def test_suite_ends_although_a_plugin_hangs(tmp_path: Path) -> None:
    """A thread that never returns fails its test and keeps neither the next nor the end from coming."""
    (tmp_path / "test_hanging.py").write_text(textwrap.dedent(HANGING))
    # --tb=native: see authoring.py.
    options = ["-q", "--tb=native", "-p", "no:tornado", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", *options, str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1].startswith("4 failed, 1 passed, 3 skipped in"), done.stdout[-2000:]
