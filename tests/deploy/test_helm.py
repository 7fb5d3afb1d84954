"""The Helm chart: rendered by helm itself, its objects held to the schemas of Kubernetes, the Prometheus Operator and
KEDA, and what they say of the service held to the service.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from configparser import ConfigParser
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from pipeline.handlers.multipart import max_body_bytes
from pipeline.metrics import Metrics
from pipeline.settings import Settings
from tests.factories import SECRET
from tests.parts import program, require

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy/helm/pipeline"
# The oldest one that the chart allows and the newest that the schemas know.
KUBERNETES_VERSIONS = ("1.27", "1.37.0")
# A helm of one's own making takes itself for one of an old cluster.
TEMPLATE = ("template", "photos", str(CHART), "--namespace", "shop", "--kube-version", "1.30.0")
LEAST = {
    "image": {"repository": "registry.example.com/pipeline"},
    "config": {"PUBLIC_URL": "https://photos.example.com", "STORAGE_BACKEND": "object"},
    "secrets": {
        "REDIS_URL": "rediss://redis.example.com:6379/0",
        "MONGODB_URI": "mongodb://mongo.example.com/pipeline",
        "JWT_SECRET": SECRET,
        "PLUGIN_OBJECT_URL": "s3://bucket/photos",
    },
}
FULL = LEAST | {
    "imagePullSecrets": [{"name": "registry"}],
    "ingress": {"enabled": True, "className": "nginx", "host": "photos.example.com", "tlsSecretName": "photos-tls"},
    "networkPolicy": {
        "enabled": True,
        "webFrom": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "ingress-nginx"}}}],
        "metricsFrom": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}],
        "egress": [{"ports": [{"port": 443}, {"port": 6379}, {"port": 27017}]}],
    },
    "monitoring": {"serviceMonitor": True, "prometheusRule": True, "dashboards": True, "labels": {"release": "prom"}},
    "serviceAccount": {"annotations": {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/photos"}},
    "service": {"annotations": {"example.com/team": "photos"}},
    "web": {"podAnnotations": {"example.com/a": "b"}, "env": {"MAX_SOCKETS": 5000}, "nodeSelector": {"pool": "web"}},
    "worker": {
        "autoscaling": {"keda": True},
        "env": {"CONCURRENCY": 10, "SANDBOX_PROCESSES": 2},
        "tolerations": [{"key": "gpu", "operator": "Exists"}],
    },
    "sharedDataClaim": "photos",
}
OWN_SECRET = LEAST | {"secrets": {}, "existingSecret": "vault-photos"}
FIXED = LEAST | {
    "web": {"autoscaling": {"enabled": False}},
    "worker": {"autoscaling": {"enabled": False}, "replicas": 3},
}

Objects = dict[tuple[str, str], dict[str, Any]]


def _helm(*arguments: str, values: dict[str, Any], folder: Path) -> subprocess.CompletedProcess[str]:
    helm = program("helm")
    path = folder / "values.yaml"
    path.write_text(yaml.safe_dump(values))
    command = [helm, *arguments, "-f", str(path)]
    environment = {"HOME": str(folder), "PATH": str(Path(helm).parent)}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def _render(values: dict[str, Any], folder: Path) -> str:
    found = _helm(*TEMPLATE, values=values, folder=folder)
    assert found.returncode == 0, found.stderr
    return found.stdout


def _objects(rendered: str) -> Objects:
    return {(each["kind"], each["metadata"]["name"]): each for each in yaml.safe_load_all(rendered) if each}


@pytest.fixture(scope="module", params=["least", "full", "own secret", "fixed"])
def rendered(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    values = {"least": LEAST, "full": FULL, "own secret": OWN_SECRET, "fixed": FIXED}[request.param]
    return _render(values, tmp_path_factory.mktemp("chart"))


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Objects:
    return _objects(_render(FULL, tmp_path_factory.mktemp("chart")))


def test_lint_finds_nothing(tmp_path: Path) -> None:
    """`helm lint --strict` has no complaint."""
    found = _helm("lint", str(CHART), "--strict", values=FULL, folder=tmp_path)
    assert found.returncode == 0, found.stdout + found.stderr


@pytest.mark.parametrize("version", KUBERNETES_VERSIONS)
def test_objects_are_those_of_kubernetes(rendered: str, version: str, tmp_path: Path) -> None:
    """Each object that is Kubernetes' own has only fields that its schema knows, in the oldest and newest version."""
    own = [each for each in _objects(rendered).values() if not _crd_name(each)]
    path = tmp_path / "objects.yaml"
    path.write_text(yaml.safe_dump_all(own))
    command = [program("kubernetes-validate"), "-k", version, "--strict", str(path)]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode == 0 and "INFO" in found.stdout + found.stderr, found.stdout + found.stderr


