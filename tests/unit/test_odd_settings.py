"""Every setting with odd values: each value is accepted, or refused in one line that contains no secret."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import SecretStr

from pipeline import settings as settings_module
from pipeline.errors import ConfigurationError
from pipeline.settings import Settings

ODD = [
    ("", "empty counts as not set"),
    (" ", "a blank"),
    ("0", "zero"),
    ("-1", "a negative number"),
    ("1e3", "a number with an exponent"),
    ("0x10", "a hexadecimal number"),
    ("1_000", "a number in the notation of Python"),
    ("1,000", "a number with a thousands separator, or a list"),
    ("٣", "a digit of another script"),
    ("nan", "a float that is not a number"),
    ("inf", "an infinite float"),
    ("-inf", "a negative infinite float"),
    ("1e400", "a float too large"),
    ("9" * 5000, "more digits than Python converts"),
    ("true", "a boolean"),
    ("None", "the None of Python"),
    ("null", "the null of JSON"),
    ("[]", "a list of JSON"),
    ('{"a": 1}', "an object of JSON"),
    ("=", "a pair without name and value"),
    ("a=+", "a pair without a value"),
    (",,,", "a list of empty parts"),
    ("*", "a wildcard"),
    ("http://[", "a URL for which urlsplit raises an error"),
    ("http://h:99999", "a port too high"),
    ("://", "a URL without scheme and host"),
    ("redis://:s3cretWord@h:x", "an invalid URL with a password"),
    ("postgres://u:s3cretWord@h/x", "a URL of another database"),
    ("\udcff\udcfe", "bytes that are not text"),
    ("\x1b[31mred", "a terminal escape"),
    ("a\nb", "two lines"),
    ("\x7f", "a character that cannot be printed"),
    ("../" * 50, "a path to a parent folder"),
    ("x" * 100_000, "very long"),
]
SECRETS = [name for name, field in Settings.model_fields.items() if field.annotation is SecretStr]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty working folder without `.env`, and an environment without our variables."""
    monkeypatch.chdir(tmp_path)
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.mark.fault("E28")
@pytest.mark.parametrize("name", Settings.model_fields)
def test_setting_accepts_or_refuses_odd_values(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refused value raises only ConfigurationError, which names the setting and shows no password."""
    for value, remark in ODD:
        monkeypatch.setenv(name.upper(), value)
        try:
            settings_module.load()
        except ConfigurationError as error:
            assert name.upper() in error.message, remark
            assert "\n" not in error.message and "s3cretWord" not in error.message, remark
            assert len(error.message) < 2000, remark


@pytest.mark.fault("E28")
@pytest.mark.parametrize("name", [name for name in Settings.model_fields if name.endswith(("_seconds", "_ms"))])
def test_time_setting_is_a_finite_number(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wait of nan or inf seconds would end at once or never, or fail when it is used."""
    for value in ("nan", "inf", "1e400", "1e300"):
        monkeypatch.setenv(name.upper(), value)
        with pytest.raises(ConfigurationError, match=name.upper()):
            settings_module.load()


@pytest.mark.fault("E28")
@pytest.mark.parametrize("name", SECRETS)
def test_no_error_contains_a_secret(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No error and no text of the settings contains a secret, for any fault of the secret."""
    for secret in ("s3cretWord", "s3cretWord://s3cretWord", "redis://u:s3cretWord@h:x/s3cretWord"):
        monkeypatch.setenv(name.upper(), secret)
        try:
            assert "s3cretWord" not in repr(settings_module.load())
        except ConfigurationError as error:
            assert "s3cretWord" not in error.message
