"""The command `submit` in scripts and on a terminal: how long it waits, its exit codes, and what it prints."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from tests.factories import make_image
from tests.service import ROOT, AiService, Service

Submit = Callable[..., subprocess.Popen[str]]
HOSTILE = ":smile: [red]x\x1b[31m\u202e\n" + "long" * 40 + ".jpg"


@pytest.fixture
def service(tmp_path: Path, ai_service: AiService) -> Iterator[Service]:
    with Service(tmp_path / "data", ai_service.url, CONCURRENCY="1", BACKOFF_MS="1") as service:
        yield service


@pytest.fixture
def photos(tmp_path: Path) -> Sequence[str]:
    """Five photos; the first has a hostile name."""
    paths = [tmp_path / name for name in (HOSTILE, "b.jpg", "c.jpg", "d.jpg", "e.jpg")]
    for path in paths:
        path.write_bytes(make_image())
    return [*map(str, paths)]


@pytest.fixture
def submit(service: Service) -> Submit:
    """A function that starts `submit` with a window of 20 columns."""

    def submit(*arguments: str, **streams: int) -> subprocess.Popen[str]:
        command = [sys.executable, "run.py", "submit", "--category", "lego", *arguments]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | streams
        return subprocess.Popen(command, cwd=ROOT, env=service.environment | {"COLUMNS": "20"}, text=True, **pipes)

    return submit


def done(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Wait for the process, and return its exit code and what it printed."""
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def shown(path: str) -> str:
    """Return the path as `submit` prints it: without control characters."""
    return re.sub("\x1b\\[31m|\u202e", "", path).replace("\n", " ")


@pytest.mark.fault("O3")
def test_submit_waits_while_there_is_progress(submit: Submit, photos: Sequence[str], ai_service: AiService) -> None:
    """`--patience` limits the time without progress, so the five photos together may take longer.

    Each photo is one line: id, status, file.
    """
    ai_service.configure(delay_ms=1300)
    code, out, err = done(submit("--watch", "--patience", "5", *photos))
    assert code == 0, err
    printed = sorted(line.split(" ", 2)[1:] for line in out.splitlines())
    assert printed == sorted(["active", shown(each)] for each in photos)
    assert all(re.fullmatch("[0-9a-f]{24}", line.split(" ")[0]) for line in out.splitlines())


@pytest.mark.fault("O3")
def test_submit_has_an_exit_code_for_each_outcome(submit: Submit, photos: Sequence[str], ai_service: AiService) -> None:
    """The exit code is 3 if a photo is not finished in time, 1 if one was also refused, and 130 after Ctrl-C.

    Each time the unfinished photos are printed, and how to see their results later.
    """
    ai_service.configure(paused=True)
    code, out, err = done(submit("--watch", "--patience", "1", *photos[:2]))
    ids = [line.split(" ")[0] for line in out.splitlines()]
    assert code == 3 and [line.split(" ")[1] for line in out.splitlines()] == ["processing"] * 2, err
    assert "No sign of progress within 1 s; 2 of 2 photos are not finished" in err
    assert re.search(r"^To see their results: .*run.py watch --since 2\S+Z$", err, re.MULTILINE)
    assert f"Their ids: {' '.join(ids)}\n" in err
    code, out, err = done(submit("--watch", "--json", "--patience", "1", photos[1], "setup.cfg"))
    events = [json.loads(line) for line in out.splitlines()]
    assert (code, [event["event"] for event in events]) == (1, ["accepted", "refused", "unfinished"])
    assert events[1]["file"] == "setup.cfg" and events[0]["assetId"] == events[2]["assetId"]
    interrupted = submit("--watch", photos[2])
    assert interrupted.stderr is not None
    assert next(line for line in interrupted.stderr if "accepted as" in line)
    interrupted.send_signal(signal.SIGINT)
    code, out, err = done(interrupted)
    assert (code, out.split(" ")[1]) == (130, "processing") and "Stopped: Interrupted; 1 of 1 photos" in err
    ai_service.configure(paused=False)


@pytest.mark.fault("O3")
def test_submit_alone_prints_ids(submit: Submit, photos: Sequence[str], service: Service) -> None:
    """Without `--watch` the ids are printed, one on each line; `watch --since` shows their results later."""
    code, out, err = done(submit(*photos))
    assert (code, err) == (0, "") and re.fullmatch("([0-9a-f]{24}\n){5}", out)
    first = service.asset(out.split()[0], "demo")["createdAt"]
    command = [sys.executable, "run.py", "watch", "--since", first]
    with subprocess.Popen(command, cwd=ROOT, env=service.environment, stdout=subprocess.PIPE, text=True) as watching:
        assert watching.stdout is not None
        watched = {json.loads(watching.stdout.readline())["assetId"] for _ in range(5)}
        watching.send_signal(signal.SIGINT)
        assert watching.wait(30) == 0
    assert watched == set(out.split())


@pytest.mark.fault("O6")
def test_submit_prints_file_names_literally_on_a_terminal(submit: Submit, photos: Sequence[str]) -> None:
    """A file name makes no emoji, no markup and no terminal command, and a narrow window breaks no line."""
    terminal, inside = pty.openpty()
    process = submit("--watch", photos[0], stdout=inside, stderr=inside)
    os.close(inside)
    chunks = []
    with suppress(OSError):  # a terminal ends with this error
        while chunk := os.read(terminal, 65536):
            chunks.append(chunk)
    os.close(terminal)
    assert process.wait(60) == 0
    text = b"".join(chunks).decode()
    name = shown(Path(photos[0]).name)
    assert re.search(re.escape(name) + ": accepted as [0-9a-f]{24}\r\n", text), text
    assert f"{name} is active after " in text and "\x1b[31m\u202e" not in text