def _crd_name(found: dict[str, Any]) -> str:
    """Return `group_kinds` of an object that a custom resource definition describes, "" for those of Kubernetes."""
    group = found["apiVersion"].partition("/")[0]
    return f"{group}_{found['kind'].lower()}s" if group in ("keda.sh", "monitoring.coreos.com") else ""


def test_custom_objects_are_those_of_their_operators(full: Objects) -> None:
    """ServiceMonitor, PrometheusRule and ScaledObject have only fields that the schemas of their operators know."""
    seen = []
    for found in full.values():
        if not (name := _crd_name(found)):
            continue
        definition = yaml.safe_load((_crds() / f"{name}.yaml").read_text())
        versions = {each["name"]: each for each in definition["spec"]["versions"]}
        schema = versions[found["apiVersion"].partition("/")[2]]["schema"]["openAPIV3Schema"]
        jsonschema.Draft4Validator(_closed(schema)).validate(found)
        seen.append(found["kind"])
    assert sorted(seen) == ["PrometheusRule", "ScaledObject", "ServiceMonitor"]


def _crds() -> Path:
    folder = Path(program("helm")).parent / "crds"
    require(folder.is_dir(), "the schemas of Prometheus' and KEDA's operators are not installed")
    return folder


def _closed(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema with unknown fields forbidden (an API server drops them); integer-or-text fields take all."""
    if schema.get("x-kubernetes-int-or-string"):
        return {}
    closed = dict(schema)
    if "properties" in schema:
        closed["properties"] = {name: _closed(each) for name, each in schema["properties"].items()}
        is_open = "additionalProperties" in schema or schema.get("x-kubernetes-preserve-unknown-fields")
        if not is_open and set(schema["properties"]) != {"apiVersion", "kind", "metadata", "spec", "status"}:
            closed["additionalProperties"] = False
        if closed["properties"].get("metadata") == {"type": "object", "additionalProperties": False}:
            closed["properties"]["metadata"] = {"type": "object"}
    if "items" in schema:
        closed["items"] = _closed(schema["items"])
    return closed


def _pods(objects: Objects) -> Iterator[tuple[str, dict[str, Any]]]:
    for role in ("web", "worker"):
        yield role, objects["Deployment", f"photos-{role}"]["spec"]["template"]


def test_environment_of_pods_is_settings_the_service_takes(rendered: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a pod gets in its environment are settings of ours, valid together, with the role of its deployment."""
    objects = _objects(rendered)
    given = objects["ConfigMap", "photos"]["data"]
    secret = objects.get(("Secret", "photos"), {}).get("stringData", LEAST["secrets"])
    for role, pod in _pods(objects):
        own = {each["name"]: each["value"] for each in pod["spec"]["containers"][0]["env"]}
        values = given | secret | own
        fields = {name: value for name, value in values.items() if not name.startswith("PLUGIN_")}
        assert {name.lower() for name in fields} <= set(Settings.model_fields)
        for name, value in fields.items():
            monkeypatch.setenv(name, str(value))
        settings = Settings()
        assert settings.role.value == role
        assert settings.redis_url.get_secret_value() == "rediss://redis.example.com:6379/0"


def test_pods_have_time_to_end(rendered: str) -> None:
    """The grace period covers the sleep before SIGTERM, the lame duck, running jobs and the end itself."""
    objects = _objects(rendered)
    config = objects["ConfigMap", "photos"]["data"]
    for _, pod in _pods(objects):
        hook = pod["spec"]["containers"][0].get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", [0])
        least = int(hook[-1]) + int(config["LAME_DUCK_SECONDS"]) + int(config["SHUTDOWN_SECONDS"]) + 2
        assert pod["spec"]["terminationGracePeriodSeconds"] > least


def test_an_outage_takes_no_web_pod_out(rendered: str) -> None:
    """Web pods are asked what they lack alone, as by our proxies; worker pods, which get no requests, everything."""
    paths = {role: pod["spec"]["containers"][0]["readinessProbe"]["httpGet"]["path"]
             for role, pod in _pods(_objects(rendered))}
    assert paths == {"web": "/readyz?local", "worker": "/readyz"}


def test_ingress_takes_what_the_service_takes_and_repeats_no_upload(full: Objects) -> None:
    """Bodies above the service's own limit come through; a POST without a key is not sent to a second pod."""
    annotations = full["Ingress", "photos"]["metadata"]["annotations"]
    size = annotations["nginx.ingress.kubernetes.io/proxy-body-size"]
    assert size.endswith("m") and int(size[:-1]) * 1024 * 1024 > max_body_bytes(Settings().max_upload_bytes)
    assert "non_idempotent" not in annotations["nginx.ingress.kubernetes.io/proxy-next-upstream"]


def test_ingress_shows_numbers_and_console_to_operators_only(full: Objects) -> None:
    """As our proxy files do: those paths have an Ingress of their own, which only the named networks may use."""
    spec = full["Ingress", "photos-operators"]["spec"]
    assert {each["path"] for each in spec["rules"][0]["http"]["paths"]} == {"/metrics", "/readyz", "/console"}
    ranges = "nginx.ingress.kubernetes.io/whitelist-source-range"
    assert full["Ingress", "photos-operators"]["metadata"]["annotations"][ranges] == "10.0.0.0/8"
    assert ranges not in full["Ingress", "photos"]["metadata"]["annotations"]
    assert spec["tls"] == full["Ingress", "photos"]["spec"]["tls"]


def test_the_example_of_the_docs_is_taken(tmp_path: Path) -> None:
    """The values in docs/deploy.md are taken by the chart as they stand, and a proxy in front is trusted."""
    text = (ROOT / "docs/deploy.md").read_text()
    (example,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    objects = _objects(_render(yaml.safe_load(example), tmp_path))
    assert objects["ConfigMap", "photos"]["data"]["TRUSTED_PROXIES"]
    assert {"Ingress", "ServiceMonitor", "PrometheusRule"} <= {kind for kind, _ in objects}


def test_pods_run_with_the_least_rights(rendered: str) -> None:
    """User 10001, no capability, no token of the API server, a root file system that is read-only."""
    for _, pod in _pods(_objects(rendered)):
        spec, container = pod["spec"], pod["spec"]["containers"][0]
        assert spec["automountServiceAccountToken"] is False
        assert spec["securityContext"]["runAsUser"] == 10001 and spec["securityContext"]["runAsNonRoot"] is True
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert {each["mountPath"] for each in container["volumeMounts"]} == {"/data", "/tmp"}


def test_every_selector_finds_its_pods(rendered: str) -> None:
    """Services, monitors, budgets, policies and deployments select labels that the pods have, web and worker apart."""
    objects = _objects(rendered)
    labels = {role: pod["metadata"]["labels"] for role, pod in _pods(objects)}
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


@pytest.mark.parametrize(
    ("waiting", "oldest_seconds", "depth", "age"),
    [
        (100, 20, 100, 20),  # jobs wait
        (100, 0, 0, 0),  # they wait for a provider that is held: more workers would not help
        (0, 0, 0, 0),  # nothing to do
        ("NaN", "NaN", 0, 0),  # Redis is down
    ],
)
def test_scaling_follows_the_queue(
    full: Objects, tmp_path: Path, waiting: float, oldest_seconds: float, depth: float, age: float
) -> None:
    """KEDA's queries, as Prometheus evaluates them: jobs that wait, unless none could start; the age of the oldest."""
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


def test_rules_and_dashboards_are_those_of_the_repository(full: Objects) -> None:
    """The chart ships grafana/alerts.yml and the dashboards as they are."""
    rule = full["PrometheusRule", "photos"]["spec"]
    assert rule == yaml.safe_load((ROOT / "grafana/alerts.yml").read_text())
    boards = full["ConfigMap", "photos-dashboards"]["data"]
    assert boards and boards == {
        path.name: path.read_text() for path in sorted((ROOT / "grafana/dashboards").glob("*.json"))
    }
    assert len(json.dumps(boards)) < 1_000_000  # a ConfigMap holds 1 MiB


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
def test_what_is_missing_is_said_at_installation(values: dict[str, Any], text: str, tmp_path: Path) -> None:
    """A value that is missing, mistyped or misspelt ends `helm install` with its name; no pod fails to start later."""
    found = _helm(*TEMPLATE, values=values, folder=tmp_path)
    assert found.returncode != 0 and text in found.stderr, found.stderr


def test_changed_settings_start_new_pods(tmp_path: Path) -> None:
    """Another setting or secret changes the pods' annotation, so that Kubernetes replaces them."""
    before = dict(_pods(_objects(_render(LEAST, tmp_path))))
    for changed in (
        LEAST | {"config": LEAST["config"] | {"CONCURRENCY": 6}},
        LEAST | {"secrets": LEAST["secrets"] | {"JWT_SECRET": SECRET[::-1]}},
    ):
        for role, pod in _pods(_objects(_render(changed, tmp_path))):
            assert pod["metadata"]["annotations"] != before[role]["metadata"]["annotations"]


def test_values_reach_the_service_as_they_were_written(tmp_path: Path) -> None:
    """Large numbers, fractions, switches and texts that YAML would read otherwise are the same text in the pod."""
    written = {"MAX_UPLOAD_BYTES": 10485760, "AI_BUDGET_PER_DAY": 2.5, "AI_CACHE": True, "JWT_AUDIENCE": "0123"}
    values = LEAST | {
        "config": LEAST["config"] | written,
        "secrets": LEAST["secrets"] | {"PLUGIN_OPENAI_API_KEY": 12345678901, "JWT_PUBLIC_KEY": "one\ntwo: #3\n"},
        "web": {"env": {"OUTBOX_BYTES": 1048576}},
    }
    objects = _objects(_render(values, tmp_path))
    config, secret = objects["ConfigMap", "photos"]["data"], objects["Secret", "photos"]["stringData"]
    assert {name: config[name] for name in written} == {
        "MAX_UPLOAD_BYTES": "10485760", "AI_BUDGET_PER_DAY": "2.5", "AI_CACHE": "true", "JWT_AUDIENCE": "0123"
    }
    assert secret["PLUGIN_OPENAI_API_KEY"] == "12345678901" and secret["JWT_PUBLIC_KEY"] == "one\ntwo: #3\n"
    assert {"name": "OUTBOX_BYTES", "value": "1048576"} in dict(_pods(objects))["web"]["spec"]["containers"][0]["env"]


def test_version_is_that_of_the_package() -> None:
    """appVersion, the image's default tag, is the version in setup.cfg."""
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"] == setup["metadata"]["version"]
