"""The container image, built for real: what it holds, who runs it, and one photo on a read-only root."""

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
# Of the service with all extras, without its base: most of it is the local AI provider's OpenCV and ONNX Runtime.
LARGEST_BYTES = 600 * MB


@pytest.fixture(scope="module")
def image() -> Iterator[Image]:
    """The image of this checkout."""
    with Image() as image:
        yield image


def test_image_says_how_it_is_run(image: Image) -> None:
    """Not as root, one volume, an end by SIGTERM, and the health command; the labels name this version."""
    config = image.config
    assert config["User"] == f"{USER}:0" and config["StopSignal"] == "SIGTERM"
    assert config["Volumes"] == {"/data": {}} and config["ExposedPorts"] == {"8080/tcp": {}}
    assert config["Healthcheck"]["Test"] == ["CMD", "pipeline", "health"]
    assert config["Entrypoint"] == ["pipeline"] and config["Cmd"] == ["serve"]
    label = "org.opencontainers.image"
    assert config["Labels"][f"{label}.version"] == pipeline.__version__
    assert config["Labels"][f"{label}.licenses"] == "MIT" and config["Labels"][f"{label}.revision"]


def test_image_keeps_nothing_of_its_building(image: Image) -> None:
    """No pip, no compiler, no source, no way to a package index and no certificate of the building machine."""
    site = next((image.files / "opt/pipeline/lib").glob("python3.*/site-packages"))
    installed = {each.name.split("-")[0] for each in site.glob("*.dist-info")}
    assert "ai_queue_pipeline" in installed and installed.isdisjoint({"pip", "setuptools", "pytest", "pillow_heif"})
    for name in ("build", "src", "wheels", "etc/pip.conf", "etc/pip-ca.crt"):
        assert not (image.files / name).exists(), name
    assert not any("PIP" in name or "SSL" in name for name in image.variables)
    assert "pip.conf" not in image.history
    # Byte code is there, as nothing can write it later.
    assert list((site / "pipeline").glob("__pycache__/cli.*.pyc"))


def test_image_is_small(image: Image, capsys: pytest.CaptureFixture[str]) -> None:
    """What the service adds to its base stays below what its parts weigh today."""
    base, *own = image.layer_bytes
    with capsys.disabled():
        print(f" [image: {sum(own) / MB:.0f} MB on a base of {base / MB:.0f} MB]", end="")
    assert sum(own) < LARGEST_BYTES


def test_image_without_a_secret_says_what_to_do(image: Image, tmp_path: Path) -> None:
    """A plain `docker run` ends with one line that names the option to add."""
    done = image.run(tmp_path, USER, "pipeline", "serve")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert "docker run -e JWT_SECRET=" in done.stderr


def test_image_says_who_must_own_the_volume(image: Image, tmp_path: Path) -> None:
    """A folder of root's, mounted as /data: one line names the user that has to own it."""
    (tmp_path / "data").mkdir()
    done = image.run(tmp_path, USER, "pipeline", "serve", JWT_SECRET=SECRET)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert f"DATA_DIR: /data cannot be used: Permission denied; this process runs as user {USER}" in done.stderr


def test_only_the_volume_and_tmp_can_be_written(image: Image, tmp_path: Path) -> None:
    """User 10001 owns nothing in the image but /data; on a read-only root it can write there and in /tmp only."""
    find = ("find", "/", "-xdev", "-user", str(USER))
    assert buildah("run", "--isolation", "chroot", "--user", "0", image.container, "--", *find) == "/data"
    done = image.run(tmp_path, USER, "find", "/", "-xdev", "-writable", "-not", "-type", "l")
    assert set(done.stdout.split()) == {"/data", "/tmp"}


def test_check_passes_in_the_image(image: Image) -> None:
    """`buildah run` of `pipeline check`: everything embedded is there and works."""
    settings = {"JWT_SECRET": SECRET, "PORT": str(free_port()), "PUBLIC_URL": "http://localhost:8080"}
    variables = [argument for name, value in settings.items() for argument in ("--env", f"{name}={value}")]
    told = buildah("run", "--isolation", "chroot", *variables, image.container, "--", "pipeline", "check")
    assert "failed" not in told and "provider local: starts" in told


@pytest.mark.parametrize("user", [USER, ANY_USER])
def test_photo_is_done_on_a_read_only_root(image: Image, tmp_path: Path, user: int) -> None:
    """As process 1 without a single capability: a photo is read by the local AI, and SIGTERM ends it well."""
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
