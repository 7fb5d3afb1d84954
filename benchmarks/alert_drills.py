"""How long a fault goes unnoticed: python -m benchmarks.alert_drills [DRILL ...]

Each drill (benchmarks/alert_faults.py) has real processes of the service and a real Prometheus with our alerts. As in
production, it scrapes and evaluates every 15 s. All drills run at the same time, for about ten minutes. Prints a table:
the fault, the alert, the seconds from the fault until the alert fires, and from the end of the fault until the alert
ends. Then the other alerts that fired, and the alerts for which a real Alertmanager with
deploy/prometheus/alertmanager.yml sends a message.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from benchmarks.alert_faults import DRILLS, Drill, World
from tests.prometheus import DEPLOY, firing_alerts, running_alertmanager, running_prometheus

TIMES = {"scrape_interval": "15s", "evaluation_interval": "15s"}
# Five scrapes without a fault.
WARM_SECONDS = 75.0
LONGEST_SECONDS = 420.0
HEAD = """| fault | alert | fires after | gone after | others that fired | sent by Alertmanager |
|---|---|---|---|---|---|"""


@dataclass
class Outcome:
    """What one drill measured.

    seconds: by alert: from the fault until it fires, and from the end of the fault until the alert ends.
    others: the other alerts that fired.
    sent: the alerts for which Alertmanager sends a message.
    """

    drill: Drill
    seconds: dict[str, list[float | None]]
    others: set[str] = field(default_factory=set)
    sent: set[str] = field(default_factory=set)


def measure(drill: Drill) -> Outcome:
    """Run the drill."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name, ExitStack() as opened:
        world = World(Path(name), opened)
        steps = drill.steps(world)
        next(steps)
        targets = [service.url.removeprefix("http://") for service in world.services]
        prometheus = world.enter(running_prometheus(Path(name), times=TIMES, static_configs=[{"targets": targets}]))
        time.sleep(WARM_SECONDS)
        if early := _firing(prometheus):
            raise RuntimeError(f"{drill.fault}: {sorted(early)} fired before the fault")
        next(steps)
        seen: dict[str, dict[str, Any]] = {}
        fired = _wait(prometheus, drill.alerts, True, seen)
        next(steps, None)
        ended = _wait(prometheus, drill.alerts, False, seen)
        seconds = {alert: [fired.get(alert), ended.get(alert)] for alert in drill.alerts}
        sent = _sent(Path(name), list(seen.values()))
    return Outcome(drill, seconds, set(seen) - set(drill.alerts), sent)


def _wait(
    prometheus: httpx.Client, alerts: Sequence[str], is_firing: bool, seen: dict[str, dict[str, Any]]
) -> dict[str, float]:
    """Return by alert the seconds until it fires (or, without is_firing, until it ends).

    seen: receives every alert that fires during the wait.
    """
    began_at = time.monotonic()
    reached: dict[str, float] = {}
    while len(reached) < len(alerts) and time.monotonic() - began_at < LONGEST_SECONDS:
        firing = _firing(prometheus)
        seen.update(firing)
        for alert in alerts:
            if alert not in reached and (alert in firing) == is_firing:
                reached[alert] = time.monotonic() - began_at
        time.sleep(1)
    return reached


def _firing(prometheus: httpx.Client) -> dict[str, dict[str, Any]]:
    """Return the labels of each alert that fires; the key is its name and, for a dependency, the dependency's name."""
    return {_name(alert["labels"]): alert["labels"] for alert in firing_alerts(prometheus)}


def _name(labels: dict[str, Any]) -> str:
    return " ".join(filter(None, (labels["alertname"], labels.get("name"))))


def _sent(folder: Path, alerts: list[dict[str, Any]]) -> set[str]:
    """Return the names of the alerts that Alertmanager does not inhibit when they all fire at the same time."""
    with running_alertmanager(folder, DEPLOY / "alertmanager.yml") as alertmanager:
        alertmanager.post("/api/v2/alerts", json=[{"labels": labels} for labels in alerts]).raise_for_status()
        shown: list[dict[str, Any]] = []
        while len(shown) < len(alerts) or any(each["status"]["state"] == "unprocessed" for each in shown):
            time.sleep(0.5)
            shown = alertmanager.get("/api/v2/alerts").json()
    return {_name(alert["labels"]) for alert in shown if not alert["status"]["inhibitedBy"]}


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.alert_drills", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("drill", nargs="*", choices=[*DRILLS, []], help=f"of {', '.join(DRILLS)}; default: all")
    chosen = parser.parse_args().drill or list(DRILLS)
    with ThreadPoolExecutor(len(chosen)) as pool:
        running = {name: pool.submit(measure, DRILLS[name]) for name in chosen}
    print(HEAD)
    for name, future in running.items():
        if error := future.exception():
            print(f"{name}: {error!r}", file=sys.stderr)
            continue
        _print(future.result())


def _print(outcome: Outcome) -> None:
    fault = outcome.drill.fault
    rest = f"{_names(outcome.others)} | {_names(outcome.sent)}"
    for alert, seconds in outcome.seconds.items():
        shown = " | ".join("never" if each is None else f"{each:.0f} s" for each in seconds)
        print(f"| {fault} | {_names([alert])} | {shown} | {rest} |")
        fault, rest = "", " | "


def _names(alerts: Iterable[str]) -> str:
    return ", ".join(alert.removeprefix("Pipeline") for alert in sorted(alerts)) or "none"


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    # A drill that failed may have left threads that still upload.
    os._exit(0)
