"""compose.yaml as Compose reads it: valid, without default passwords, with restricted containers and our settings."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from redis import Redis
from redis.exceptions import AuthenticationError

from pipeline.embedded import find_server
from pipeline.settings import Settings
from tests.factories import SECRET
from tests.requirements import program
from tests.service import ROOT, AiService, Service, inherited
from tests.toxiproxy import free_port

Model = dict[str, Any]
OURS = ("pipeline-1", "pipeline-2")
SECRETS = ("JWT_SECRET", "VALKEY_PASSWORD", "MONGO_ROOT_PASSWORD", "MONGO_PASSWORD", "MONGO_KEY", "GRAFANA_PASSWORD")
MB = 1024 * 1024


def copied(folder: Path) -> Path:
    """Copy the files that compose.yaml needs to a folder where a test may make its .env."""
    for name in ("deploy", "grafana"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns(".env", "service.env"))
    return folder


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy without .env."""
    return copied(tmp_path)


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy with .env."""
    checkout = copied(tmp_path_factory.mktemp("checkout"))
    assert run("deploy/new-env", checkout=checkout).returncode == 0
    return checkout


def run(*command: object, checkout: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*map(str, command)], cwd=checkout, env=inherited(), capture_output=True, text=True, check=False
    )


def config(checkout: Path) -> subprocess.CompletedProcess[str]:
    """Run `compose-config`, which does what `docker compose config` does: it uses the library of Compose."""
    return run(program("compose-config", hint=".ci/run makes it"), checkout / "deploy/compose.yaml", checkout=checkout)


@pytest.fixture(scope="module")
def model(ready: Path) -> Model:
    """The content of the file, with the values of .env put in."""
    done = config(ready)
    assert done.returncode == 0, done.stderr
    read: Model = json.loads(done.stdout)
    return read


def settings_of(service: Model) -> Settings:
    """Return the settings of one of our services; no variable may be unknown."""
    given = {name.lower(): value for name, value in service["environment"].items()}
    assert given.keys() <= Settings.model_fields.keys()
    return Settings(host="0.0.0.0", data_dir=Path("/data"), **given)


def test_compose_without_env_names_the_missing_step(checkout: Path) -> None:
    """Without .env nothing starts, and the message names the command that makes .env; no password has a default."""
    done = config(checkout)
    assert done.returncode != 0 and "run deploy/new-env first" in done.stderr
    variables = set(re.findall(r"\$\{(\w+)", (ROOT / "deploy/compose.yaml").read_text()))
    assert set(SECRETS) < variables and all(name in done.stderr for name in variables)


def test_new_env_makes_new_passwords_each_time_and_overwrites_none(checkout: Path) -> None:
    """The passwords are long and random, only the owner can read the file, and a second call does not change it."""
    made = []
    for _ in range(2):
        assert run("deploy/new-env", checkout=checkout).returncode == 0
        file = checkout / "deploy/.env"
        assert file.stat().st_mode & 0o777 == 0o600
        values = dict(line.split("=", 1) for line in file.read_text().splitlines() if not line.startswith("#"))
        assert all(re.fullmatch("[0-9a-f]{64}", values[name]) for name in SECRETS)
        made.append(tuple(values[name] for name in SECRETS))
        second_call = run("deploy/new-env", "photos.example.com", checkout=checkout)
        assert second_call.returncode == 1 and "PUBLIC_URL=http://localhost:8080" in file.read_text()
        file.unlink()
    assert len({*made[0], *made[1]}) == 2 * len(SECRETS)


def test_compose_with_a_host_name_serves_the_internet(checkout: Path) -> None:
    """With a host name Caddy listens on ports 80 and 443, and the service has this name in its address."""
    assert run("deploy/new-env", "photos.example.com", checkout=checkout).returncode == 0
    services = json.loads(config(checkout).stdout)["services"]
    published = [(port.get("host_ip"), port["published"]) for port in services["caddy"]["ports"]]
    assert published == [(None, "80"), (None, "443")]
    assert services["caddy"]["environment"]["PIPELINE_SITE"] == "photos.example.com"
    assert settings_of(services["pipeline-1"]).served_at == "https://photos.example.com"


def test_compose_gives_both_services_the_same_settings(model: Model) -> None:
    """Both processes have the same settings and share queue, assets and images; the queue is fair between users."""
    first, second = (model["services"][name] for name in OURS)
    assert first == second
    settings = settings_of(first)
    assert settings.queue_fairness == "user" and settings.storage_name == "local"
    assert settings.redis_url.get_secret_value().endswith("@valkey:6379/0")
    assert "replicaSet=" in settings.mongodb_uri.get_secret_value()
    assert [(each["source"], each["target"]) for each in first["volumes"]] == [("data", "/data")]
    grace = first["stop_grace_period"]
    assert grace.endswith("s") and float(grace[:-1]) > settings.lame_duck_seconds + settings.shutdown_seconds + 2
    assert int(first["mem_limit"]) > settings.decode_memory_mb * MB


def test_compose_has_room_for_all_jobs(model: Model) -> None:
    """Valkey can store MAX_BACKLOG jobs. It refuses writes before its container runs out of memory and is killed."""
    valkey = model["services"]["valkey"]
    (most,) = re.findall(r"--maxmemory (\d+)gb ", valkey["command"][-1])
    assert settings_of(model["services"]["pipeline-1"]).max_backlog * 600 < int(most) * 1024 * MB
    # The rest is for copies of the data that change while Valkey rewrites the append-only file.
    assert int(valkey["mem_limit"]) >= 1.5 * int(most) * 1024 * MB


@pytest.mark.parametrize("name", [*OURS, "caddy", "valkey", "mongo", "prometheus", "grafana"])
def test_compose_restricts_each_container(model: Model, name: str) -> None:
    """No container can write its root, gain rights, use all memory or fill the disk with its log; all restart."""
    service = model["services"][name]
    assert service["read_only"] and service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"] and service["restart"] == "unless-stopped"
    assert int(service["mem_limit"]) >= 256 * MB and service["pids_limit"] and service["logging"]["options"]["max-size"]
    # The health check of the service is in its image.
    assert name in OURS or service["healthcheck"]["test"]
    public = [port for port in service.get("ports", []) if not str(port.get("host_ip", "")).startswith("127.")]
    assert public == []
    assert service["image"].rpartition(":")[2] != "latest" or name in OURS


def test_compose_mounts_files_that_exist(model: Model, ready: Path) -> None:
    """Each bind mount is read-only and its file exists: Compose would make an empty folder for a missing file."""
    mounts = [each for service in model["services"].values() for each in service.get("volumes", [])]
    binds = [each for each in mounts if each["type"] == "bind"]
    assert len(binds) >= 7
    for bind in binds:
        assert Path(bind["source"]).exists(), bind
        assert bind["read_only"]
    assert {each["source"] for each in mounts if each["type"] == "volume"} == model["volumes"].keys()
    build = model["services"]["pipeline-1"]["build"]
    assert (Path(build["context"]), build["dockerfile"]) == (ready, "deploy/Containerfile")


def test_compose_protects_valkey_with_a_password(model: Model, tmp_path: Path) -> None:
    """The command in the file starts a server that requires the password; the list of processes does not show it."""
    valkey, port = model["services"]["valkey"], free_port()
    (tmp_path / "valkey-server").symlink_to(find_server())
    script = valkey["command"][-1].replace("$$", "$").replace("/data", f"{tmp_path} --port {port}")
    environment = valkey["environment"] | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    with subprocess.Popen([*valkey["command"][:-1], script], env=environment, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        next(line for line in process.stdout if b"Ready to accept connections" in line)
        with pytest.raises(AuthenticationError), Redis(port=port) as unauthenticated:
            unauthenticated.ping()
        password = valkey["environment"]["VALKEY_PASSWORD"]
        with Redis(port=port, password=password) as client:
            assert client.config_get("appendonly") == {"appendonly": "yes"}
        assert password not in Path(f"/proc/{process.pid}/cmdline").read_text()
        process.terminate()
        process.stdout.read()


def test_compose_processes_share_images(
    model: Model, tmp_path: Path, redis_url: str, mongo_uri: str, ai_service: AiService
) -> None:
    """With the settings of the file and one volume, one process stores an image and the other shows and deletes it."""
    environment = model["services"]["pipeline-1"]["environment"] | {"REDIS_URL": redis_url, "MONGODB_URI": mongo_uri}
    environment |= {"JWT_SECRET": SECRET, "LAME_DUCK_SECONDS": "0"}
    one, two = (Service(tmp_path / "data", ai_service.url, **environment) for _ in OURS)
    with one, two:
        asset_id = one.upload().json()["data"]["assetId"]
        original = two.get(f"/api/assets/{asset_id}", wait=60).json()["data"]["images"]["original"]["url"]
        path = original.removeprefix(environment["PUBLIC_URL"])
        assert [each.get(path).status_code for each in (one, two)] == [200, 200]
        assert httpx.delete(f"{two.url}/api/assets/{asset_id}", headers=two.headers()).status_code == 204
        assert [each.get(path).status_code for each in (one, two)] == [404, 404]


def test_compose_is_monitored(model: Model, ready: Path) -> None:
    """Prometheus accepts its configuration and scrapes both processes; Grafana has the address of Prometheus."""
    promtool = program("promtool", hint="apt install prometheus")
    shutil.copy(ready / "grafana/alerts.yml", ready / "deploy/compose/")
    done = run(promtool, "check", "config", ready / "deploy/compose/prometheus.yml", checkout=ready)
    assert done.returncode == 0, done.stdout + done.stderr
    scraped = yaml.safe_load((ROOT / "deploy/compose/prometheus.yml").read_text())["scrape_configs"]
    of_ours = yaml.safe_load((ROOT / "grafana/prometheus.yml").read_text())["scrape_configs"]
    assert [each["job_name"] for each in scraped] == [each["job_name"] for each in of_ours]
    assert scraped[0]["static_configs"] == [{"targets": [f"{name}:8080" for name in OURS]}]
    sources = yaml.safe_load((ROOT / "grafana/provisioning/datasources/prometheus.yml").read_text())["datasources"]
    assert [each["url"] for each in sources] == ["http://prometheus:9090"]


def test_compose_proxy_accepts_our_caddyfile(model: Model, ready: Path) -> None:
    """Caddy accepts the Caddyfile with the variables of compose.yaml, and sends requests to both processes."""
    given = model["services"]["caddy"]["environment"]
    command = [program("caddy"), "adapt", "--config", str(ready / "deploy/caddy/Caddyfile")]
    done = subprocess.run(command, env=inherited() | given, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(f'"dial":"{name}:8080"' in done.stdout for name in OURS) and '"listen":[":80"]' in done.stdout
