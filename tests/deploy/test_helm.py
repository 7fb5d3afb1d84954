"""The Helm chart: helm renders it, its objects fit the schemas of Kubernetes, the Prometheus Operator and KEDA, and its
values fit the service.
"""

from __future__ import annotations

import json
import re
import subprocess
from configparser import ConfigParser
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from pipeline.handlers.multipart import max_body_bytes
from pipeline.settings import Settings
from tests.deploy.charts import CHART, FULL, LEAST, OWN_SECRET, ROOT, TEMPLATE, Objects
from tests.deploy.charts import helm, objects_of, pods_of, render
from tests.deploy.charts import full, rendered  # noqa: F811
from tests.requirements import program, require

__all__ = ["full", "rendered"]

# The oldest version that the chart allows and the newest version that the schemas describe.
KUBERNETES_VERSIONS = ("1.27", "1.37.0")


def test_lint_finds_no_fault(tmp_path: Path) -> None:
    """`helm lint --strict` finds no fault."""
    found = helm("lint", str(CHART), "--strict", values=FULL, folder=tmp_path)
    assert found.returncode == 0, found.stdout + found.stderr


@pytest.mark.parametrize("version", KUBERNETES_VERSIONS)
def test_objects_fit_the_schemas_of_kubernetes(rendered: str, version: str, tmp_path: Path) -> None:
    """Each built-in Kubernetes object has only fields of its schema, in the oldest and in the newest version."""
    own = [each for each in objects_of(rendered).values() if not crd_name(each)]
    path = tmp_path / "objects.yaml"
    path.write_text(yaml.safe_dump_all(own))
    command = [program("kubernetes-validate"), "-k", version, "--strict", str(path)]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode == 0 and "INFO" in found.stdout + found.stderr, found.stdout + found.stderr


def crd_name(found: dict[str, Any]) -> str:
    """Return `group_kinds` of an object that a custom resource definition describes, "" for a built-in object."""
    group = found["apiVersion"].partition("/")[0]
    return f"{group}_{found['kind'].lower()}s" if group in ("keda.sh", "monitoring.coreos.com") else ""


def test_custom_objects_fit_the_schemas_of_their_operators(full: Objects) -> None:
    """ServiceMonitor, PrometheusRule and ScaledObject have only fields of the schemas of their operators."""
    seen = []
    for found in full.values():
        if not (name := crd_name(found)):
            continue
        definition = yaml.safe_load((crd_folder() / f"{name}.yaml").read_text())
        versions = {each["name"]: each for each in definition["spec"]["versions"]}
        schema = versions[found["apiVersion"].partition("/")[2]]["schema"]["openAPIV3Schema"]
        jsonschema.Draft4Validator(closed_schema(schema)).validate(found)
        seen.append(found["kind"])
    assert sorted(seen) == ["PrometheusRule", "ScaledObject", "ServiceMonitor"]


def crd_folder() -> Path:
    """Return the folder of the custom resource definitions, which stands next to helm."""
    folder = Path(program("helm")).parent / "crds"
    require(folder.is_dir(), "the schemas of the Prometheus Operator and KEDA are not installed")
    return folder


