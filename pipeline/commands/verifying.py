"""The command `plugins verify`: runs a conformance suite on a configured plugin, in a child process that can be killed.

Whatever the plugin does, the command ends in time and prints something every few seconds.
"""

from __future__ import annotations

import json
import os
import re
import selectors
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from time import monotonic
from typing import IO, Any

import click

from pipeline.commands.service_target import Number
from pipeline.commands.output import note, say, say_json
from pipeline.errors import ConfigurationError
from pipeline.hooks.kinds import HOOK, KINDS

# The longest time without a printed line.
SILENT_SECONDS = 5.0
# How long the child may take to end by itself after its last message.
GRACE_SECONDS = 3.0
STDERR_BYTES = 2000
# Calls that may cost money.
COUNTED = ("analyze", "notify", "notify_many")
OPTIONAL = re.compile(r" has no (.+), which (?:is|are) optional$")


@dataclass
class Verdict:
    """The results so far.

    findings: line -> test in which it appeared first.
    left_out: test -> reason.
    at: the running test.
    """

    name: str
    about: str = ""
    fault: str = ""
    findings: dict[str, str] = field(default_factory=dict)
    passed: int = 0
    failed: int = 0
    left_out: dict[str, str] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    note: str = ""
    at: str = "load"
    is_done: bool = False
    _failing: bool = False

    def add(self, message: dict[str, Any]) -> None:
        """Add a message of the child; suite_child.py describes them."""
        self.about = message.get("about", self.about)
        self.fault = message.get("fault", self.fault)
        self.calls = message.get("calls", self.calls)
        self.note = message.get("note", self.note)
        self.is_done |= "done" in message or "fault" in message
        if "begins" in message:
            self.at, self._failing = message["begins"], False
        elif "finding" in message:
            self._failing = True
            self.findings.setdefault(message["finding"], message["test"])
        elif "left_out" in message:
            self.left_out[message["left_out"]] = message["why"]
        elif "ends" in message:
            is_left_out = self.at in self.left_out and not self._failing
            self.passed += not self._failing and not is_left_out
            self.failed += self._failing

    def ended(self, how: str) -> None:
        """Add a finding when the child ended before it was done. how: the way in which it ended."""
        if not self.is_done:
            self.failed += 1
            self.findings.setdefault(how, self.at)

    @property
    def exit_code(self) -> int:
        """0: the plugin passes. 1: it fails. 2: nothing could be verified."""
        return 2 if self.fault else 1 if self.findings else 0

    def as_json(self, seconds: float) -> dict[str, Any]:
        """Return the results as JSON data."""
        return {
            "name": self.name,
            "passed": self.passed,
            "failed": self.failed,
            "findings": [{"test": test, "text": line} for line, test in self.findings.items()],
            "leftOut": [{"test": test, "why": why} for test, why in self.left_out.items()],
            "calls": self.calls,
            "note": self.note or None,
            "fault": self.fault or None,
            "seconds": round(seconds, 1),
        }


@click.command()
@click.argument("name")
@click.option(
    "--kind",
    "kind_name",
    type=click.Choice([*(kind.name for kind in KINDS), HOOK]),
    help="Needed if two plugins have this name. hook: observers and filters.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.option("--timeout", "seconds", type=Number(5, 3600), default=55, help="Longest duration in seconds: 55.")
def verify(name: str, kind_name: str | None, as_json: bool, seconds: float) -> None:
    """Run the conformance suite on a configured plugin, with real calls; exit code 1 when it fails."""
    began = monotonic()
    verdict = Verdict(name)
    for message in _messages(_command(name, kind_name, seconds), seconds, verdict):
        verdict.add(message)
        if "fault" not in message:
            _print_progress(message)
    if verdict.fault:
        raise ConfigurationError(verdict.fault)
    if as_json:
        say_json(verdict.as_json(monotonic() - began), indent=2)
    else:
        _print(verdict, monotonic() - began)
    sys.exit(verdict.exit_code)


def _command(name: str, kind_name: str | None, seconds: float) -> list[str]:
    return [sys.executable, "-m", "pipeline.commands.suite_child", name, kind_name or "", str(seconds)]


def _messages(command: list[str], seconds: float, verdict: Verdict) -> Iterator[dict[str, Any]]:
    """Start the child and yield its messages; kill it when its time is over."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=environment,
            start_new_session=True,
        ) as child,
    ):
        assert child.stdout is not None
        try:
            yield from read_messages(child.stdout, monotonic() + seconds)
            with suppress(subprocess.TimeoutExpired):
                child.wait(GRACE_SECONDS if not verdict.is_done else 0.1)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)  # also the processes that it has started
        verdict.ended(_how_it_ended(child.wait(), seconds, verdict.at, _last_line(errors)))


def read_messages(pipe: IO[bytes], ends_at: float) -> Iterator[dict[str, Any]]:
    """Yield messages until the pipe ends or the time is over; {"waits": seconds} when none has come for a while."""
    began, rest = monotonic(), b""
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        while (left := ends_at - monotonic()) > 0:
            if not selector.select(min(left, SILENT_SECONDS)):
                yield {"waits": round(monotonic() - began)}
                continue
            if not (chunk := os.read(pipe.fileno(), 65536)):
                return
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                message = json.loads(line)
                yield message
                if "done" in message or "fault" in message:
                    return


def _how_it_ended(code: int, seconds: float, at: str, last_line: str) -> str:
    if code == -signal.SIGKILL:
        return f"it does not come back within {seconds:g} s ({at}): set a timeout for whatever it waits for"
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    printed = f"; it said: {last_line}" if last_line else ""
    return f"it ends the process ({how}, {at}): raise an error instead{printed}"


def _last_line(file: IO[bytes]) -> str:
    file.seek(0, os.SEEK_END)
    file.seek(max(0, file.tell() - STDERR_BYTES))
    lines = file.read().decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else ""


def _print_progress(message: dict[str, Any]) -> None:
    """Print a line for a test that begins, or for a wait."""
    if "about" in message:
        note(message["about"])
    elif "begins" in message:
        note(f"  {message['begins']}")
    elif "waits" in message:
        note(f"  ... {message['waits']} s")


def _print(verdict: Verdict, seconds: float) -> None:
    for line, test in verdict.findings.items():
        say(f"found: {line} [{test}]")
    for line in left_out(verdict.left_out):
        say(f"left out: {line}")
    if verdict.note:
        say(f"note: {verdict.note}")
    counts = [f"{verdict.failed} failed"] if verdict.failed else []
    counts += [f"{verdict.passed} passed"] + ([f"{len(verdict.left_out)} left out"] if verdict.left_out else [])
    calls = [f"{name} was called {times} times" for name, times in verdict.calls.items() if name in COUNTED]
    say("; ".join([f"{verdict.name}: {', '.join(counts)} in {seconds:.1f} s", *calls]))


def left_out(tests: Mapping[str, str]) -> Iterator[str]:
    """Yield a line for each reason, and one for all missing optional methods. tests: test -> why it was left out."""
    optional = {match[1] for why in tests.values() if (match := OPTIONAL.search(why))}
    if optional:
        yield f"{', '.join(sorted(optional))} (optional, and it has none)"
    for why in dict.fromkeys(each for each in tests.values() if not OPTIONAL.search(each)):
        yield f"{', '.join(test for test, each in tests.items() if each == why)} ({why})"
