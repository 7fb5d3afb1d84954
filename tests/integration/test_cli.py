"""The command line as a user or a script calls it: its output and its exit codes."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.demo import pictures
from tests.factories import SECRET, make_image, make_token
from tests.requirements import require
from tests.service import ROOT, AiService, Service
from tests.toxiproxy import free_port

Done = subprocess.CompletedProcess[str]
Run = Callable[..., Done]


@pytest.fixture
def environment(tmp_path: Path, ai_service: AiService) -> dict[str, str]:
    return Service(tmp_path / "data", ai_service.url, COLUMNS="200").environment


@pytest.fixture
def run(environment: dict[str, str]) -> Iterator[Run]:
    """Return a function that runs `run.py` with arguments; at the end, a service that a demo left running is killed."""

    def run(*arguments: str, **more: str) -> Done:
        command = [sys.executable, "run.py", *arguments]
        return subprocess.run(command, cwd=ROOT, env=environment | more, capture_output=True, text=True, timeout=120)

    yield run
    service_file = Path(environment["DATA_DIR"]) / "service.json"
    if service_file.exists():
        os.kill(json.loads(service_file.read_text())["pid"], signal.SIGKILL)


def test_demo_shows_three_results_and_stops_on_request(run: Run, environment: dict[str, str]) -> None:
    """The first demo starts a service that keeps running, other commands find it, and --exit ends it."""
    demo = run("demo")
    assert demo.returncode == 0, demo.stderr
    assert demo.stdout.count('"event": "asset_processed"') == 3
    address = re.findall(r"export PIPELINE_URL=(\S+)", demo.stdout)[0]
    token = re.findall(r"export PIPELINE_TOKEN=(\S+)", demo.stdout)[0]
    links = re.findall(rf"^ *(photos|console): {address}/(console)?#token=\S+$", demo.stdout, re.MULTILINE)
    assert [name for name, _ in links] == ["photos", "console"]
    public = run("demo", PUBLIC_URL="https://photos.example.com").stdout
    assert "#token" not in public and "paste the token below" in public
    refused = run("link", PUBLIC_URL="https://photos.example.com")
    assert refused.returncode == 2 and "run.py token --sub me" in refused.stderr
    picture = str(pictures()[0][0])
    assert run("submit", picture, "--category", "camera", "--watch").returncode == 0
    elsewhere = {"DATA_DIR": environment["DATA_DIR"] + "-2", "PIPELINE_URL": address, "PIPELINE_TOKEN": token}
    assert run("submit", picture, "--category", "camera", **elsewhere).returncode == 0
    stopped = run("demo", "--exit")
    assert (stopped.returncode, stopped.stdout.strip()) == (0, "The service has stopped.")
    assert run("submit", picture, "--category", "camera").returncode == 1


def test_demo_with_exit_ends_its_service(run: Run, environment: dict[str, str]) -> None:
    """Without a running service, `demo --exit` starts one, shows the results and ends it."""
    demo = run("demo", "--exit")
    assert demo.returncode == 0, demo.stderr
    assert demo.stdout.count('"event": "asset_processed"') == 3
    assert not (Path(environment["DATA_DIR"]) / "service.json").exists()


@pytest.mark.fault("O2")
def test_demo_explains_the_partial_result_of_the_offline_ai(run: Run) -> None:
    """Without settings the embedded AI reads two of the pictures, and one line explains why the third is partial."""
    require(importlib.util.find_spec("rapidocr") is not None, "needs the extra [local]")
    demo = run("demo", "--exit", AI_SERVICE_URL="")
    assert demo.returncode == 0, demo.stderr
    assert all(f'"value": "{brand}"' in demo.stdout for brand in ("Canon", "LEGO"))
    assert re.findall(r"(\S+) is (\w+) after", demo.stdout) == [
        ("camera.jpg", "active"), ("lego.jpg", "active"), ("bare-sneaker.jpg", "partial"),
    ]
    assert "A photo without lettering is `partial`: brand and model stay unknown." in demo.stdout


def test_demo_says_what_is_missing_when_it_cannot_start(run: Run, tmp_path: Path) -> None:
    """Without the packages of [local] and without an AI service, one line names both ways to repair it."""
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['rapidocr'] = None")
    demo = run("demo", AI_SERVICE_URL="", PYTHONPATH=str(tmp_path))
    assert demo.returncode == 2
    assert len(demo.stderr.strip().splitlines()) == 1
    assert "[local]" in demo.stderr and "AI_SERVICE_URL" in demo.stderr


def test_demo_prints_why_its_photos_wait(run: Run, environment: dict[str, str], tmp_path: Path) -> None:
    """When an installed package cannot be imported because a system library is missing, the demo prints the error."""
    require(importlib.util.find_spec("rapidocr") is not None, "needs the extra [local]")
    (tmp_path / "rapidocr.py").write_text("raise ImportError('libGL.so.1: cannot open shared object file')")
    settings = environment | {"AI_SERVICE_URL": "", "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "run.py", "demo"]
    with subprocess.Popen(command, cwd=ROOT, env=settings, stderr=subprocess.PIPE, text=True) as demo:
        assert demo.stderr is not None
        printed = next(line for line in demo.stderr if line.startswith("Still waiting"))
        demo.kill()
    run("demo", "--exit")
    assert printed.startswith("Still waiting: provider local: analyze: Photos cannot be read at the moment")
    assert "ImportError: libGL.so.1: cannot open shared object file" in printed


def test_submit_prints_the_reason_of_a_refusal(run: Run, environment: dict[str, str], tmp_path: Path) -> None:
    """A file that is no image gives exit code 1 and the service's reason; the good file is still processed."""
    (tmp_path / "good.jpg").write_bytes(make_image())
    (tmp_path / "bad.jpg").write_text("no image")
    with Service(Path(environment["DATA_DIR"]), environment["AI_SERVICE_URL"]):
        done = run("submit", str(tmp_path / "bad.jpg"), str(tmp_path / "good.jpg"), "--category", "lego", "--watch")
    assert done.returncode == 1
    assert "bad.jpg: Invalid image" in done.stderr and re.search(r"^[0-9a-f]{24} active .*good.jpg$", done.stdout)


