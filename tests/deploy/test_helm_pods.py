"""The pods of the Helm chart: environment, rights, shutdown time, readiness, and scaling with the queue."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml

from pipeline.metrics import Metrics
from pipeline.settings import Settings
from tests.deploy.charts import LEAST, Objects, objects_of, pods_of, render
from tests.deploy.charts import full, rendered  # noqa: F811
from tests.factories import SECRET
from tests.requirements import program

__all__ = ["full", "rendered"]


def test_environment_of_pods_contains_valid_settings(rendered: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment of a pod contains only known settings, valid together, with the role of its deployment."""
    objects = objects_of(rendered)
    given = objects["ConfigMap", "photos"]["data"]
    secret = objects.get(("Secret", "photos"), {}).get("stringData", LEAST["secrets"])
    for role, pod in pods_of(objects):
        own = {each["name"]: each["value"] for each in pod["spec"]["containers"][0]["env"]}
        values = given | secret | own
        fields = {name: value for name, value in values.items() if not name.startswith("PLUGIN_")}
        assert {name.lower() for name in fields} <= set(Settings.model_fields)
        for name, value in fields.items():
            monkeypatch.setenv(name, str(value))
        settings = Settings()
        assert settings.role.value == role
        assert settings.redis_url.get_secret_value() == "rediss://redis.example.com:6379/0"


def test_pods_have_time_to_shut_down(rendered: str) -> None:
    """The grace period covers the sleep before SIGTERM, the lame duck period, running jobs and the shutdown."""
    objects = objects_of(rendered)
    config = objects["ConfigMap", "photos"]["data"]
    for _, pod in pods_of(objects):
        hook = pod["spec"]["containers"][0].get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", [0])
        least = int(hook[-1]) + int(config["LAME_DUCK_SECONDS"]) + int(config["SHUTDOWN_SECONDS"]) + 2
        assert pod["spec"]["terminationGracePeriodSeconds"] > least


def test_outage_of_a_shared_dependency_removes_no_web_pod(rendered: str) -> None:
    """The readiness probe of web pods checks only the pod itself, as our proxies do; that of worker pods checks all.

    Worker pods get no requests, so an outage of a shared dependency may make them unready.
    """
    paths = {role: pod["spec"]["containers"][0]["readinessProbe"]["httpGet"]["path"]
             for role, pod in pods_of(objects_of(rendered))}
    assert paths == {"web": "/readyz?local", "worker": "/readyz"}


def test_pods_run_with_the_least_rights(rendered: str) -> None:
    """Pods run as user 10001, without capabilities, without an API server token, on a read-only root file system."""
    for _, pod in pods_of(objects_of(rendered)):
        spec, container = pod["spec"], pod["spec"]["containers"][0]
        assert spec["automountServiceAccountToken"] is False
        assert spec["securityContext"]["runAsUser"] == 10001 and spec["securityContext"]["runAsNonRoot"] is True
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert {each["mountPath"] for each in container["volumeMounts"]} == {"/data", "/tmp"}


@pytest.mark.parametrize(
    ("waiting", "oldest_seconds", "depth", "age"),
    [
        (100, 20, 100, 20),  # jobs wait
        (100, 0, 0, 0),  # jobs wait for a provider that is held: more workers would not help
        (0, 0, 0, 0),  # nothing to do
        ("NaN", "NaN", 0, 0),  # Redis is down
    ],
)
def test_scaling_follows_the_queue(
    full: Objects, tmp_path: Path, waiting: float, oldest_seconds: float, depth: float, age: float
) -> None:
    """Prometheus evaluates KEDA's queries to the number of jobs that could start and the age of the oldest job."""
    promtool = program("promtool")
    queries = {each["name"]: each["metadata"]["query"]
               for each in full["ScaledObject", "photos-worker"]["spec"]["triggers"]}
    of_queue = 'namespace="shop",queue="ai-processing"'
    series = {
        f'pipeline_queue_depth{{{of_queue},state="waiting"}}': waiting,
        f"pipeline_queue_oldest_seconds{{{of_queue}}}": oldest_seconds,
    }
    assert all(f"# TYPE {name.partition('{')[0]} gauge" in Metrics().render()[0].decode() for name in series)
    expected = [
        {"expr": queries[name], "eval_time": "0m", "exp_samples": [{"labels": "{}", "value": value}]}
        for name, value in (("depth", depth), ("age", age))
    ]
    path = tmp_path / "tests.yml"
    values = [{"series": name, "values": str(value)} for name, value in series.items()]
    path.write_text(yaml.safe_dump({"tests": [{"input_series": values, "promql_expr_test": expected}]}))
    found = subprocess.run([promtool, "test", "rules", str(path)], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr


def test_changed_settings_start_new_pods(tmp_path: Path) -> None:
    """A changed setting or secret changes the annotation of the pods, so that Kubernetes replaces them."""
    before = dict(pods_of(objects_of(render(LEAST, tmp_path))))
    for changed in (
        LEAST | {"config": LEAST["config"] | {"CONCURRENCY": 6}},
        LEAST | {"secrets": LEAST["secrets"] | {"JWT_SECRET": SECRET[::-1]}},
    ):
        for role, pod in pods_of(objects_of(render(changed, tmp_path))):
            assert pod["metadata"]["annotations"] != before[role]["metadata"]["annotations"]


def test_values_reach_the_service_as_written(tmp_path: Path) -> None:
    """Large numbers, fractions, booleans and texts that look like numbers are the same text in the pod."""
    written = {"MAX_UPLOAD_BYTES": 10485760, "AI_BUDGET_PER_DAY": 2.5, "AI_CACHE": True, "JWT_AUDIENCE": "0123"}
    values = LEAST | {
        "config": LEAST["config"] | written,
        "secrets": LEAST["secrets"] | {"PLUGIN_OPENAI_API_KEY": 12345678901, "JWT_PUBLIC_KEY": "one\ntwo: #3\n"},
        "web": {"env": {"OUTBOX_BYTES": 1048576}},
    }
    objects = objects_of(render(values, tmp_path))
    config, secret = objects["ConfigMap", "photos"]["data"], objects["Secret", "photos"]["stringData"]
    assert {name: config[name] for name in written} == {
        "MAX_UPLOAD_BYTES": "10485760", "AI_BUDGET_PER_DAY": "2.5", "AI_CACHE": "true", "JWT_AUDIENCE": "0123"
    }
    assert secret["PLUGIN_OPENAI_API_KEY"] == "12345678901" and secret["JWT_PUBLIC_KEY"] == "one\ntwo: #3\n"
    assert {"name": "OUTBOX_BYTES", "value": "1048576"} in dict(pods_of(objects))["web"]["spec"]["containers"][0]["env"]
