"""`plugins verify`: runs a conformance suite on a plugin as it is configured, in a child process that can be ended.

However bad the plugin is, the command ends in time and says something every few seconds.
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

# As nobody waits without a word.
SILENT_SECONDS = 5.0
# How long after its time the child may take to end by itself.
GRACE_SECONDS = 3.0
STDERR_BYTES = 2000
# Whoever pays for calls wants to know of these.
COUNTED = ("analyze", "notify", "notify_many")
OPTIONAL = re.compile(r" has no (.+), which (?:is|are) optional$")


@dataclass
class Verdict:
    """What has come out so far. findings: (line, test), each line once. at: what is under way."""

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

    def take(self, message: dict[str, Any]) -> None:
        """Note a message of the child; see suite_child.py."""
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
        """Note that the child ended before it was done."""
        if not self.is_done:
            self.failed += 1
            self.findings.setdefault(how, self.at)

    @property
    def exit_code(self) -> int:
        """0: it passes. 1: it fails. 2: there is nothing to verify."""
        return 2 if self.fault else 1 if self.findings else 0

    def as_json(self, seconds: float) -> dict[str, Any]:
        """Return it for programs."""
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
    help="Which, if there are two. hook: observers and filters.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.option("--timeout", "seconds", type=Number(5, 3600), default=55, help="Longest it may take [s]: 55.")
def verify(name: str, kind_name: str | None, as_json: bool, seconds: float) -> None:
    """Run the conformance suite on a plugin as it is configured, for real; exit code 1 when it fails."""
    began = monotonic()
    verdict = Verdict(name)

    def take(message: dict[str, Any]) -> None:
        verdict.take(message)
        if "fault" not in message:
            _tell(message)

    for message in _messages(_command(name, kind_name, seconds), seconds, verdict):
        take(message)
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
    """Start the child and yield its messages; end it when its time is over."""
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
                os.killpg(child.pid, signal.SIGKILL)  # whatever it has started, too
        verdict.ended(_how_it_ended(child.wait(), seconds, verdict.at, _last_line(errors)))


def read_messages(pipe: IO[bytes], ends_at: float) -> Iterator[dict[str, Any]]:
    """Yield messages until the pipe ends or the time is over, and {"waits": seconds} when none comes for a while."""
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


def _how_it_ended(code: int, seconds: float, at: str, said: str) -> str:
    if code == -signal.SIGKILL:
        return f"it does not come back within {seconds:g} s ({at}): set a timeout for whatever it waits for"
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    return f"it ends the process ({how}, {at}): raise an error instead{f'; it said: {said}' if said else ''}"


def _last_line(file: IO[bytes]) -> str:
    file.seek(0, os.SEEK_END)
    file.seek(max(0, file.tell() - STDERR_BYTES))
    lines = file.read().decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else ""


def _tell(message: dict[str, Any]) -> None:
    """Print how far it is."""
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
    """Yield a line for each reason; what a plugin need not have is one. tests: with why each was left out."""
    optional = {found[1] for why in tests.values() if (found := OPTIONAL.search(why))}
    if optional:
        yield f"{', '.join(sorted(optional))} (optional, and it has none)"
    for why in dict.fromkeys(each for each in tests.values() if not OPTIONAL.search(each)):
        yield f"{', '.join(test for test, each in tests.items() if each == why)} ({why})"
