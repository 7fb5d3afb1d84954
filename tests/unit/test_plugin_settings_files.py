"""A setting of a plugin that comes from a file, as containers get their secrets."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import ConfigurationError
from pipeline.settings import Settings
from tests.unit.acme_settings import AcmeSettings


def settings_of(tmp_path: Path, **variables: str) -> Settings:
    """Return settings with these variables; FILE in a value is replaced by the folder."""
    return Settings().with_plugin_variables({n: v.replace("FILE", str(tmp_path)) for n, v in variables.items()})


@pytest.mark.fault("P8")
def test_setting_of_a_plugin_is_read_from_a_file(tmp_path: Path) -> None:
    """The value is the content of the file without the line end that editors add."""
    (tmp_path / "key").write_bytes(b" the key \r\n")
    given = settings_of(tmp_path, PLUGIN_ACME_API_KEY_FILE="FILE/key")
    assert given.plugin("acme", AcmeSettings).api_key.get_secret_value() == " the key "
    assert given.is_given("acme", "api_key") and not given.is_given("acme", "url")

    class WithFileField(AcmeSettings):
        key_file: str = ""
        key: str = ""

    own = settings_of(tmp_path, PLUGIN_ACME_API_KEY="1", PLUGIN_ACME_KEY_FILE="FILE/key").plugin("acme", WithFileField)
    assert (own.key_file, own.key) == (f"{tmp_path}/key", ""), "a setting with exactly this name comes first"


@pytest.mark.fault("P8")
@pytest.mark.parametrize(
    ("variables", "message"),
    [
        (
            {"PLUGIN_ACME_API_KEY": "s3cret", "PLUGIN_ACME_API_KEY_FILE": "FILE/key"},
            "PLUGIN_ACME_API_KEY and PLUGIN_ACME_API_KEY_FILE are both set: remove one",
        ),
        (
            {"PLUGIN_ACME_API_KEY_FILE": "FILE/none"},
            "PLUGIN_ACME_API_KEY_FILE: the file cannot be read: No such file or directory",
        ),
        ({"PLUGIN_ACME_API_KEY_FILE": "FILE"}, "PLUGIN_ACME_API_KEY_FILE: the file cannot be read: Is a directory"),
        ({"PLUGIN_ACME_API_KEY_FILE": "FILE/empty"}, "PLUGIN_ACME_API_KEY_FILE: the file is empty"),
        (
            {"PLUGIN_ACME_API_KEY_FILE": "FILE/bytes"},
            "PLUGIN_ACME_API_KEY_FILE: the file cannot be read: it is not UTF-8",
        ),
        ({"PLUGIN_ACME_API_KEY_FILE": "/dev/zero"}, "PLUGIN_ACME_API_KEY_FILE: the file has more than 65536 bytes"),
    ],
)
def test_file_without_a_usable_value_is_reported(tmp_path: Path, variables: dict[str, str], message: str) -> None:
    """The error names the file once, without the value, and does not also report a missing setting."""
    for name, content in (("key", b"s3cret"), ("empty", b"\n"), ("bytes", b"\xff")):
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigurationError) as caught:
        settings_of(tmp_path, **variables).plugin("acme", AcmeSettings)
    assert caught.value.message == message
