"""docs/plugins.md is correct: its code runs, its reference is generated from the code, and all that it names exists."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from pipeline.cli import COMMANDS
from pipeline.hooks.sources import ENTRY_POINT_GROUP
from pipeline.metrics import Metrics
from pipeline.commands.reference import ERRORS, hook_users, reference_lines
from pipeline.settings import Settings
from tests.requirements import program
from tests.service import ROOT, inherited

PAGE = (ROOT / "docs/plugins.md").read_text()
PROSE, _, REFERENCE = PAGE.partition("<!-- reference -->\n")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", PROSE, re.DOTALL)
MODULES = {text.split("\n")[0].removeprefix("# "): text for language, text in BLOCKS if language == "python"}


def test_reference_is_what_the_command_prints() -> None:
    """The reference is the output of `run.py plugins reference`. To repair it, put the output between the marks."""
    assert REFERENCE == "\n".join(reference_lines()) + "\n<!-- end of reference -->\n"


@pytest.mark.fault("P10")
def test_reference_shows_how_each_method_is_written() -> None:
    """Awaited methods have `async`, keyword arguments stand after a `*`; functions of a module are listed too."""
    assert "##### `async def put_first(key: str, value: Any, *, user_id: str = '') -> Any`" in REFERENCE
    assert "##### `async def publish(room: str, event: Mapping[str, Any]) -> None`" in REFERENCE
    starting = REFERENCE.partition("#### `Starting`")[2].partition("\n#### ")[0]
    assert "a module with observers or filters may have them as\nfunctions of the same names" in starting
    for method in ("start(context: Context)", "check()", "close()"):
        assert f"##### `def or async def {method} -> None`" in starting


def test_reference_names_every_hook_protocol_and_field() -> None:
    """The reference has every hook, protocol and data class of pipeline.hooks."""
    first = REFERENCE.partition("### What a plugin is")[0]
    hooks = re.findall(r"^#### `(?:def|def or async def) (\w+)\(", first, re.MULTILINE)
    assert {"register_settings", "register_notifiers", "validate_upload", "job_finished"} < set(hooks)
    assert set(hooks) == {*hook_users(), "start", "check", "close"}
    assert {"AIProvider", "StorageBackend", "Notifier", "AnalyzeRequest", "JobEvent", "UploadFacts"} < set(
        re.findall(r"^#### `(\w+)`", REFERENCE, re.MULTILINE)
    )
    assert "##### `def or async def analyze(request: AnalyzeRequest) -> Analysis`" in REFERENCE
    assert "##### `async def publish(room: str, event: Mapping[str, Any]) -> None`" in REFERENCE
    assert "\ntimeout_seconds: float\nimage: bytes | None = None\n" in REFERENCE


@pytest.mark.fault("P10")
def test_reference_has_every_error_that_an_author_raises() -> None:
    """Each error has its arguments; the reference also has the functions that a module may have besides its hooks."""
    for error in ERRORS:
        assert f"#### `{error.__name__}(message: str" in REFERENCE or f"#### `{error.__name__}(reason: str" in REFERENCE
    arguments = "message: str, *, retry_after_seconds: float | None = None, spends_attempt: bool | None = None"
    assert f"#### `RetryableJobError({arguments}, max_attempts: int | None = None, usage: object | None = None)`" in (
        REFERENCE
    )
    assert "#### `def or async def start(context: Context) -> None`" in REFERENCE


def test_every_hook_has_a_built_in_user() -> None:
    """A built-in plugin implements each hook, so that each hook is tested; only `register_routes` has none.

    `webpush` has its routes as a method instead.
    """
    assert [hook for hook, users in hook_users().items() if not users] == ["register_routes"]


class AcmeHandler(BaseHTTPRequestHandler):
    """An Acme service that finds one brand."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200 if self.headers["Authorization"] == "Bearer a key" else 401)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(b'{"brand": "Acme", "certainty": 0.9}')

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def acme_url() -> Iterator[str]:
    """The URL of a running Acme service."""
    with HTTPServer(("127.0.0.1", 0), AcmeHandler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A folder with the files of the page, installed as pip would do it, with the entry points of the page."""
    for name, source in MODULES.items():
        (tmp_path / name).write_text(source)
    (toml,) = (text for language, text in BLOCKS if language == "toml")
    project = tomllib.loads(toml)
    assert [f"{name}.py" for name in project["tool"]["setuptools"]["py-modules"]] == ["acme.py"]
    about = tmp_path / "acme_vision-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-vision\nVersion: 1.0\n")
    points = project["project"]["entry-points"][ENTRY_POINT_GROUP]
    points |= {name: name for name in ("bell", "post", "small", "tint")} | {"night": "night:counted"}
    lines = [f"{name} = {module}" for name, module in points.items()]
    (about / "entry_points.txt").write_text("\n".join([f"[{ENTRY_POINT_GROUP}]", *lines]))
    return tmp_path


def run(package: Path, *arguments: str, **environment: str) -> str:
    """Return the output of a command, which must end with exit code 0."""
    own = {"PYTHONPATH": f"{package}:{ROOT}", "COLUMNS": "200", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=package,
        env=inherited() | own | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_provider_of_the_page_works(package: Path, acme_url: str) -> None:
    """The tests of the provider pass, `plugins` lists it with the other examples, and `plugins verify` accepts it."""
    assert "5 passed" in run(package, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_acme.py")
    acme = {"PLUGIN_ACME_URL": acme_url, "PLUGIN_ACME_API_KEY": "a key", "DATA_DIR": str(package / "data")}
    listed = run(package, str(ROOT / "run.py"), "plugins", AI_PROVIDER="acme", **acme)
    found = re.findall(r"^(\w+) +(\w+) +acme-vision +1\.0 +(\w+)", listed, re.MULTILINE)
    assert found == [
        ("night", "hook", "selected"),
        ("small", "hook", "selected"),
        ("bell", "notifier", "available"),
        ("post", "notifier", "available"),
        ("acme", "provider", "selected"),
        ("tint", "provider", "available"),
    ]
    assert "5 passed" in run(package, str(ROOT / "run.py"), "plugins", "verify", "acme", **acme)


def test_sandboxed_provider_of_the_page_works(package: Path) -> None:
    """`plugins verify` accepts the example with its settings, in real child processes."""
    settings = {"AI_PROVIDER": "tint", "DATA_DIR": str(package / "data")}
    assert "5 passed" in run(package, str(ROOT / "run.py"), "plugins", "verify", "tint", **settings)


@pytest.mark.parametrize("text", [text for language, text in BLOCKS if language == "bash"])
def test_commands_of_the_page_exist(text: str) -> None:
    """The shell accepts the syntax of each command, and our commands have the names on the page."""
    subprocess.run([program("bash"), "-n", "-c", text], check=True)
    assert set(re.findall(r"\bpipeline (\w+)", text)) <= set(COMMANDS)


def test_page_names_only_existing_things() -> None:
    """Each setting, metric, log event and file on the page exists, so a renamed one is renamed here too."""
    names = set(re.findall(r"`([A-Z][A-Z_]+[A-Z])`", PROSE)) - {"API_VERSION"}
    settings = {name.upper() for name in Settings.model_fields}
    assert {name for name in names if not name.startswith("PLUGIN_")} <= settings
    metrics = Metrics().render()[0].decode()
    for name in re.findall(r"`(pipeline_\w+)`", PROSE):
        assert f"# TYPE {name} " in metrics, name
    sources = "".join(path.read_text() for path in (ROOT / "pipeline").rglob("*.py"))
    (events,) = re.findall(r"Log events: (.*?)\.", PROSE, re.DOTALL)
    for event in re.findall(r"`(\w+)`", events):
        assert f'"{event}"' in sources, event
    for target in re.findall(r"\]\((\.\./[^)#]+)\)", PROSE):
        assert (ROOT / "docs" / target).exists(), target
