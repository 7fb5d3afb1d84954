"""The settings of the storage `object`: what is read, and what is refused at the start."""

from __future__ import annotations

import sys
from typing import cast

import pytest

from pipeline.errors import ConfigurationError
from pipeline.settings import Settings
from pipeline.plugins.storage_object import ObjectSettings, ObjectStorage, register_settings, register_storage_backends
from tests.integration.object_storages import PUBLIC_ID, only_own_settings, changed, own, save
from tests.moto_server import REGION, MotoServer

__all__ = ["only_own_settings", "own"]  # fixtures


def test_environment_does_not_change_what_is_set(
    moto: MotoServer, own: ObjectSettings, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """AWS_ variables with the keys, session and endpoint of another account have no effect."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "other")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "other")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "other")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_BUCKET", "other")
    monkeypatch.setenv("AWS_REGION", "eu-north-1")
    url = save(ObjectStorage(changed(own, region=REGION), budget_seconds=20))
    assert moto.keys(bucket) == [f"some/prefix/{PUBLIC_ID}"]
    assert url.startswith(moto.url) and "Security-Token" not in url and f"%2F{REGION}%2F" in url


def test_keys_come_from_the_environment_when_none_are_set(
    moto: MotoServer, own: ObjectSettings, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The AWS_ variables are used when the settings have no keys."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", moto.access_key_id)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", moto.secret_access_key)
    save(ObjectStorage(ObjectSettings(url=own.url, endpoint=own.endpoint), budget_seconds=20))
    assert moto.keys(bucket) == [f"some/prefix/{PUBLIC_ID}"]


def built(**variables: str) -> ObjectStorage:
    """Return the storage that the pipeline builds from these PLUGIN_OBJECT_ variables."""
    settings = Settings(storage_timeout_seconds=10).with_plugin_variables(
        {f"PLUGIN_OBJECT_{name}": value for name, value in variables.items()}
    )
    ((name, build),) = register_storage_backends(settings)
    assert (name, ObjectSettings) == next(register_settings())
    return cast(ObjectStorage, build())


def test_settings_reach_the_storage(moto: MotoServer, bucket: str) -> None:
    """The PLUGIN_OBJECT_ variables are enough to build the storage."""
    storage = built(
        URL=f"s3://{bucket}",
        ENDPOINT=moto.url,
        ACCESS_KEY_ID=moto.access_key_id,
        SECRET_ACCESS_KEY=moto.secret_access_key,
        PUBLIC_URL="https://cdn.example",
    )
    assert save(storage) == f"https://cdn.example/{PUBLIC_ID}"
    assert storage._budget_seconds == 9


def test_obstore_is_imported_only_when_the_storage_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most services use another storage and need no obstore. This storage names the command that installs it."""
    monkeypatch.setitem(sys.modules, "obstore", None)
    ((_, build),) = register_storage_backends(Settings().with_plugin_variables({"PLUGIN_OBJECT_URL": "s3://photos"}))
    with pytest.raises(ConfigurationError, match=r"pip install 'ai-queue-pipeline\[object\]'"):
        build()


KEYS = {"ACCESS_KEY_ID": "id", "SECRET_ACCESS_KEY": "c2VjcmV0"}
IN_NETWORK = "http://minio:9000"


@pytest.mark.parametrize(
    "variables, fault",
    [
        ({}, "PLUGIN_OBJECT_URL: Field required"),
        ({"URL": "memory://"}, "PLUGIN_OBJECT_URL: must look like s3://"),
        ({"URL": "file:///tmp/photos"}, "PLUGIN_OBJECT_URL: must look like s3://"),
        ({"URL": "s3://"}, "PLUGIN_OBJECT_URL: must look like s3://"),
        ({"URL": "s3://key:hidden@photos"}, "PLUGIN_OBJECT_URL: must look like s3://"),
        ({"URL": "s3://photos/a/../b"}, "PLUGIN_OBJECT_URL: must look like s3://"),
        ({"URL": "s3://photos/.."}, "PLUGIN_OBJECT_URL: must look like s3://"),
        ({"URL": "s3://photos//a"}, "PLUGIN_OBJECT_URL: must look like s3://"),
        ({"URL": "s3://photos/a b"}, "PLUGIN_OBJECT_URL: must look like s3://"),
        ({"URL": "s3://photos?a=hidden"}, "PLUGIN_OBJECT_URL: must look like s3://"),
        ({"URL": "s3://photos", "ENDPOINT": "minio:9000"}, "PLUGIN_OBJECT_ENDPOINT: must be an http"),
        ({"URL": "s3://photos", "ENDPOINT": "https://id:hidden@minio"}, "PLUGIN_OBJECT_ENDPOINT: must be an http"),
        ({"URL": "s3://photos", "ENDPOINT": IN_NETWORK}, "PLUGIN_OBJECT_ENDPOINT must be https"),
        ({"URL": "s3://photos", "ENDPOINT": "http://127.0.0.1.example"}, "PLUGIN_OBJECT_ENDPOINT must be https"),
        ({"URL": "s3://photos", "PUBLIC_URL": "http://cdn.example"}, "PLUGIN_OBJECT_PUBLIC_URL: must be https"),
        ({"URL": "s3://photos", "PUBLIC_URL": "https://cdn.example?a=b"}, "PLUGIN_OBJECT_PUBLIC_URL: must be https"),
        ({"URL": "s3://photos", "ACCESS_KEY_ID": "hidden"}, "PLUGIN_OBJECT_SECRET_ACCESS_KEY need each other"),
        ({"URL": "s3://photos", "SECRET_ACCESS_KEY": "hidden"}, "PLUGIN_OBJECT_ACCESS_KEY_ID and"),
        ({"URL": "s3://photos", "URL_SECONDS": "604801"}, "PLUGIN_OBJECT_URL_SECONDS: Input should be less than"),
        ({"URL": "s3://photos", "URL_SECONDS": "0"}, "PLUGIN_OBJECT_URL_SECONDS: Input should be greater than"),
        ({"URL": "az://photos", "REGION": "eu"} | KEYS, "PLUGIN_OBJECT_REGION means nothing for az://"),
        ({"URL": "gs://photos", "ENDPOINT": "https://x"} | KEYS, "PLUGIN_OBJECT_ENDPOINT means nothing for gs://"),
        ({"URL": "gs://photos"} | KEYS, "PLUGIN_OBJECT_ACCESS_KEY_ID means nothing for gs://"),
        ({"URL": "az://photos", "ACCESS_KEY_ID": "x", "SECRET_ACCESS_KEY": "hidden!"}, "_KEY must be base64 for az://"),
        ({"URL": "az://photos"}, "PLUGIN_OBJECT_URL: GenericError: Generic MicrosoftAzure error: Account must be"),
    ],
)
def test_setting_that_cannot_work_stops_the_start(variables: dict[str, str], fault: str) -> None:
    """The message names the variable and shows no value."""
    with pytest.raises(ConfigurationError) as caught:
        built(**variables)
    assert fault in caught.value.message and "hidden" not in caught.value.message


@pytest.mark.parametrize(
    "variables",
    [
        {"ENDPOINT": IN_NETWORK, "PUBLIC_URL": "https://cdn.example"},
        {"ENDPOINT": IN_NETWORK, "PUBLIC_URL": "http://localhost:9000/photos"},
        {"ENDPOINT": "http://localhost:9000"},
        {"ENDPOINT": "https://minio:9000/path"},
    ],
)
def test_plain_http_is_allowed_when_image_urls_are_https_or_local(variables: dict[str, str]) -> None:
    """A MinIO in the own network needs no certificate if images are fetched from another address."""
    assert built(URL="s3://photos", **KEYS, **variables)


@pytest.mark.parametrize("key", ["hidden", '"hidden"', '{"private_key": "hidden"}', '{"private_key": "hidden'])
def test_credentials_that_cannot_be_read_are_not_shown(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    """An environment variable may contain Google's key: the error about an invalid key does not show it."""
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT_KEY", key)
    with pytest.raises(ConfigurationError, match="PLUGIN_OBJECT_URL: GenericError") as caught:
        built(URL="gs://photos")
    assert "hidden" not in caught.value.message and caught.value.__context__ is None
