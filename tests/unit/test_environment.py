"""Which variables are taken for mistyped settings, which stop a start, and which are left alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from pipeline import environment
from pipeline import settings as settings_module
from pipeline.environment import Unknown, find_unknown
from pipeline.errors import ConfigurationError
from pipeline.settings import PLUGIN_PREFIX, Settings

NAMES = [name.upper() for name in Settings.model_fields]

SLIPS = [
    ("REDIS_ULR", "REDIS_URL", "two letters exchanged"),
    ("REDIS_UR", "REDIS_URL", "a letter missing"),
    ("REDIS_URLL", "REDIS_URL", "a letter twice"),
    ("MONGDB_URI", "MONGODB_URI", "a letter missing inside"),
    ("MONOGDB_URI", "MONGODB_URI", "two letters exchanged inside"),
    ("JWT_SERCET", "JWT_SECRET", "of a secret"),
    ("STORAGE_BAKCEND", "STORAGE_BACKEND", "of a choice"),
    ("redis_ulr", "REDIS_URL", "in small letters, as settings may be written"),
    ("CONCURENCY", "CONCURRENCY", "a doubled letter single"),
]
NEAR = [
    ("MONGO_URI", "MONGODB_URI", "a name of other programs"),
    ("MONGODB_URL", "MONGODB_URI", "a word exchanged"),
    ("REDIS_URI", "REDIS_URL", "a word exchanged"),
    ("REDISURL", "REDIS_URL", "another way to write it"),
    ("REDIS_URLS", "REDIS_URL", "a plural"),
    ("NOTIFIER", "NOTIFIERS", "a singular"),
    ("LEASE_SECOND", "LEASE_SECONDS", "a singular of a unit"),
    ("PUBLIC_URI", "PUBLIC_URL", "a word exchanged"),
]
OTHERS = [
    *("REDIS_HOST", "REDIS_PORT", "REDIS_PASSWORD", "REDIS_SERVICE_HOST", "REDIS_PORT_6379_TCP"),
    *("MONGO_INITDB_ROOT_USERNAME", "MONGO_INITDB_ROOT_PASSWORD", "MONGODB_VERSION"),
    *("HOSTNAME", "HOSTTYPE", "PATH", "HOME", "USER", "LANG", "PWD", "SHLVL", "TERM", "TZ", "VIRTUAL_ENV", "COLUMNS"),
    *("KUBERNETES_SERVICE_HOST", "KUBERNETES_PORT", "KUBERNETES_PORT_443_TCP_ADDR"),
    *("AI_SERVICE_PORT", "AI_SERVICE_SERVICE_HOST", "PIPELINE_URL", "PIPELINE_TOKEN", "PIPELINE_PORT"),
    *("OTEL_EXPORTER_OTLP_HEADERS", "OTEL_SERVICE_NAME", "AWS_SECRET_ACCESS_KEY", "CLOUDINARY_CLOUD_NAME"),
    *("DATABASE_URL", "SECRET_KEY", "LOGLEVEL", "PYTHONUNBUFFERED", "OPENAI_API_KEY", "INVOCATION_ID", "PORTS"),
]


def unknown(variables: Mapping[str, str], in_file: Mapping[str, str] = {}) -> list[Unknown]:
    return list(find_unknown(variables, in_file, NAMES, PLUGIN_PREFIX))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of a process that has no variable of ours."""
    monkeypatch.chdir(tmp_path)
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.mark.fault("E28")
@pytest.mark.parametrize(("name", "meant"), [row[:2] for row in SLIPS], ids=[row[2] for row in SLIPS])
def test_slip_of_the_fingers_is_told_from_a_name_of_others(name: str, meant: str) -> None:
    """Running on would silently be something else."""
    assert unknown({name: "x"}) == [Unknown(name, meant, is_slip=True)]


@pytest.mark.fault("E28")
@pytest.mark.parametrize(("name", "meant"), [row[:2] for row in NEAR], ids=[row[2] for row in NEAR])
def test_near_name_is_named_but_stops_nothing(name: str, meant: str) -> None:
    """Another program on the machine may well have it."""
    assert unknown({name: "x"}) == [Unknown(name, meant)]


@pytest.mark.fault("E28")
@pytest.mark.parametrize("name", OTHERS)
def test_common_name_of_others_never_stops_a_start(name: str) -> None:
    """Kubernetes, Docker images, shells and drivers set these."""
    assert not any(each.is_slip for each in unknown({name: "x"}))


@pytest.mark.fault("E28")
def test_kubernetes_variables_are_not_even_named() -> None:
    """It sets some for each service there is; a warning for each would hide the one that counts."""
    assert unknown({name: "x" for name in OTHERS if name.startswith(("KUBERNETES_", "REDIS_SERVICE", "AI_"))}) == []


@pytest.mark.fault("E28")
def test_no_setting_is_a_slip_of_another_and_each_is_known() -> None:
    """The names in use never warn of each other."""
    assert unknown(dict.fromkeys(NAMES, "x")) == []
    for name in NAMES:
        others = [other for other in NAMES if other != name]
        assert not any(each.is_slip for each in find_unknown({name: "x"}, {}, others, PLUGIN_PREFIX)), name


@pytest.mark.fault("E28")
def test_slip_beside_the_right_name_is_only_named() -> None:
    """What was meant is in force."""
    assert unknown({"REDIS_ULR": "x", "REDIS_URL": "y"}) == [Unknown("REDIS_ULR", "REDIS_URL")]


@pytest.mark.fault("E28")
def test_every_unknown_name_of_the_file_is_named() -> None:
    """`.env` is ours alone; plugins' variables are looked at by the plugins."""
    assert unknown({}, {"FAVOURITE_COLOUR": "red", "PLUGIN_ACME_KEY": "x"}) == [Unknown("FAVOURITE_COLOUR", "")]


@pytest.mark.fault("E28")
@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"PORT 8080", ".env, line 1: must look like NAME=value"),
        (b"PORT=1\nREDIS_URL\n", ".env, line 2: must look like NAME=value"),
        (b"PORT='1\n", ".env, line 1: must look like NAME=value"),
        (b"PORT=\xff\n", ".env is not UTF-8"),
    ],
    ids=["no equals sign", "no value", "an open quote", "no text"],
)
def test_broken_file_is_one_line(folder: Path, content: bytes, told: str) -> None:
    """python-dotenv would skip such a line with a warning."""
    (folder / ".env").write_bytes(content)
    with pytest.raises(ConfigurationError) as caught:
        settings_module.load()
    assert caught.value.message == told


@pytest.mark.fault("E28")
def test_folder_of_that_name_is_no_file(folder: Path) -> None:
    """Some keep a virtual environment there."""
    (folder / ".env").mkdir()
    assert environment.read()[1] == {}
    assert settings_module.load().port == 8080


@pytest.mark.fault("E28")
def test_all_faults_are_told_at_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slip, a bad address and a bad number are one error."""
    for name, value in {"REDIS_ULR": "redis://h", "MONGODB_URI": "postgres://u:pw@h", "DATA_DIR": "d"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError) as caught:
        settings_module.load()
    assert "there is no setting REDIS_ULR (did you mean REDIS_URL?)" in caught.value.message
    assert "MONGODB_URI: must look like" in caught.value.message and "pw" not in caught.value.message
