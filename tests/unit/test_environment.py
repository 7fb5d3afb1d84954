"""Variables of the environment that are no settings: which stop the start, which cause a warning, which do nothing."""

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

MISTYPED = [
    ("REDIS_ULR", "REDIS_URL", "two letters exchanged"),
    ("REDIS_UR", "REDIS_URL", "a letter missing"),
    ("REDIS_URLL", "REDIS_URL", "a letter twice"),
    ("MONGDB_URI", "MONGODB_URI", "a letter missing inside"),
    ("MONOGDB_URI", "MONGODB_URI", "two letters exchanged inside"),
    ("JWT_SERCET", "JWT_SECRET", "the name of a secret"),
    ("STORAGE_BAKCEND", "STORAGE_BACKEND", "the name of a choice"),
    ("redis_ulr", "REDIS_URL", "in small letters, as settings may be written"),
    ("CONCURENCY", "CONCURRENCY", "a doubled letter single"),
]
SIMILAR = [
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
    """The working directory of a process that has no variable of the service."""
    monkeypatch.chdir(tmp_path)
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.mark.fault("E28")
@pytest.mark.parametrize(("name", "meant"), [row[:2] for row in MISTYPED], ids=[row[2] for row in MISTYPED])
def test_mistyped_setting_is_recognized(name: str, meant: str) -> None:
    """A mistyped name stops the start: without it the service would run with another value."""
    assert unknown({name: "x"}) == [Unknown(name, meant, is_slip=True)]


@pytest.mark.fault("E28")
@pytest.mark.parametrize(("name", "meant"), [row[:2] for row in SIMILAR], ids=[row[2] for row in SIMILAR])
def test_similar_name_causes_a_warning_only(name: str, meant: str) -> None:
    """A similar name may be a variable of another program on the machine: it does not stop the start."""
    assert unknown({name: "x"}) == [Unknown(name, meant)]


@pytest.mark.fault("E28")
@pytest.mark.parametrize("name", OTHERS)
def test_common_name_of_other_programs_never_stops_a_start(name: str) -> None:
    """Variables that Kubernetes, Docker images, shells and drivers set are not taken for mistyped settings."""
    assert not any(each.is_slip for each in unknown({name: "x"}))


@pytest.mark.fault("E28")
def test_kubernetes_variables_cause_no_warning() -> None:
    """Kubernetes sets variables for each of its services: warnings about them would hide the important one."""
    assert unknown({name: "x" for name in OTHERS if name.startswith(("KUBERNETES_", "REDIS_SERVICE", "AI_"))}) == []


@pytest.mark.fault("E28")
def test_no_setting_is_taken_for_a_mistyped_other_one() -> None:
    """Each setting is known, and the name of no setting looks like another one mistyped."""
    assert unknown(dict.fromkeys(NAMES, "x")) == []
    for name in NAMES:
        others = [other for other in NAMES if other != name]
        assert not any(each.is_slip for each in find_unknown({name: "x"}, {}, others, PLUGIN_PREFIX)), name


@pytest.mark.fault("E28")
def test_mistyped_name_causes_a_warning_only_if_the_setting_is_set() -> None:
    """If the right name is set too, a mistyped one does not stop the start."""
    assert unknown({"REDIS_ULR": "x", "REDIS_URL": "y"}) == [Unknown("REDIS_ULR", "REDIS_URL")]


@pytest.mark.fault("E28")
def test_every_unknown_name_of_the_file_causes_a_warning() -> None:
    """`.env` has settings of the service only; the plugins check their own variables."""
    assert unknown({}, {"FAVOURITE_COLOUR": "red", "PLUGIN_ACME_KEY": "x"}) == [Unknown("FAVOURITE_COLOUR", "")]


@pytest.mark.fault("E28")
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PORT 8080", ".env, line 1: must look like NAME=value"),
        (b"PORT=1\nREDIS_URL\n", ".env, line 2: must look like NAME=value"),
        (b"PORT='1\n", ".env, line 1: must look like NAME=value"),
        (b"PORT=\xff\n", ".env is not UTF-8"),
    ],
    ids=["no equals sign", "no value", "an open quote", "no text"],
)
def test_invalid_file_is_an_error_of_one_line(folder: Path, content: bytes, message: str) -> None:
    """An invalid line of `.env` stops the start; python-dotenv would skip it with a warning."""
    (folder / ".env").write_bytes(content)
    with pytest.raises(ConfigurationError) as caught:
        settings_module.load()
    assert caught.value.message == message


@pytest.mark.fault("E28")
def test_folder_named_env_is_ignored(folder: Path) -> None:
    """A folder `.env`, as some users name their virtual environment, is not read as a file."""
    (folder / ".env").mkdir()
    assert environment.read()[1] == {}
    assert settings_module.load().port == 8080


@pytest.mark.fault("E28")
def test_all_faults_are_one_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One error has a mistyped name and an invalid address, without the password."""
    for name, value in {"REDIS_ULR": "redis://h", "MONGODB_URI": "postgres://u:pw@h", "DATA_DIR": "d"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError) as caught:
        settings_module.load()
    assert "there is no setting REDIS_ULR (did you mean REDIS_URL?)" in caught.value.message
    assert "MONGODB_URI: must look like" in caught.value.message and "pw" not in caught.value.message