def test_submit_fails_when_the_asset_fails(run: Run, environment: dict[str, str], ai_service: AiService) -> None:
    """The exit code is 1 when the AI service refused the photo."""
    ai_service.configure(replies=[{"status": 422}])
    with Service(Path(environment["DATA_DIR"]), ai_service.url):
        assert run("submit", str(pictures()[0][0]), "--category", "camera", "--watch").returncode == 1


def test_watch_prints_one_json_line_per_event(environment: dict[str, str]) -> None:
    """`watch` prints events until Ctrl-C, and then its exit code is 0."""
    with Service(Path(environment["DATA_DIR"]), environment["AI_SERVICE_URL"]) as service:
        watching = subprocess.Popen(
            [sys.executable, "run.py", "watch"], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
        )
        assert watching.stdout is not None
        service.wait_log("socket_opened", userId="demo")
        assert service.upload("demo").status_code == 202
        assert json.loads(watching.stdout.readline())["status"] == "active"
        watching.send_signal(signal.SIGINT)
        assert watching.wait(30) == 0
        watching.stdout.close()


def test_watch_continues_after_a_restart(environment: dict[str, str]) -> None:
    """`watch` prints that it lost the connection and that it is back. A refused token ends it with the reason."""
    with Service(Path(environment["DATA_DIR"]), environment["AI_SERVICE_URL"], PORT=str(free_port())) as service:
        command = [sys.executable, "run.py", "watch"]
        watching = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert watching.stdout is not None
        try:
            service.wait_log("socket_opened", userId="demo")
            service.kill()
            service.start()
            service.wait_log("socket_opened", userId="demo")
            assert service.upload("demo").status_code == 202
            assert json.loads(watching.stdout.readline())["status"] == "active"
            service.stop()
            service.environment["JWT_SECRET"] = "another secret of thirty-two bytes or more"
            service.start()
            watching.wait(60)
        finally:
            watching.kill()
            _, printed = watching.communicate()
    assert watching.returncode == 1
    listening, lost, back, lost_again, error = printed.splitlines()
    assert listening == "Listening in user:demo" and back == "Connected again"
    assert lost.endswith("trying again") and lost_again == "The service shuts down; trying again"
    assert error == "Error: The service closed the connection: Invalid token (4403)"


