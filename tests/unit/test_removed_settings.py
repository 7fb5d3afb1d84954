"""Removed settings: each has no effect, does not stop the start, and its warning names the value in use."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from pipeline import watchdog
from pipeline.handlers import socket, upload
from pipeline.hooks import bound_plugin, notifiers
from pipeline.queue import attempt, leases
from pipeline.rooms import rooms
from pipeline.sandbox import cost
from pipeline.settings import REMOVED, Settings, load
from pipeline.settings import settings as derived
from pipeline.usecases import admission, notifying, reconciler, replay, result_cache
from pipeline.usecases.upload import IDEMPOTENCY_SECONDS
from tests import constants
from tests.service import ROOT

IN_USE = {
    "AI_CACHE_DAYS": result_cache.REUSE_DAYS,
    "MAX_IMAGE_PIXELS": cost.MAX_IMAGE_PIXELS,
    "UPLOAD_TIMEOUT_SECONDS": upload.BODY_SECONDS,
    "IDEMPOTENCY_SECONDS": IDEMPOTENCY_SECONDS,
    "BREAKER_FAILURES": bound_plugin.BREAKER_FAILURES,
    "BREAKER_PROBE_SECONDS": bound_plugin.BREAKER_PROBE_SECONDS,
    "NOTIFIER_SLOTS": notifiers.SLOTS,
    "NOTIFIER_ATTEMPTS": notifying.ATTEMPTS,
    "NOTIFIER_BACKOFF_MS": notifying.BACKOFF_MS,
    "MAX_STALLS": attempt.MAX_STALLS,
    "RECONCILE_SECONDS": reconciler.RECONCILE_SECONDS,
    "RECONCILE_AGE_SECONDS": reconciler.RECONCILE_AGE_SECONDS,
    "POOL_THREADS": derived.LEAST_THREADS,
    "SOCKET_AUTH_SECONDS": socket.TOKEN_SECONDS,
    "SOCKET_PING_SECONDS": socket.PING_SECONDS,
    "SOCKET_PONG_SECONDS": socket.PONG_SECONDS,
    "SOCKET_FRAME_BYTES": socket.MAX_FRAME_BYTES,
    "SOCKET_FRAMES_PER_SECOND": socket.FRAMES_PER_SECOND,
    "MAX_SOCKETS_WITHOUT_TOKEN": admission.MAX_SOCKETS_WITHOUT_TOKEN,
    "MAX_REPLAY_EVENTS": replay.MAX_REPLAY_EVENTS,
    "OUTBOX_FRAMES": rooms.OUTBOX_FRAMES,
    "LOOP_BLOCK_MS": watchdog.BLOCK_SECONDS * 1000,
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, for a .env file."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", REMOVED)
def test_warning_names_the_value_in_use(name: str) -> None:
    """The text of each warning begins with the value of the constant."""
    if name == "RENEW_SECONDS":
        assert (REMOVED[name], leases.RENEWALS_PER_LEASE) == ("a third of LEASE_SECONDS", 3)
    else:
        assert REMOVED[name].replace(";", ",").split(",")[0] == f"{IN_USE[name]:.10g}"
    assert not hasattr(Settings, name.lower()) or name == "POOL_THREADS"


def test_derived_values_grow_with_the_settings_they_depend_on() -> None:
    """These values were separate settings: they are never less than before, and grow with the other settings."""
    assert (Settings().pool_threads, Settings(concurrency=45).pool_threads) == (16, 90)
    assert [upload.body_seconds(mib << 20) for mib in (1, 10)] == [300, 300]
    assert upload.body_seconds(100 << 20) == pytest.approx(2996, abs=1)


@pytest.mark.parametrize("name", REMOVED)
def test_removed_setting_does_not_stop_the_start(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Any value in the environment or in .env is reported as removed, not as unknown, also in small letters."""
    monkeypatch.setenv(name.lower(), "nonsense")
    (folder / ".env").write_text(f"{name}=5\n")
    settings = load()
    assert settings.unknown_variables == ()
    assert [each.variable for each in settings.removed_variables] == [name, name.lower()]
    assert str(settings.removed_variables[0]).startswith(f"{name} has no effect since 0.2.0: the value is fixed, ")


def test_constants_that_tests_change_exist() -> None:
    """Each is a number at the top of its module, so that a process can be started with another value."""
    names = [value for value in vars(constants).values() if isinstance(value, str) and value.startswith("pipeline.")]
    assert len(names) > 10
    for name in names:
        module, _, constant = name.rpartition(".")
        assert isinstance(getattr(import_module(module), constant), (int, float)), name


def test_process_has_the_constants_it_is_started_with(tmp_path: Path) -> None:
    """The other value applies also where modules import the constant by name, and in defaults of arguments."""
    script = tmp_path / "printed.py"
    script.write_text(
        "from pipeline.parts.work import MAX_STALLS\n"
        "from pipeline.queue.attempt import RetryPolicy\n"
        "print(MAX_STALLS, RetryPolicy().max_stalls)\n"
    )
    command = [sys.executable, *constants.command_with({constants.MAX_STALLS: "7"}, [str(script)])]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "7 7\n", done.stderr
