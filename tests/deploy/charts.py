"""The Helm chart as helm renders it: the values of the tests, and the Kubernetes objects that come out."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.factories import SECRET
from tests.requirements import program

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy/helm/pipeline"
# A helm that was built from source assumes an old Kubernetes version, so the version is named.
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
VALUES = {"least": LEAST, "full": FULL, "own secret": OWN_SECRET, "fixed": FIXED}

# The key is the kind and the name of the object.
Objects = dict[tuple[str, str], dict[str, Any]]


def helm(*arguments: str, values: dict[str, Any], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run helm with these values, written to a file in the folder."""
    helm_program = program("helm")
    path = folder / "values.yaml"
    path.write_text(yaml.safe_dump(values))
    command = [helm_program, *arguments, "-f", str(path)]
    environment = {"HOME": str(folder), "PATH": str(Path(helm_program).parent)}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def render(values: dict[str, Any], folder: Path) -> str:
    """Return the YAML documents that `helm template` makes of the chart with these values."""
    found = helm(*TEMPLATE, values=values, folder=folder)
    assert found.returncode == 0, found.stderr
    return found.stdout


def objects_of(rendered: str) -> Objects:
    """Return the Kubernetes objects of rendered YAML documents."""
    return {(each["kind"], each["metadata"]["name"]): each for each in yaml.safe_load_all(rendered) if each}


def pods_of(objects: Objects) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the role and the pod template of both deployments."""
    for role in ("web", "worker"):
        yield role, objects["Deployment", f"photos-{role}"]["spec"]["template"]


@pytest.fixture(scope="module", params=VALUES)
def rendered(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The chart rendered with each of VALUES."""
    return render(VALUES[request.param], tmp_path_factory.mktemp("chart"))


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Objects:
    """The objects of the chart with all its options switched on."""
    return objects_of(render(FULL, tmp_path_factory.mktemp("chart")))
