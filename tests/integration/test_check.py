"""`run.py check` as an operator runs it before a deploy: real processes with good, broken and hostile settings."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient

from pipeline.commands.checks.findings import Finding, Mark, Masker
from pipeline.settings import Settings
from tests.factories import SECRET
from tests.packages import install
from tests.requirements import require
from tests.redis_server import RedisServer
from tests.service import ROOT, AiService, Service
from tests.wrong_clock import WrongClock

Done = subprocess.CompletedProcess[str]
Run = Callable[..., Done]
Look = Callable[..., dict[str, dict[str, Any]]]
AWAY = "127.0.0.1:1"


@pytest.fixture
def run(tmp_path: Path, ai_service: AiService) -> Run:
    """Return a function that runs `run.py check` with arguments and with settings in addition to good ones."""

    def run(*arguments: str, **more: str) -> Done:
        environment = Service(tmp_path / "data", ai_service.url, PLUGINS_SAFE_MODE="1").environment | more
        command = [sys.executable, "run.py", "check", *arguments]
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)

    return run


@pytest.fixture
def look(run: Run) -> Look:
    """Return a function that returns the findings that are not ok, by their subject, and checks the exit code."""

    def look(*arguments: str, **more: str) -> dict[str, dict[str, Any]]:
        done = run("--json", *arguments, **more)
        findings = [json.loads(line) for line in done.stdout.splitlines()]
        assert done.returncode == any(each["mark"] == "failed" for each in findings), done.stderr
        assert done.stderr == "" and len(findings) >= 9  # A check that fails stops no other check.
        return {each["what"]: each for each in findings if each["mark"] != "ok"}

    return look


def test_check_of_an_embedded_installation_succeeds(run: Run, tmp_path: Path, ai_service: AiService) -> None:
    """All parts are checked; the exit code is 0. No file stays, no server is started, the AI service is not called."""
    done = run()
    assert ai_service.state()["calls"] == 0
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert all(line.startswith("ok ") for line in lines)
    tried = ("data folder", "address", "tokens", "redis", "asset store", "plugins", "sandbox", "storage")
    for what in (*tried, "provider http"):
        assert f" {what}: " in done.stdout
    assert list((tmp_path / "data" / "media").glob("*/*")) == []
    assert not (tmp_path / "data" / "redis").exists()


@pytest.mark.fault("U27")
def test_check_prints_the_memory_of_the_sandbox(run: Run) -> None:
    """The check prints the number of child processes and their memory, and loads the models of the local AI."""
    require(find_spec("rapidocr") is not None, "the extra [local] is not installed")
    done = run(AI_PROVIDER="local", SANDBOX_PROCESSES="3", PREVIEW_PROCESSES="1", DECODE_MEMORY_MB="512")
    assert done.returncode == 0, done.stdout
    assert "sandbox: 1 child process decodes photos (100 MB, and up to 512 MB for a photo), " in done.stdout
    assert "1 makes previews (40 MB, and as much for a photo), 3 read them" in done.stdout
    assert "each one photo at a time, in 1 to 2 s: 30 at once take up to 20 s (SANDBOX_PROCESSES)" in done.stdout
    assert "provider local: starts and can be reached" in done.stdout


def test_check_analyzes_a_demo_picture_with_its_option(run: Run, ai_service: AiService) -> None:
    """--analyze prints the AI's result for a demo picture, or the reason of a refusal."""
    done = run("--analyze")
    assert done.returncode == 0, done.stdout
    assert "camera.jpg: brand Nike (93%), model Air Max 90 (88%), colorway Infrared (71%)" in done.stdout
    ai_service.configure(replies=[{"status": 422}])
    refused = run("--analyze")
    assert (refused.returncode, "scripted 422" in refused.stdout) == (1, True)


