"""From a fault to the operator: what Prometheus scrapes, which alert fires, where its link leads, what is inhibited.

Real processes of the service, a real Prometheus and a real Alertmanager.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.fake_receiver import FakeReceiver, running_in_thread
from tests.requirements import program
from tests.prometheus import (
    DEPLOY,
    GRAFANA,
    ROOT,
    firing_alerts,
    faster_rules,
    running_alertmanager,
    running_prometheus,
    until,
)
from tests.redis_server import RedisServer
from tests.service import AiService, Service

CONFIGURATION = DEPLOY / "alertmanager.yml"
DISCOVERIES = sorted(path.name for path in DEPLOY.glob("*.yml") if path != CONFIGURATION)


def rules() -> dict[str, str]:
    """Return the severity of each alert in alerts.yml."""
    groups = yaml.safe_load((GRAFANA / "alerts.yml").read_text())["groups"]
    return {rule["alert"]: rule["labels"]["severity"] for group in groups for rule in group["rules"]}


def run(*command: str, folder: Path) -> str:
    """Run a checker; return what it prints."""
    done = subprocess.run([program(command[0]), *command[1:]], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_each_discovery_of_processes_has_an_example() -> None:
    """Files, DNS, Kubernetes and fixed addresses have an example, each with our intervals and our job name."""
    assert DISCOVERIES == ["dns_sd.yml", "file_sd.yml", "kubernetes_sd.yml", "static.yml"]
    ours = yaml.safe_load((GRAFANA / "prometheus.yml").read_text())["global"]
    for name in DISCOVERIES:
        loaded = yaml.safe_load((DEPLOY / name).read_text())
        assert loaded["global"] == ours and loaded["rule_files"] == ["alerts.yml"], name
        assert [each["job_name"] for each in loaded["scrape_configs"]] == ["pipeline"], name


@pytest.mark.parametrize("name", DISCOVERIES)
def test_promtool_accepts_the_example(name: str, tmp_path: Path) -> None:
    """The example is valid next to alerts.yml, where the operator puts it.

    Debian's Prometheus does not know Kubernetes: the test removes that part.
    """
    shutil.copytree(DEPLOY, tmp_path, dirs_exist_ok=True)
    shutil.copy(GRAFANA / "alerts.yml", tmp_path)
    loaded = yaml.safe_load((DEPLOY / name).read_text())
    if kubernetes := loaded["scrape_configs"][0].pop("kubernetes_sd_configs", None):
        assert kubernetes == [{"role": "pod", "namespaces": {"names": ["photos"]}}]
    (tmp_path / name).write_text(yaml.safe_dump(loaded))
    run("promtool", "check", "config", "--lint=all", "--lint-fatal", name, folder=tmp_path)


OURS = {"label_app_kubernetes_io_name": "pipeline", "container_port_name": "http"}
PODS = [
    OURS | {"phase": "Running", "name": "pipeline-web-7d9"},
    OURS | {"phase": "Failed", "name": "pipeline-web-1c2"},
    {"label_app_kubernetes_io_name": "valkey", "phase": "Running", "name": "valkey-0"},
]
NAMES = [each["name"] for each in PODS]


@pytest.mark.parametrize(
    ("name", "pods", "instances"),
    [
        ("kubernetes_sd.yml", PODS, dict.fromkeys(NAMES) | {NAMES[0]: NAMES[0]}),
        ("static.yml", [{}], {None: "photos-1:8081"}),
    ],
)
def test_relabelling_leaves_the_name_that_a_message_shows(
    name: str, pods: list[dict[str, str]], instances: dict[str | None, str | None], tmp_path: Path
) -> None:
    """Prometheus relabels what discovery finds, here given in a file; other and ended pods are dropped."""
    (scraped,) = yaml.safe_load((DEPLOY / name).read_text())["scrape_configs"]
    scraped = {key: value for key, value in scraped.items() if not key.endswith("_configs") or "relabel" in key}
    scraped["file_sd_configs"] = [{"files": ["found.json"]}]
    found = [{f"__meta_kubernetes_pod_{key}": value for key, value in pod.items()}
             | {"__meta_kubernetes_namespace": "shop"} for pod in pods]
    target = "photos-1.internal:8081"
    (tmp_path / "found.json").write_text(json.dumps([{"targets": [target], "labels": labels} for labels in found]))
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump({"scrape_configs": [scraped]}))
    # Promtool waits for more targets until this timeout.
    timeout = ("--timeout", "1s")
    output = run("promtool", "check", "service-discovery", *timeout, "prometheus.yml", "pipeline", folder=tmp_path)
    # Promtool prints the targets in any order.
    shown = {each["discoveredLabels"].get("__meta_kubernetes_pod_name"): each.get("labels", {})
             for each in json.loads(output)}
    assert {pod: labels.get("instance") for pod, labels in shown.items()} == instances
    # KEDA's queries in the Helm chart select by the namespace.
    namespaces = {labels.get("namespace") for labels in shown.values() if labels}
    assert namespaces == {"shop" if "kubernetes" in name else None}


def test_amtool_accepts_the_alertmanager_configuration() -> None:
    """The configuration is valid; critical alerts are sent to the pager, the others to the chat."""
    run("amtool", "check-config", CONFIGURATION.name, folder=DEPLOY)
    for severity, receiver in (("critical", "pager"), ("warning", "chat")):
        arguments = ("config", "routes", "test", f"--config.file={CONFIGURATION.name}", f"severity={severity}")
        assert run("amtool", *arguments, folder=DEPLOY).strip() == receiver


def test_warning_inhibits_no_critical_alert() -> None:
    """Each inhibit rule names alerts of alerts.yml, and a warning inhibits only warnings."""
    severities = rules()
    for rule in yaml.safe_load(CONFIGURATION.read_text())["inhibit_rules"]:
        sources, targets = (named(rule[side]) for side in ("source_matchers", "target_matchers"))
        assert sources | targets <= severities.keys()
        assert not sources & targets or "name=" in str(rule["source_matchers"]), "an alert must not inhibit itself"
        if any(severities[name] == "warning" for name in sources):
            assert {severities[name] for name in targets} == {"warning"}, rule


def named(matchers: list[str]) -> set[str]:
    """Return the alerts that the matchers name."""
    return set(re.findall(r"Pipeline\w+", str(matchers)))


def alert(alertname: str, severity: str = "critical", **labels: str) -> dict[str, Any]:
    ends_at = datetime.now(UTC) + timedelta(minutes=5)
    return {"labels": {"alertname": alertname, "severity": severity} | labels, "endsAt": ends_at.isoformat()}


@pytest.fixture
def message_receiver() -> Iterator[FakeReceiver]:
    with running_in_thread() as receiver:
        yield receiver


def test_one_outage_is_one_message(message_receiver: FakeReceiver, tmp_path: Path) -> None:
    """Redis fails for two processes, which causes other alerts: the pager gets one message, about Redis only."""
    text = CONFIGURATION.read_text().replace("http://127.0.0.1:9099", message_receiver.url)
    # One request posts the alerts of both processes: no need to wait longer.
    (tmp_path / "alertmanager.yml").write_text(text.replace("group_wait: 15s", "group_wait: 1s"))
    away = [alert("PipelineDependencyDown", instance=each, name=name) for each in "ab" for name in ("redis", "queue")]
    caused = [
        alert("PipelineDependencyDown", instance="b", name="rooms"),
        alert("PipelineQueueStuck", queue="ai-processing"),
        alert("PipelineEventsLate", "warning"),
    ]
    unrelated = alert("PipelineDiskFilling", "warning", instance="c")
    with running_alertmanager(tmp_path, tmp_path / "alertmanager.yml") as alertmanager:
        alertmanager.post("/api/v2/alerts", json=[*away, *caused, unrelated]).raise_for_status()
        message_receiver.wait_for_requests(2)
        sent = {request.path: json.loads(request.body) for request in message_receiver.requests}
        shown = alertmanager.get("/api/v2/alerts").json()
    assert {path: sorted(each["labels"]["alertname"] for each in body["alerts"]) for path, body in sent.items()} == {
        "/pager": ["PipelineDependencyDown"] * 2,
        "/chat": ["PipelineDiskFilling"],
    }
    assert {each["labels"]["name"] for each in sent["/pager"]["alerts"]} == {"redis"}
    inhibited = [each for each in shown if each["status"]["inhibitedBy"]]
    assert len(inhibited) == len(away) // 2 + len(caused)


def firing(prometheus: httpx.Client, alertname: str, **labels: str) -> dict[str, Any] | None:
    """Return the alert of that name with these labels, if it fires."""
    wanted = {"alertname": alertname} | labels
    return next((each for each in firing_alerts(prometheus) if wanted.items() <= each["labels"].items()), None)


@pytest.mark.fault("O13")
def test_idle_service_reports_a_dead_dependency_and_a_lost_process_and_the_links_work(tmp_path: Path) -> None:
    """Alerts fire without an upload and without a request for readiness.

    The AI service stops, and one of two processes is killed. Prometheus finds the processes by the example's file, from
    which the test removes the killed one, so that Prometheus drops its `up`. Each link of an alert leads to a section
    of a page that the other process serves.
    """
    targets = tmp_path / "targets"
    targets.mkdir()
    files = [{"files": [f"{targets}/*.yml"], "refresh_interval": "1s"}]
    with RedisServer() as redis, AiService() as ai_service:
        one, other = (Service(tmp_path / "photos", ai_service.url, REDIS_URL=redis.url) for _ in range(2))
        example = running_prometheus(
            tmp_path, config=DEPLOY / "file_sd.yml", rules=faster_rules(), file_sd_configs=files
        )
        with one, example as prometheus:
            other.start()
            instances = [service.url.removeprefix("http://") for service in (one, other)]
            (targets / "pipeline.yml").write_text(yaml.safe_dump([{"targets": instances}]))
            until(lambda: up(prometheus) == dict.fromkeys(instances, "1"), lambda: up(prometheus))
            ai_service.kill()
            other.kill()
            (targets / "pipeline.yml").write_text(yaml.safe_dump([{"targets": instances[:1]}]))
            expected = {
                "PipelineDependencyDown": {"name": "provider:http", "instance": instances[0]},
                "PipelineProcessLost": {"role": "all"},
            }
            for name, labels in expected.items():
                until(lambda: firing(prometheus, name, **labels), lambda: firing_alerts(prometheus))
                found = firing(prometheus, name, **labels)
                assert found and found["annotations"]["runbook_url"] == f"{one.url}/runbooks#{name.lower()}"
                address, _, section = found["annotations"]["runbook_url"].partition("#")
                assert f'<h2 id="{section}">{name}</h2>' in httpx.get(address).text
            assert firing(prometheus, "PipelineInstanceDown") is None
            ai_service.start()
            until(lambda: not firing(prometheus, "PipelineDependencyDown"), lambda: firing_alerts(prometheus))


def up(prometheus: httpx.Client) -> dict[str, str]:
    """Return `up` by instance."""
    reply = prometheus.get("/api/v1/query", params={"query": "up"}).json()
    return {each["metric"]["instance"]: each["value"][1] for each in reply["data"]["result"]}


def test_runbooks_page_is_complete_without_other_pages(tmp_path: Path, redis_url: str) -> None:
    """A worker process serves the page without a token; it has a section for each alert and no broken link."""
    with Service(tmp_path, "http://127.0.0.1:9", REDIS_URL=redis_url, ROLE="worker") as service:
        reply = httpx.get(f"{service.url}/runbooks")
    assert reply.status_code == 200 and reply.headers["Content-Type"] == "text/html; charset=UTF-8"
    assert "default-src 'none'" in reply.headers["Content-Security-Policy"]
    sections = re.findall(r'<h2 id="(\w+)">', reply.text)
    assert sections == [name.lower() for name in rules()]
    links = re.findall(r'<a href="([^"]*)"', reply.text)
    assert links and {link for link in links if link.removeprefix("#") not in sections} == set()
    assert (ROOT / "docs/runbooks.md").read_text().count("](#") == len(links)
