"""Every setting with odd values: each is taken, or refused in one line that has no secret in it."""

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
    ("0", "nothing"),
    ("-1", "less than nothing"),
    ("1e3", "a number as computers write it"),
    ("0x10", "a number of programmers"),
    ("1_000", "a number of Python"),
    ("1,000", "a number of people, or a list"),
    ("٣", "a digit of another script"),
    ("nan", "no number, yet a float"),
    ("inf", "a float without end"),
    ("-inf", "the other end"),
    ("1e400", "a float too large"),
    ("9" * 5000, "more digits than Python converts"),
    ("true", "a truth"),
    ("None", "a value of Python"),
    ("null", "a value of JSON"),
    ("[]", "a list of JSON"),
    ('{"a": 1}', "an object of JSON"),
    ("=", "a pair without sides"),
    ("a=+", "a pair without a right side"),
    (",,,", "a list of nothing"),
    ("*", "everything"),
    ("http://[", "what urlsplit refuses with a trace"),
    ("http://h:99999", "a port too high"),
    ("://", "an address of nothing"),
    ("redis://:s3cretWord@h:x", "an address with a password, broken"),
    ("postgres://u:s3cretWord@h/x", "an address of another database"),
    ("\udcff\udcfe", "bytes that are no text"),
    ("\x1b[31mred", "a terminal escape"),
    ("a\nb", "two lines"),
    ("\x7f", "a character that cannot be printed"),
    ("../" * 50, "a path upwards"),
    ("x" * 100_000, "very long"),
]
SECRETS = [name for name, field in Settings.model_fields.items() if field.annotation is SecretStr]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No `.env`, and no variable of ours."""
    monkeypatch.chdir(tmp_path)
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.mark.fault("E28")
@pytest.mark.parametrize("name", Settings.model_fields)
def test_setting_takes_odd_values_or_refuses_them(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but ConfigurationError, which names the setting and shows no password."""
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
def test_time_is_a_number_with_an_end(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wait of nan or inf would end at once or never, or fail where it is used."""
    for value in ("nan", "inf", "1e400", "1e300"):
        monkeypatch.setenv(name.upper(), value)
        with pytest.raises(ConfigurationError, match=name.upper()):
            settings_module.load()


@pytest.mark.fault("E28")
@pytest.mark.parametrize("name", SECRETS)
def test_secret_is_in_no_error(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is wrong with it."""
    for secret in ("s3cretWord", "s3cretWord://s3cretWord", "redis://u:s3cretWord@h:x/s3cretWord"):
        monkeypatch.setenv(name.upper(), secret)
        try:
            assert "s3cretWord" not in repr(settings_module.load())
        except ConfigurationError as error:
            assert "s3cretWord" not in error.message
