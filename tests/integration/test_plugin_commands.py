"""`plugins verify` on installed plugins, and the suite of pytest on a plugin that hangs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.integration.acme_package import KEY, Invoke, folder, invoke, run
from tests.service import ROOT, AiService

__all__ = ["folder", "invoke"]  # fixtures


def test_verify_tests_a_provider_with_its_settings(folder: Path) -> None:
    """The exit code is 0 when the provider passes, and 1 when a setting makes it break the contract.

    The output names the fault and shows no secret of the plugin.
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
    """A provider that needs the bytes gets them; one that fetches the photo finds it. A warning is no failure."""
    done = run(folder, "plugins", "verify", name)
    assert (done.returncode, "5 passed" in done.stdout) == (0, True), done.stdout + done.stderr


def test_verify_calls_the_configured_ai_service(folder: Path, ai_service: AiService) -> None:
    """`verify` calls the AI service of the settings and no fake."""
    done = run(folder, "plugins", "verify", "http", AI_SERVICE_URL=ai_service.url)
    assert done.returncode == 0, done.stdout + done.stderr
    # One photo, four categories, an unknown category, five photos at once, two of them alone, one broken photo.
    assert ai_service.state()["calls"] == 14
    assert "analyze was called 14 times" in done.stdout and "note:" not in done.stdout


def test_verify_leaves_nothing_in_a_storage(folder: Path) -> None:
    """`verify` announces that it writes and deletes images. Afterwards the storage has its old files only."""
    (folder / "data/media/assets").mkdir(parents=True)
    (folder / "data/media/assets/original.jpg").write_bytes(b"older")
    done = run(folder, "plugins", "verify", "local", "--kind", "storage")
    assert (done.returncode, "11 passed" in done.stdout) == (0, True), done.stdout + done.stderr
    assert "writes and deletes images under suite/" in done.stderr
    files = [path.name for path in (folder / "data/media").rglob("*") if path.is_file()]
    assert files == ["original.jpg"]


def test_verify_tests_a_notifier_after_a_warning(folder: Path) -> None:
    """`verify` warns first that the notifier really delivers its events."""
    done = run(folder, "plugins", "verify", "websocket")
    assert (done.returncode, "4 passed" in done.stdout) == (0, True), done.stdout + done.stderr
    assert "delivers" in done.stderr and "for real" in done.stderr


def test_verify_without_pytest_names_the_command_that_installs_it(folder: Path) -> None:
    """A service in production has no pytest."""
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
def test_verify_that_cannot_start_prints_one_line(
    invoke: Invoke, arguments: list[str], environment: dict[str, str], words: list[str]
) -> None:
    """The exit code is 2. The line names what is wrong and the plugins that exist."""
    done = invoke("plugins", "verify", *arguments, **environment)
    assert (done.exit_code, done.stdout, len(done.stderr.strip().splitlines())) == (2, "", 1), done.output
    assert all(word in done.stderr for word in words), done.stderr
    assert KEY not in done.stderr


def test_verify_of_an_observer_prints_json(folder: Path) -> None:
    """An observer has the name of its entry point. The result is JSON on stdout, the progress is on stderr."""
    done = run(folder, "plugins", "verify", "acme", "--kind", "hook", "--json", PLUGIN_ACME_API_KEY=KEY)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout)
    assert (result["name"], result["passed"], result["findings"], result["fault"]) == ("acme", 5, [], None)
    assert "observer accepts every event" in done.stderr


def test_verify_ends_a_plugin_that_hangs(folder: Path) -> None:
    """The finding names the last step of the plugin. Until then `verify` prints a line every few seconds."""
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
    """A thread that never returns fails its test. The next tests run, and pytest ends."""
    (tmp_path / "test_hanging.py").write_text(textwrap.dedent(HANGING))
    # --tb=native: see authoring.py.
    options = ["-q", "--tb=native", "-p", "no:tornado", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", *options, str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1].startswith("4 failed, 1 passed, 3 skipped in"), done.stdout[-2000:]