def closed_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema with unknown fields forbidden, because an API server drops them.

    An integer-or-text field accepts any value.
    """
    if schema.get("x-kubernetes-int-or-string"):
        return {}
    closed = dict(schema)
    if "properties" in schema:
        closed["properties"] = {name: closed_schema(each) for name, each in schema["properties"].items()}
        is_open = "additionalProperties" in schema or schema.get("x-kubernetes-preserve-unknown-fields")
        if not is_open and set(schema["properties"]) != {"apiVersion", "kind", "metadata", "spec", "status"}:
            closed["additionalProperties"] = False
        if closed["properties"].get("metadata") == {"type": "object", "additionalProperties": False}:
            closed["properties"]["metadata"] = {"type": "object"}
    if "items" in schema:
        closed["items"] = closed_schema(schema["items"])
    return closed


def test_ingress_accepts_the_largest_upload_and_repeats_none(full: Objects) -> None:
    """The Ingress passes bodies over the limit, which the service refuses, and repeats no POST without a key."""
    annotations = full["Ingress", "photos"]["metadata"]["annotations"]
    size = annotations["nginx.ingress.kubernetes.io/proxy-body-size"]
    assert size.endswith("m") and int(size[:-1]) * 1024 * 1024 > max_body_bytes(Settings().max_upload_bytes)
    assert "non_idempotent" not in annotations["nginx.ingress.kubernetes.io/proxy-next-upstream"]


def test_ingress_allows_metrics_and_console_only_from_named_networks(full: Objects) -> None:
    """/metrics, /readyz and /console have a separate Ingress, which only the named networks may use."""
    spec = full["Ingress", "photos-operators"]["spec"]
    assert {each["path"] for each in spec["rules"][0]["http"]["paths"]} == {"/metrics", "/readyz", "/console"}
    ranges = "nginx.ingress.kubernetes.io/whitelist-source-range"
    assert full["Ingress", "photos-operators"]["metadata"]["annotations"][ranges] == "10.0.0.0/8"
    assert ranges not in full["Ingress", "photos"]["metadata"]["annotations"]
    assert spec["tls"] == full["Ingress", "photos"]["spec"]["tls"]


def test_example_in_the_docs_renders(tmp_path: Path) -> None:
    """The chart accepts the values in docs/deploy.md unchanged, and the service trusts a proxy in front of it."""
    text = (ROOT / "docs/deploy.md").read_text()
    (example,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    objects = objects_of(render(yaml.safe_load(example), tmp_path))
    assert objects["ConfigMap", "photos"]["data"]["TRUSTED_PROXIES"]
    assert {"Ingress", "ServiceMonitor", "PrometheusRule"} <= {kind for kind, _ in objects}


def test_every_selector_finds_its_pods(rendered: str) -> None:
    """Services, monitors, budgets, policies and deployments select the pods of the right role by their labels."""
    objects = objects_of(rendered)
    labels = {role: pod["metadata"]["labels"] for role, pod in pods_of(objects)}
    selects = {
        ("Service", "photos"): {"web"},
        ("Service", "photos-metrics"): {"web", "worker"},
        **{(kind, f"photos-{role}"): {role} for kind in ("Deployment", "PodDisruptionBudget", "NetworkPolicy")
           for role in ("web", "worker")},
    }
    for key, roles in selects.items():
        if key not in objects:
            assert key[0] == "NetworkPolicy"
            continue
        spec = objects[key]["spec"]
        selector = spec.get("podSelector") or spec["selector"]
        wanted = selector.get("matchLabels", selector)
        assert {role for role in labels if wanted.items() <= labels[role].items()} == roles
    if monitor := objects.get(("ServiceMonitor", "photos")):
        wanted = monitor["spec"]["selector"]["matchLabels"]
        assert [key for key, each in objects.items()
                if key[0] == "Service" and wanted.items() <= each["metadata"]["labels"].items()] == [
            ("Service", "photos-metrics")
        ]


def test_chart_ships_the_alerts_and_dashboards_of_the_repository(full: Objects) -> None:
    """The chart ships grafana/alerts.yml and the dashboards unchanged."""
    rule = full["PrometheusRule", "photos"]["spec"]
    assert rule == yaml.safe_load((ROOT / "grafana/alerts.yml").read_text())
    boards = full["ConfigMap", "photos-dashboards"]["data"]
    assert boards and boards == {
        path.name: path.read_text() for path in sorted((ROOT / "grafana/dashboards").glob("*.json"))
    }
    assert len(json.dumps(boards)) < 1_000_000  # the limit of a ConfigMap is 1 MiB


@pytest.mark.parametrize(
    ("values", "text"),
    [
        (LEAST | {"image": {}}, "image.repository is required"),
        (LEAST | {"config": {"STORAGE_BACKEND": "object"}}, "config.PUBLIC_URL is required"),
        (LEAST | {"secrets": {"REDIS_URL": "redis://redis"}}, "secrets.MONGODB_URI is required"),
        (LEAST | {"secrets": {"REDIS_URL": "redis://r", "MONGODB_URI": "mongodb://m/p"}}, "one of secrets.JWT_SECRET"),
        (LEAST | {"config": {"PUBLIC_URL": "https://photos.example.com"}}, "pods share no disk"),
        (LEAST | {"config": LEAST["config"] | {"STORAGE_BACKEND": "local"}}, "pods share no disk"),
        (OWN_SECRET | {"config": {"PUBLIC_URL": "https://photos.example.com"}}, "pods share no disk"),
        (LEAST | {"existingSecret": "vault-photos"}, "secrets and existingSecret are both given"),
        (LEAST | {"ingress": {"enabled": True}}, "ingress.host is required"),
        (LEAST | {"web": {"replicas": "two"}}, "replicas"),
        (LEAST | {"wroker": {}}, "wroker"),
    ],
)
def test_faulty_value_fails_the_installation_with_its_name(values: dict[str, Any], text: str, tmp_path: Path) -> None:
    """`helm install` fails and names a value that is missing, of a wrong type or misspelt, before any pod starts."""
    found = helm(*TEMPLATE, values=values, folder=tmp_path)
    assert found.returncode != 0 and text in found.stderr, found.stderr


def test_chart_has_the_version_of_the_package() -> None:
    """appVersion, which is the default tag of the image, is the version in setup.cfg."""
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"] == setup["metadata"]["version"]
