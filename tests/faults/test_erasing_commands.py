"""The commands `assets` and `users` against a service."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.factories import make_token
from tests.faults.erasing_calls import GONE, SETTINGS, fail, upload
from tests.service import ROOT, AiService, Service


@pytest.fixture
def service(tmp_path: Path, ai_service: AiService, redis_url: str) -> Iterator[Service]:
    """A service with a Redis of the test and a receiver that does not run."""
    with Service(tmp_path, ai_service.url, **SETTINGS, REDIS_URL=redis_url) as service:
        yield service


def command_of(service: Service) -> Callable[..., str]:
    """Return a function that runs a command of the service and returns its output.

    It returns standard error where the exit code is not 0.
    """

    def run(*arguments: str, code: int = 0) -> str:
        environment = {**service.environment, "PIPELINE_URL": service.url, "COLUMNS": "200"}
        ended = subprocess.run([sys.executable, "run.py", *arguments], cwd=ROOT, env=environment, capture_output=True)
        assert ended.returncode == code, ended
        return (ended.stdout if code == 0 else ended.stderr).decode()

    return run


@pytest.mark.fault("O9")
def test_commands_show_list_and_remove(service: Service, ai_service: AiService) -> None:
    """`assets` and `users` print tables or JSON, and one line with exit code 1 for an error."""
    failed = fail(service, ai_service, GONE)
    done = upload(service, GONE, category="lego")
    service.wait_log("job_completed", assetId=done)
    run = command_of(service)
    assert "No photo" in run("assets", "ls", "--user", GONE)
    lines = run("assets", "ls", "--user", GONE, "--category", "lego", "--json").splitlines()
    assert [json.loads(line)["id"] for line in lines] == [done]
    (newest,) = run("assets", "ls", "--user", GONE, "--limit", "1", "--json").splitlines()
    assert json.loads(newest)["id"] == done
    assert "--user" in run("assets", "ls", code=2)
    own = make_token(GONE)
    assert failed in run("assets", "ls", "--token", own, "--status", "failed")
    assert json.loads(run("assets", "show", failed))["status"] == "failed"
    assert "runs again as ai-processing:" in run("assets", "retry", failed)
    service.wait_log("job_completed", assetId=failed)
    assert run("assets", "retry", done, code=1) == (
        "Error: Only failed or partial assets can be retried, this one is active\n"
    )
    assert "removed" in run("assets", "rm", failed, "--yes")
    assert run("assets", "rm", failed, "--yes", code=1).splitlines() == [
        f"{failed}: Asset not found", "Error: 1 of 1 refused"
    ]
    assert "1 (1 active)" in run("users", "show", GONE)
    assert json.loads(run("users", "show", GONE, "--json"))["assets"]["active"] == 1
    assert run("users", "show", "no such user", code=1).startswith("Error: ")
    assert run("users", "erase", GONE, "--yes").startswith("Erased: 1 assets")
    assert json.loads(run("users", "show", GONE, "--json"))["assets"]["total"] == 0
