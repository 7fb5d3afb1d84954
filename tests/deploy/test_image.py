"""The built container image: its content, the user that runs it, and one photo processed on a read-only root."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import pipeline
from pipeline.demo import pictures
from tests.deploy.image import ContainerService, Image, buildah
from tests.factories import SECRET
from tests.toxiproxy import free_port

USER = 10001
# Any user of group 0, as OpenShift runs images.
ANY_USER = 1_000_680_000
MB = 1_000_000
# The service with all extras, without the base image. Most of it is OpenCV and ONNX Runtime for the local AI.
LARGEST_BYTES = 600 * MB


@pytest.fixture(scope="module")
def image() -> Iterator[Image]:
    """The image of this checkout."""
    with Image() as image:
        yield image


def test_image_configuration_names_user_volume_and_health_command(image: Image) -> None:
    """The image does not run as root, has one volume, ends by SIGTERM and names its health command and version."""
    config = image.config
    assert config["User"] == f"{USER}:0" and config["StopSignal"] == "SIGTERM"
    assert config["Volumes"] == {"/data": {}} and config["ExposedPorts"] == {"8080/tcp": {}}
    assert config["Healthcheck"]["Test"] == ["CMD", "pipeline", "health"]
    assert config["Entrypoint"] == ["pipeline"] and config["Cmd"] == ["serve"]
    label = "org.opencontainers.image"
    assert config["Labels"][f"{label}.version"] == pipeline.__version__
    assert config["Labels"][f"{label}.licenses"] == "MIT" and config["Labels"][f"{label}.revision"]


def test_image_contains_no_build_tools(image: Image) -> None:
    """The image has no pip, no compiler, no source, no package index settings and no certificate of the builder."""
    site = next((image.files / "opt/pipeline/lib").glob("python3.*/site-packages"))
    installed = {each.name.split("-")[0] for each in site.glob("*.dist-info")}
    assert "ai_queue_pipeline" in installed and installed.isdisjoint({"pip", "setuptools", "pytest", "pillow_heif"})
    for name in ("build", "src", "wheels", "etc/pip.conf", "etc/pip-ca.crt"):
        assert not (image.files / name).exists(), name
    assert not any("PIP" in name or "SSL" in name for name in image.variables)
    assert "pip.conf" not in image.history
    # The image has byte code, because no process can write it later.
    assert list((site / "pipeline").glob("__pycache__/cli.*.pyc"))


def test_image_is_small(image: Image, capsys: pytest.CaptureFixture[str]) -> None:
    """The layers that the service adds to its base image are smaller than LARGEST_BYTES."""
    base, *own = image.layer_bytes
    with capsys.disabled():
        print(f" [image: {sum(own) / MB:.0f} MB on a base of {base / MB:.0f} MB]", end="")
    assert sum(own) < LARGEST_BYTES


def test_image_without_a_secret_names_the_missing_option(image: Image, tmp_path: Path) -> None:
    """A plain `docker run` ends with one line that names the option to add."""
    done = image.run(tmp_path, USER, "pipeline", "serve")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert "docker run -e JWT_SECRET=" in done.stderr


def test_image_names_the_user_that_must_own_the_volume(image: Image, tmp_path: Path) -> None:
    """With a folder of root mounted as /data, the process prints one line that names the user that must own it."""
    (tmp_path / "data").mkdir()
    done = image.run(tmp_path, USER, "pipeline", "serve", JWT_SECRET=SECRET)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert f"DATA_DIR: /data cannot be used: Permission denied; this process runs as user {USER}" in done.stderr


def test_only_the_volume_and_tmp_can_be_written(image: Image, tmp_path: Path) -> None:
    """User 10001 owns only /data in the image; on a read-only root it can write only in /data and /tmp."""
    find = ("find", "/", "-xdev", "-user", str(USER))
    assert buildah("run", "--isolation", "chroot", "--user", "0", image.container, "--", *find) == "/data"
    done = image.run(tmp_path, USER, "find", "/", "-xdev", "-writable", "-not", "-type", "l")
    assert set(done.stdout.split()) == {"/data", "/tmp"}


def test_check_passes_in_the_image(image: Image) -> None:
    """`pipeline check` in the image finds no failure, and the local AI provider starts."""
    settings = {"JWT_SECRET": SECRET, "PORT": str(free_port()), "PUBLIC_URL": "http://localhost:8080"}
    variables = [argument for name, value in settings.items() for argument in ("--env", f"{name}={value}")]
    output = buildah("run", "--isolation", "chroot", *variables, image.container, "--", "pipeline", "check")
    assert "failed" not in output and "provider local: starts" in output


@pytest.mark.parametrize("user", [USER, ANY_USER])
def test_photo_is_processed_on_a_read_only_root(image: Image, tmp_path: Path, user: int) -> None:
    """The service runs as process 1 without capabilities, processes a photo with the local AI and ends on SIGTERM."""
    port = str(free_port())
    settings = {"PORT": port, "PUBLIC_URL": f"http://localhost:{port}", "PREVIEW_PROCESSES": "1"}
    with ContainerService(image, tmp_path, user, **settings) as service:
        path, category = pictures()[0]
        reply = service.upload(image=path.read_bytes(), category=category)
        assert reply.status_code == 202, reply.text
        asset = service.get(f"/api/assets/{reply.json()['data']['assetId']}", wait=60).json()["data"]
        assert asset["status"] == "active" and asset["images"]["previews"]
        health = image.run(tmp_path, user, "pipeline", "health", "--ready", PORT=port, JWT_SECRET=SECRET)
        assert (health.returncode, health.stdout) == (0, "ready\n")
        assert service.stop() == 0
