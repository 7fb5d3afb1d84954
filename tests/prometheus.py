"""A real Prometheus and a real Alertmanager for tests: a `with` block runs each in its own process."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.requirements import program
from tests.toxiproxy import free_port

ROOT = Path(__file__).parents[1]
GRAFANA = ROOT / "grafana"
DEPLOY = ROOT / "deploy" / "prometheus"
WAIT_SECONDS = 60.0
# Tests divide the times in the rules by this number: `for: 1m` becomes 2 s.
SPEEDUP = 30
FASTER = {"scrape_interval": "500ms", "evaluation_interval": "500ms"}


@contextmanager
def running_prometheus(
    folder: Path,
    *,
    config: Path = GRAFANA / "prometheus.yml",
    rules: str | None = None,
    times: Mapping[str, str] = FASTER,
    **discovery: list[dict[str, Any]],
) -> Iterator[httpx.Client]:
    """Run a Prometheus with a configuration of this repository.

    folder: gets its files.
    config: its configuration, in which the service discovery and the times are replaced.
    rules: the text of the alert rules, by default grafana/alerts.yml.
    times: the intervals.
    discovery: the service discovery, e.g. static_configs=[...].
    """
    loaded = yaml.safe_load(config.read_text())
    loaded["global"] = dict(times)
    loaded.pop("alerting", None)
    (folder / "alerts.yml").write_text(rules or (GRAFANA / "alerts.yml").read_text())
    loaded["scrape_configs"][0].update(discovery)
    (folder / "prometheus.yml").write_text(yaml.safe_dump(loaded))
    binary = program("prometheus")
    address = f"127.0.0.1:{free_port()}"
    paths = (f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}")
    with _running([binary, *paths, f"--web.listen-address={address}"], f"http://{address}", folder / "log") as client:
        yield client


@contextmanager
def running_alertmanager(folder: Path, config: Path) -> Iterator[httpx.Client]:
    """Run an Alertmanager with that configuration.

    folder: gets its files.
    """
    binary = program("prometheus-alertmanager", "alertmanager")
    address = f"127.0.0.1:{free_port()}"
    options = ("--cluster.listen-address=", f"--storage.path={folder / 'data'}", f"--web.listen-address={address}")
    with _running([binary, f"--config.file={config}", *options], f"http://{address}", folder / "log") as client:
        yield client


def firing_alerts(prometheus: httpx.Client) -> list[dict[str, Any]]:
    """Return the alerts that are firing."""
    found = prometheus.get("/api/v1/alerts").json()["data"]["alerts"]
    return [each for each in found if each["state"] == "firing"]


def faster_rules() -> str:
    """Return the rules of grafana/alerts.yml, with every `for` divided by SPEEDUP."""
    rules = (GRAFANA / "alerts.yml").read_text()
    return re.sub(r"for: (\w+)", lambda part: f"for: {seconds(part[1]) * 1000 // SPEEDUP}ms", rules)


def seconds(duration: str) -> int:
    """Return the seconds of a duration in the notation of Prometheus."""
    return int(duration[:-1]) * {"s": 1, "m": 60, "h": 3600}[duration[-1]]


def until(condition: Callable[[], Any], explain: Callable[[], Any]) -> None:
    """Poll until the condition is true: the other process sends no signal to wait for.

    explain: makes the message of a timeout.
    """
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, explain()
        time.sleep(0.1)


@contextmanager
def _running(command: list[str], url: str, log_path: Path) -> Iterator[httpx.Client]:
    with open(log_path, "wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    with httpx.Client(base_url=url, timeout=10) as client:
        try:
            until(lambda: _is_ready(client), log_path.read_text)
            yield client
        finally:
            process.terminate()
            process.wait()


def _is_ready(client: httpx.Client) -> bool:
    try:
        return client.get("/-/ready").status_code == 200
    except httpx.TransportError:
        return False