@pytest.fixture
def refused(environment: dict[str, str], ai_service: AiService) -> Iterator[list[str]]:
    """A running service with three dead letters; their job ids, newest first."""
    ai_service.configure(replies=[{"status": 400, "body": {"error": {"message": "No [photo]"}}, "times": 3}])
    with Service(Path(environment["DATA_DIR"]), ai_service.url) as service:
        ids = []
        for number in range(1, 4):
            ids.insert(0, service.upload().json()["data"]["jobId"])
            service.wait_status(failed=number)
        yield ids


def test_failed_lists_dead_letters(run: Run, refused: list[str]) -> None:
    """Each dead letter has a line in a table, also in a narrow window, or a JSON line, newest first, up to --limit."""
    table = run("failed", "ls").stdout
    assert [word for word in table.split() if word.startswith("ai-processing:")] == refused
    assert table.count("No [photo]") == 3 and refused[0].removeprefix("ai-processing:") in table
    short = run("failed", "ls", "--limit", "2")
    assert (short.stdout.count("No [photo]"), short.stderr.strip()) == (2, "There may be more; --all shows all")
    assert run("failed", "ls", "--limit", "1", "--all").stdout.count("No [photo]") == 3
    lines = [json.loads(line) for line in run("failed", "ls", "--json").stdout.splitlines()]
    assert [line["jobId"] for line in lines] == refused and lines[0]["reason"] == "No [photo]"
    narrow = run("failed", "ls", COLUMNS="20").stdout
    assert narrow == table
    assert [word for word in narrow.split() if word.startswith("ai-processing:")] == refused


def test_failed_retry_retries_named_dead_letters_or_all(run: Run, refused: list[str], ai_service: AiService) -> None:
    """The exit code is 1 when a named one is refused; the others are still retried; --all retries the rest."""
    some = run("failed", "retry", refused[1], "ai-processing:" + "0" * 24, "x/../y")
    assert some.returncode == 1
    assert f"{refused[1]}: runs again as ai-processing:" in some.stdout
    assert "There is no dead letter of that id" in some.stderr
    assert "Must be ai-processing or notifications, a colon and 24 hex digits" in some.stderr
    assert "Error: 2 of 3 refused" in some.stderr
    done = run("failed", "retry", "--all")
    assert (done.returncode, done.stdout.strip()) == (0, "2 run again, 0 skipped")
    assert run("failed", "ls").stdout.strip() == "There are no dead letters."
    assert ai_service.state()["calls"] >= 4


def test_failed_rm_asks_before_it_removes_all(run: Run, refused: list[str]) -> None:
    """A dead letter named by its id is removed at once; all are removed only after a confirmation."""
    one = run("failed", "rm", refused[0])
    assert (one.returncode, one.stdout.strip()) == (0, f"{refused[0]}: removed")
    assert run("failed", "rm", refused[0]).returncode == 1
    unanswered = run("failed", "rm", "--all")
    assert (unanswered.returncode, "Remove all dead letters?" in unanswered.stdout) == (1, True)
    assert len(run("failed", "ls", "--json").stdout.splitlines()) == 2
    assert run("failed", "rm", "--all", "--yes").stdout.strip() == "2 removed"
    assert run("failed", "ls", "--json").stdout == ""