def test_check_names_what_cannot_be_reached_and_no_secret(look: Look, ai_service: AiService) -> None:
    """For Redis, MongoDB and the AI service the check prints the reason and the setting to change, no password."""
    ai_service.kill()
    secret = "p4ss-word-hidden"
    found = look(
        REDIS_URL=f"redis://app:{secret}@{AWAY}/0",
        MONGODB_URI=f"mongodb://app:{secret}@{AWAY}/pipeline",
    )
    assert set(found) == {"redis", "asset store", "provider http"}
    assert "Connect call failed" in found["redis"]["detail"] and "REDIS_URL" in found["redis"]["mend"]
    assert "Connect call failed" in found["asset store"]["detail"] and "MONGODB_URI" in found["asset store"]["mend"]
    assert "AI service unavailable; " in found["provider http"]["detail"]
    assert "AI_SERVICE_URL" in found["provider http"]["mend"]
    assert secret not in str(found) and SECRET not in str(found)


@pytest.mark.fault("R7")
def test_check_names_a_wrong_clock(look: Look, redis_url: str, tmp_path: Path) -> None:
    """A difference to Redis TIME that makes a process unready fails the check."""
    environment = WrongClock(tmp_path, -60).environment
    found = look(REDIS_URL=redis_url, **environment)
    assert list(found) == ["clock"] and found["clock"]["mark"] == "failed"
    assert "60.0 s behind Redis TIME" in found["clock"]["detail"] and "NTP" in found["clock"]["mend"]


def test_check_ends_when_a_plugin_hangs_in_a_thread(run: Run, tmp_path: Path) -> None:
    """A plugin whose check blocks a thread for ever fails, and the command ends."""
    hangs = """
import asyncio, threading
from pipeline.hooks import hookimpl

class Hangs:
    async def analyze(self, request):
        raise NotImplementedError

    async def check(self):
        await asyncio.to_thread(threading.Event().wait)

@hookimpl
def register_ai_providers(settings):
    yield "hangs", Hangs
"""
    packages = install(tmp_path / "packages", hangs=hangs)
    done = run(AI_PROVIDER="hangs", PLUGINS_SAFE_MODE="0", **packages)
    assert (done.returncode, "provider hangs: no answer within" in done.stdout) == (1, True)


def test_check_of_a_redis_with_a_password(run: Run) -> None:
    """The address is printed without user and password, and a wrong password is not printed.

    A policy of Redis that may lose jobs is only a warning; a port in use is a failure.
    """
    with RedisServer("--maxmemory-policy", "allkeys-lru") as server:
        password = ["+hidden-in-here"]
        allowed: dict[str, Any] = {"categories": ["+@all"], "keys": ["*"], "channels": ["pipeline:*"]}
        server.client().acl_setuser("someone", enabled=True, passwords=password, **allowed)
        good = run(REDIS_URL=f"redis://someone:hidden-in-here@127.0.0.1:{server.port}/0", PORT=str(server.port))
        wrong = run(REDIS_URL=f"redis://someone:hidden-or-not@127.0.0.1:{server.port}/0")
    assert (good.returncode, f"at redis://127.0.0.1:{server.port}/0" in good.stdout) == (1, True)
    assert "warning  redis: maxmemory-policy is allkeys-lru" in good.stdout
    assert "set maxmemory-policy noeviction" in good.stdout
    assert f"failed   address: 127.0.0.1:{server.port}: Address already in use" in good.stdout
    assert (wrong.returncode, "invalid username-password" in wrong.stdout) == (1, True)
    assert "hidden" not in good.stdout + wrong.stdout and "someone" not in good.stdout + wrong.stdout


@pytest.mark.fault("R8")
def test_check_of_a_redis_user_without_channels(look: Look) -> None:
    """Redis 7 gives a new user no channels; the finding names the missing rule."""
    with RedisServer() as server:
        server.client().execute_command("ACL", "SETUSER", "one", "on", "nopass", "~*", "+@all", "resetchannels")
        found = look(REDIS_URL=f"redis://one:any@127.0.0.1:{server.port}/0")
    assert set(found) == {"redis"} and found["redis"]["mend"].startswith("ACL SETUSER ... &pipeline:* (")
    assert "NOPERM" in found["redis"]["detail"]


