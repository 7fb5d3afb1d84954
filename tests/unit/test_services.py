"""The entries of the processes that run on a DATA_DIR: one for each process, and none for an ended process."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from pipeline.services import DRAFT_SECONDS, ServiceFile, Service, services

WAIT_SECONDS = 60.0
SCRIPT = """
import sys
import time
from pathlib import Path
from pipeline.services import ServiceFile
entry = ServiceFile(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
print("started", flush=True)
sys.stdin.readline()
entry.remove()
print("removed", flush=True)
"""


@contextmanager
def process(data_dir: Path, address: str, role: str = "all") -> Iterator[subprocess.Popen[str]]:
    """Run a process with an entry, until the end of the block."""
    command = [sys.executable, "-c", SCRIPT, str(data_dir), address, role]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None and child.stdout.readline() == "started\n"
        try:
            yield child
        finally:
            child.kill()


def end(child: subprocess.Popen[str]) -> None:
    """Let the process remove its entry."""
    assert child.stdin is not None and child.stdout is not None
    child.stdin.write("\n")
    child.stdin.flush()
    assert child.stdout.readline() == "removed\n"


def old_file_pid(data_dir: Path) -> int | None:
    """Return the process id in service.json, the file of earlier versions."""
    path = data_dir / "service.json"
    return int(json.loads(path.read_text())["pid"]) if path.exists() else None


@pytest.mark.fault("O14")
def test_each_process_has_an_entry(tmp_path: Path) -> None:
    """The newest entry is first; the end of one process leaves the entry of the other, also in service.json."""
    with process(tmp_path, "http://127.0.0.1:1") as first, process(tmp_path, "http://127.0.0.1:2", "web") as second:
        found = services(tmp_path)
        assert [(each.pid, each.address, each.role) for each in found] == [
            (second.pid, "http://127.0.0.1:2", "web"),
            (first.pid, "http://127.0.0.1:1", "all"),
        ]
        assert all(each.is_here for each in found) and old_file_pid(tmp_path) == second.pid
        end(second)
        assert [each.pid for each in services(tmp_path)] == [first.pid] and old_file_pid(tmp_path) == first.pid
        end(first)
        assert services(tmp_path) == [] and old_file_pid(tmp_path) is None


@pytest.mark.fault("O14")
def test_file_of_a_killed_process_is_no_entry(tmp_path: Path) -> None:
    """The file of a killed process is no entry, even if another process has the same id: reading removes the file.

    A reader knows it by the free lock.
    """
    with process(tmp_path, "http://127.0.0.1:1") as child:
        child.kill()
        child.wait()
    (left,) = (tmp_path / "services").iterdir()
    # As if this process had got the same id.
    left.write_text(left.read_text().replace(str(child.pid), str(os.getpid())))
    assert services(tmp_path) == []
    assert list((tmp_path / "services").iterdir()) == [] and old_file_pid(tmp_path) is None


@pytest.mark.fault("O14")
def test_many_starts_at_once_lose_no_entry(tmp_path: Path) -> None:
    """No entry is lost while other processes read entries and remove leftover files."""
    command = [sys.executable, "-c", SCRIPT, str(tmp_path), "http://127.0.0.1:1", "all"]
    with ExitStack() as stack:
        children = [
            stack.enter_context(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
            for _ in range(6)
        ]
        try:
            deadline = time.monotonic() + WAIT_SECONDS
            while len(services(tmp_path)) < len(children):
                assert time.monotonic() < deadline and all(child.poll() is None for child in children)
            assert {each.pid for each in services(tmp_path)} == {child.pid for child in children}
        finally:
            for child in children:
                child.kill()


@pytest.mark.fault("O14")
def test_odd_files_are_no_entries(tmp_path: Path) -> None:
    """Other files are ignored, and a draft is not removed while its process may still write it."""
    folder = tmp_path / "services"
    folder.mkdir()
    (folder / "folder.json").mkdir()
    (folder / "fresh.new").touch()
    (folder / "old.new").touch()
    os.utime(folder / "old.new", (0, 0))
    entry = ServiceFile(tmp_path, "http://127.0.0.1:1", "all")
    assert [each.pid for each in services(tmp_path)] == [os.getpid()]
    entry.remove()
    assert services(tmp_path) == []
    assert sorted(path.name for path in folder.iterdir()) == ["folder.json", "fresh.new"] and DRAFT_SECONDS > 1


@pytest.mark.fault("O14")
def test_process_of_an_earlier_version_is_found(tmp_path: Path) -> None:
    """It has only service.json, which a process of this version does not change, from its start to its end."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        before = {"pid": os.getppid(), "address": f"http://127.0.0.1:{server.getsockname()[1]}"}
        (tmp_path / "service.json").write_text(json.dumps(before))
        with process(tmp_path, "http://127.0.0.1:1") as child:
            assert [each.pid for each in services(tmp_path)] == [child.pid, os.getppid()]
            end(child)
        (found,) = services(tmp_path)
        assert (found.pid, found.address) == (before["pid"], before["address"]) and found.is_here
        assert json.loads((tmp_path / "service.json").read_text()) == before
    # The process with this id still runs, but its server has closed.
    assert services(tmp_path) == []
    with process(tmp_path, "http://127.0.0.1:1") as child:
        assert old_file_pid(tmp_path) == child.pid


def test_service_of_another_host_is_not_here() -> None:
    """A process of another host is not here: containers that share a folder have separate process ids."""
    assert not Service(1, "http://127.0.0.1:1", "all", "another").is_here