def test_queue_pauses_and_resumes(run: Run, environment: dict[str, str]) -> None:
    """The state is printed as JSON, and a user's token in PIPELINE_TOKEN is not used for these commands.

    The audit list names each change and its author. While the queue is paused, `queue users` names the users with
    waiting jobs.
    """
    with Service(Path(environment["DATA_DIR"]), environment["AI_SERVICE_URL"]) as service:
        assert run("queue", "pause", PIPELINE_TOKEN="a user's").stdout.strip() == "The queue is paused."
        assert json.loads(run("queue", "status").stdout)["paused"] is True
        service.upload("waits-1")
        assert re.search(r"waits-1 +1 +0 +100%", run("queue", "users").stdout)
        assert run("queue", "resume").stdout.strip() == "The queue is running."
        assert json.loads(run("queue", "status").stdout)["paused"] is False
        refused = run("queue", "pause", PIPELINE_ADMIN_TOKEN=make_token())
        assert (refused.returncode, refused.stderr.strip()) == (1, "Error: Only for admins")
        entries = [json.loads(line) for line in run("audit", "--json").stdout.splitlines()]
        assert [entry["action"] for entry in entries] == ["resume queue", "pause queue"]
        shown = run("audit", "--who", entries[0]["who"], "--limit", "2")
        assert re.search(r"pause queue +ai-processing", shown.stdout) and "There may be more" in shown.stderr


def test_queue_top_and_processes_show_all_processes(run: Run, environment: dict[str, str]) -> None:
    """Both commands print text or JSON, also with a token of a reader. Only an admin drains a process, at once."""
    reader = {"PIPELINE_ADMIN_TOKEN": make_token(role="operator-read")}
    with Service(Path(environment["DATA_DIR"]), environment["AI_SERVICE_URL"]) as service:
        while not run("processes", "--json").stdout:
            pass  # The process publishes its record soon after it begins to serve.
        top = run("queue", "top", "--once", **reader)
        assert re.search(r"processes 1  slots 0/5\nai-processing  waiting 0  delayed 0  active 0 ", top.stdout), top
        assert json.loads(run("queue", "top", "--once", "--json").stdout)["redis"]["isEvictionSafe"] is True
        (process,) = map(json.loads, run("processes", "--json", **reader).stdout.splitlines())
        assert process["pid"] == service.pid
        refused = run("processes", "drain", process["id"], **reader)
        assert refused.returncode == 1 and "Only for admins" in refused.stderr
        drained = run("processes", "drain", process["id"], "absent")
        assert (drained.returncode, drained.stdout) == (1, f"{process['id']}: claims no more jobs\n")
        assert "absent: No process of that id is alive" in drained.stderr
        table = run("processes").stdout
        assert process["id"] in table and "draining" in table and "0/5" in table
        assert run("processes", "resume", process["id"]).stdout.strip() == f"{process['id']}: claims jobs again"
        assert "running" in run("processes").stdout


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["submit", "setup.cfg", "--category", "shoe"], 2, "shoe"),
        (["submit", "missing.jpg", "--category", "lego"], 2, "missing.jpg"),
        (["submit", "setup.cfg", "--category", "lego"], 1, "Cannot reach"),
        (["watch", "--url", "http://127.0.0.1:1"], 1, "Cannot reach"),
        (["token", "--sub", "a b"], 2, "user id"),
        (["failed", "ls"], 1, "Cannot reach"),
        (["failed", "retry"], 2, "or use --all"),
        (["failed", "rm", "ai-processing:1", "--all"], 2, "or use --all"),
        (["queue", "top", "--once"], 1, "Cannot reach"),
        (["processes"], 1, "Cannot reach"),
        (["unknown"], 2, "unknown"),
    ],
)
def test_wrong_use_prints_an_error_without_a_traceback(run: Run, arguments: list[str], code: int, words: str) -> None:
    """The exit code is 2 for wrong use and 1 for a failure; the error has no traceback."""
    done = run(*arguments, PORT="1")
    assert (done.returncode, "Traceback" in done.stderr) == (code, False)
    assert words in done.stderr


def test_settings_and_plugins_are_listed_without_secrets(run: Run) -> None:
    """Each setting is listed with its current value and each plugin with its state, without secrets."""
    settings = run("settings", CONCURRENCY="7")
    assert "CONCURRENCY" in settings.stdout and " 7 " in settings.stdout
    assert SECRET not in settings.stdout
    plugins = run("plugins").stdout
    assert all(name in plugins for name in ("http", "local", "cloudinary", "websocket", "selected", "available"))
    assert "broken" not in plugins