def test_check_masks_secrets_in_all_forms() -> None:
    """A driver may quote a secret in three forms: the URL, its password, or the decoded password."""
    settings = Settings(jwt_secret=SECRET, mongodb_uri="mongodb://someone:p%40ss-word@db/pipeline")
    finding = Finding(Mark.FAILED, "store", f"no {SECRET}, someone, p%40ss-word, p@ss-word", "Bearer abcdefghijkl")
    masked = Masker(settings).masked(finding)
    assert masked == Finding(Mark.FAILED, "store", "no ***, ***, ***, ***", "Bearer ***")


def test_check_does_not_mask_the_user_of_our_documents() -> None:
    """The user `pipeline` of the ACL line and of compose.yaml is no secret: prefix and paths are not masked."""
    settings = Settings(redis_url="redis://pipeline:p%40ss-word@redis/0")
    masked = Masker(settings).masked(Finding(Mark.OK, "queue", "pipeline is ours, p@ss-word"))
    assert masked.detail == "pipeline is ours, ***"


def test_check_refuses_settings_that_cannot_be_read(run: Run) -> None:
    """All faults of the settings are printed at once, no check runs, and the exit code is 2."""
    done = run(PORT="many", JOB_ATTEMPTS="0", LOG_LEVEL="loud")
    assert (done.returncode, done.stdout) == (2, "")
    assert all(name in done.stderr for name in ("PORT", "JOB_ATTEMPTS", "LOG_LEVEL"))


def test_check_names_unknown_plugins(look: Look) -> None:
    """For an unknown plugin the check prints the most similar name; the other plugins are still checked."""
    found = look(AI_PROVIDER="htpt,http", NOTIFIERS="websockets,websocket")
    assert set(found) == {"provider htpt", "notifier websockets"}
    assert "did you mean http?" in found["provider htpt"]["detail"]
    assert "did you mean websocket?" in found["notifier websockets"]["detail"]


def test_check_stores_an_image(look: Look, tmp_path: Path) -> None:
    """A media folder that accepts no files fails only the storage."""
    (tmp_path / "data").mkdir(mode=0o700)
    (tmp_path / "data" / "media").touch(mode=0o600)
    assert set(look()) == {"storage"}


@pytest.mark.fault("E28")
def test_check_of_an_unusable_data_folder(run: Run, tmp_path: Path) -> None:
    """The error names DATA_DIR, no check runs, and the exit code is 2."""
    (tmp_path / "data").write_text("a file where a folder should be")
    done = run()
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"Error: DATA_DIR: {tmp_path / 'data'} cannot be used: it is no folder\n"


@pytest.mark.fault("E28")
def test_check_names_variables_that_are_no_settings(look: Look) -> None:
    """A variable with a name similar to a setting is a warning, also when the service starts with it."""
    found = look(MONGO_URI="mongodb://db/pipeline", REDIS_HOST="redis")
    assert [each["mark"] for each in found.values()] == ["warning"]
    assert found["settings"]["detail"] == "there is no setting MONGO_URI"
    assert found["settings"]["mend"] == "did you mean MONGODB_URI?"


def test_check_warns_of_images_that_the_ai_service_cannot_fetch(look: Look) -> None:
    """A loopback address is a warning for a remote AI service; a public address without https is a failure."""
    found = look(AI_SERVICE_URL="http://ai.invalid")
    assert found["image URL"]["mark"] == "warning" and "PUBLIC_URL" in found["image URL"]["mend"]
    assert found["provider http"]["mark"] == "failed"
    assert look(HOST="0.0.0.0")["image URL"]["mark"] == "failed"


def test_check_leaves_nothing_in_mongodb(look: Look, mongo_uri: str) -> None:
    """The check deletes the asset that it creates."""
    assert look(MONGODB_URI=mongo_uri) == {}
    with MongoClient[dict[str, Any]](mongo_uri) as client:
        assert client.get_default_database()["assets"].count_documents({}) == 0


def test_check_reads_token_keys(look: Look) -> None:
    """The check reports an invalid key and a key set that cannot be read."""
    found = look(JWT_SECRET="", JWT_PUBLIC_KEY="no key")
    assert "not a PEM public key" in found["tokens"]["detail"]
    found = look(JWT_SECRET="", JWT_JWKS_URL=f"http://{AWAY}/keys")
    assert "cannot be read" in found["tokens"]["detail"]
