"""The units of deploy/systemd: systemd accepts them, and the service runs under their restrictions and notifies it.
"""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import systemd
from pipeline.settings import Settings
from tests.requirements import program
from tests.service import ROOT, Service

UNITS = sorted((ROOT / "deploy/systemd").glob("*.service"))
# Tenths of systemd's exposure points, at most 100: below 20 systemd prints "OK", above 40 "MEDIUM".
EXPOSURE = 15
# Keys that systemd of Debian bookworm does not have yet, and ignores.
NEW_KEYS = ("RestartSteps", "RestartMaxDelaySec")


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([program("systemd-analyze"), *arguments], capture_output=True, text=True)


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_systemd_accepts_the_unit(tmp_path: Path, path: Path) -> None:
    """`systemd-analyze verify` finds no fault, and `security` reports an exposure below EXPOSURE."""
    unit = tmp_path / path.name
    unit.write_text(path.read_text().replace("/opt/pipeline/bin/pipeline", sys.executable))
    verified = analyze("verify", str(unit).replace("@.", "@1."))
    messages = [line for line in verified.stderr.splitlines() if not any(f"'{key}'" in line for key in NEW_KEYS)]
    assert (verified.returncode, messages) == (0, [])
    checked = analyze("security", "--offline=true", "--no-pager", f"--threshold={EXPOSURE}", str(unit))
    assert checked.returncode == 0, checked.stdout


def test_units_differ_only_in_description_and_environment() -> None:
    """Both units are the same except for these keys, and TimeoutStopSec is long enough for the shutdown."""
    lines = [{line for line in path.read_text().splitlines() if line and line[0] != "#"} for path in UNITS]
    assert {line.partition("=")[0] for line in lines[0] ^ lines[1]} == {"Description", "Environment"}
    settings = Settings()
    for path in UNITS:
        text = path.read_text()
        lame_duck = float((re.findall(r"LAME_DUCK_SECONDS=(\d+)$", text, re.MULTILINE) or ["0"])[-1])
        (stop,) = re.findall(r"^TimeoutStopSec=(\d+)$", text, re.MULTILINE)
        assert int(stop) > lame_duck + settings.shutdown_seconds + 2


@pytest.mark.skipif(sys.platform != "linux", reason="seccomp is Linux'")
def test_service_runs_under_the_restrictions_of_the_unit(tmp_path: Path) -> None:
    """Under the restrictions embedded Redis and all child processes work: a photo is processed, the exit code is 0.

    The child processes decode photos, make previews and run the local AI.
    """
    program("systemd-analyze")
    service = Service(tmp_path, AI_PROVIDER="local", PREVIEW_PROCESSES="1")
    service.command = ("-m", "tests.deploy.confined", str(UNITS[0]), sys.executable, "run.py")
    with service:
        asset_id = service.upload().json()["data"]["assetId"]
        service.wait_log("job_completed")
        asset = service.asset(asset_id)
        assert asset["status"] in ("active", "partial") and asset["images"]["previews"]
        status = Path(f"/proc/{service.pid}/status").read_text()
        assert "\nSeccomp:\t2\n" in status
        assert service.stop() == 0


def test_service_notifies_systemd(tmp_path: Path) -> None:
    """The service sends READY=1 when it serves, WATCHDOG=1 while it runs and STOPPING=1 when it stops."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(60)
        environment = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "4000000"}
        with Service(tmp_path / "data", **environment) as service:
            assert {manager.recv(64) for _ in range(2)} == {b"READY=1", b"WATCHDOG=1"}
            assert manager.recv(64) == b"WATCHDOG=1"
            assert service.stop() == 0
            last = manager.recv(64)
            while last == b"WATCHDOG=1":
                last = manager.recv(64)
            assert last == b"STOPPING=1"


def test_notify_without_a_listening_manager_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a service manager, or with one that has ended, the service continues without an error."""
    for address in ("", "/nowhere/notify", "@unused"):
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        systemd.notify("READY=1")
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    assert systemd.watchdog_seconds() == 0
