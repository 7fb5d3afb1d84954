"""Settings of a plugin: the names of their variables, values, secrets, and messages about mistyped variables."""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import SecretStr, field_validator, model_validator
from structlog.testing import capture_logs

from pipeline.errors import ConfigurationError
from pipeline.hooks import PluginSettings
from pipeline.hooks.kinds import NOTIFIER
from pipeline.metrics import Metrics
from pipeline.settings import Settings, load, plugin_variable
from tests.fake_plugins import make_catalogue, make_module
from tests.unit.acme_settings import AcmeSettings

SECRET = "hunter2-and-then-some"


def acme_settings(**variables: str) -> AcmeSettings:
    """Return the settings that the plugin gets.

    variables: names without PLUGIN_ACME_.
    """
    given = {f"PLUGIN_ACME_{name}": value for name, value in {"API_KEY": SECRET, **variables}.items()}
    return Settings().with_plugin_variables(given).plugin("acme", AcmeSettings)


@pytest.mark.parametrize(
    ("name", "field", "variable"),
    [
        ("acme", "api_key", "PLUGIN_ACME_API_KEY"),
        ("my-plugin", "url", "PLUGIN_MY_PLUGIN_URL"),
        ("v2.vision", "url", "PLUGIN_V2_VISION_URL"),
        ("Straße", "url", "PLUGIN_STRASSE_URL"),
        ("été", "url", "PLUGIN__T__URL"),
    ],
)
def test_variable_is_made_of_the_names_in_capitals(name: str, field: str, variable: str) -> None:
    """A plugin with any name has variables that a shell can set."""
    assert plugin_variable(name, field) == variable


def test_values_are_converted_from_text() -> None:
    """A plugin gets numbers, booleans and lists, and its defaults for variables that are not set."""
    given = acme_settings(ATTEMPTS="7", IS_STRICT="true", URL="https://a.example/?a=b,c")
    assert (given.attempts, given.is_strict, given.url) == (7, True, "https://a.example/?a=b,c")
    assert (given.tags, given.ports, given.hosts) == (("one",), [80], frozenset())
    assert given.api_key.get_secret_value() == SECRET


@pytest.mark.parametrize(
    ("text", "tags"),
    [("a", ("a",)), ("a,b", ("a", "b")), (" a , b ,", ("a", "b")), (",", ()), ("a b,c=d", ("a b", "c=d"))],
)
def test_lists_are_comma_separated(text: str, tags: tuple[str, ...]) -> None:
    """Tuples, lists and sets are separated by commas; spaces around the parts and empty parts are ignored."""
    given = acme_settings(TAGS=text, HOSTS=text, PORTS="80, 81")
    assert (given.tags, given.hosts, given.ports) == (tags, frozenset(tags), [80, 81])


def test_settings_of_a_plugin_are_read_once_and_frozen() -> None:
    """Each call returns the same object, and no caller can change it."""
    settings = Settings().with_plugin_variables({"PLUGIN_ACME_API_KEY": SECRET})
    acme = settings.plugin("acme", AcmeSettings)
    assert settings.plugin("acme", AcmeSettings) is acme
    with pytest.raises(ValueError, match="frozen"):
        acme.attempts = 1  # type: ignore[misc]


def test_copy_with_other_variables_has_only_its_own() -> None:
    """with_plugin_variables does not change the settings that it is called on, nor values already read."""
    first = Settings(port=81).with_plugin_variables({"PLUGIN_ACME_API_KEY": "one"})
    assert first.plugin("acme", AcmeSettings).api_key.get_secret_value() == "one"
    second = first.with_plugin_variables({"PLUGIN_ACME_API_KEY": "two", "PLUGIN_ACME_URL": ""})
    assert second.port == 81
    assert second.plugin("acme", AcmeSettings).api_key.get_secret_value() == "two"
    assert first.plugin("acme", AcmeSettings).api_key.get_secret_value() == "one"
    assert second.plugin_variables == ("PLUGIN_ACME_API_KEY",), "empty means not set"


def test_copy_with_another_port_has_the_same_plugin_variables() -> None:
    """The app sets port and address on a copy, and reads the settings of plugins from this copy."""
    settings = Settings().with_plugin_variables({"PLUGIN_ACME_API_KEY": SECRET})
    copy = settings.model_copy(update={"port": 81})
    assert copy.plugin("acme", AcmeSettings).api_key.get_secret_value() == SECRET


class Mode(StrEnum):
    FAST = "fast"


class Picky(PluginSettings):
    """Settings that refuse every value, each in another way."""

    key: SecretStr
    count: int = 1
    level: Literal["low", "high"] = "low"
    mode: Mode = Mode.FAST
    where: Path = Path("x")
    ports: list[int] = []

    @field_validator("key")
    @classmethod
    def _check(cls, value: SecretStr) -> SecretStr:
        raise ValueError("is too short")


def test_all_faults_are_listed_at_once_with_their_variables() -> None:
    """One message lists all faults, so the operator can repair the configuration at once."""
    with pytest.raises(ConfigurationError) as caught:
        acme_settings(ATTEMPTS="ten", IS_STRICT="perhaps", PORTS="80,x", API_KEY="")
    faults = str(caught.value).split("; ")
    assert [fault.partition(":")[0] for fault in faults] == [
        f"PLUGIN_ACME_{name}" for name in ("API_KEY", "ATTEMPTS", "IS_STRICT", "PORTS.1")
    ]


def test_no_value_is_in_any_fault() -> None:
    """No message and no chained error quotes a value, because a secret may be in the wrong variable."""
    variables = {f"PLUGIN_PICKY_{name.upper()}": SECRET for name in Picky.model_fields}
    with pytest.raises(ConfigurationError) as caught:
        Settings().with_plugin_variables(variables).plugin("picky", Picky)
    for text in (str(caught.value), repr(caught.value), str(caught.value.__context__), repr(caught.value.__context__)):
        assert SECRET not in text
    assert "PLUGIN_PICKY_KEY: is too short" in str(caught.value)


def test_fault_of_several_fields_is_reported_in_the_words_of_the_plugin() -> None:
    """A plugin may check relations between fields; the error at start names the plugin."""

    class Related(PluginSettings):
        low: int = 5
        high: int = 3

        @model_validator(mode="after")
        def _check(self) -> Related:
            if self.low > self.high:
                raise ValueError("LOW must not be more than HIGH")
            return self

    module = make_module(
        "tested_related",
        register_settings=lambda: [("related", Related)],
        register_notifiers=lambda: [("related", lambda: None)],
    )
    catalogue = make_catalogue(Settings(notifiers="related"), module)
    with pytest.raises(ConfigurationError) as caught:
        catalogue.build(NOTIFIER, "related", Metrics())
    assert str(caught.value) == "NOTIFIERS: notifier 'related' cannot start: LOW must not be more than HIGH"


def test_no_text_of_the_settings_contains_a_secret() -> None:
    """The settings and the plugin's settings print no secret, not even one of an unknown plugin."""
    settings = Settings().with_plugin_variables({"PLUGIN_ACME_API_KEY": SECRET, "PLUGIN_UNKNOWN_TOKEN": SECRET})
    acme = settings.plugin("acme", AcmeSettings)
    texts = [repr(settings), str(settings), str(settings.model_dump()), repr(acme), str(acme), str(acme.model_dump())]
    texts += [settings.model_dump_json(), acme.model_dump_json(), str(vars(settings)), str(settings._plugin_variables)]
    assert not [text for text in texts if SECRET in text]


def acme_module(name: str = "tested_acme", *more: tuple[str, type[PluginSettings]]) -> Any:
    """Return a plugin module that registers AcmeSettings and more settings."""
    return make_module(name, register_settings=lambda: [("acme", AcmeSettings), *more])


def check(*variables: str, more: tuple[tuple[str, type[PluginSettings]], ...] = ()) -> None:
    """Check the names of these variables against the registered settings."""
    settings = Settings().with_plugin_variables({variable: SECRET for variable in variables})
    make_catalogue(settings, acme_module("tested_acme", *more)).check_names()


def test_mistyped_variable_stops_the_start_and_names_the_nearest() -> None:
    """One message lists all mistyped variables, each with the most similar name and without its value."""
    with pytest.raises(ConfigurationError) as caught:
        check("PLUGIN_ACME_API_KEY", "PLUGIN_ACME_APIKEY", "PLUGIN_ACME_QUUX", "PLUGIN_ACME_ATTEMPT")
    assert str(caught.value).split("; ") == [
        "there is no setting PLUGIN_ACME_APIKEY (did you mean PLUGIN_ACME_API_KEY?)",
        "there is no setting PLUGIN_ACME_QUUX",
        "there is no setting PLUGIN_ACME_ATTEMPT (did you mean PLUGIN_ACME_ATTEMPTS?)",
    ]


def test_variable_of_a_missing_plugin_is_only_logged() -> None:
    """Machines with different packages may share one environment; the log line has no value."""
    with capture_logs() as logs:
        check("PLUGIN_ELSEWHERE_KEY", "PLUGIN_ACME")
    assert [(line["event"], line["variable"]) for line in logs] == [
        ("setting_unknown", "PLUGIN_ELSEWHERE_KEY"),
        ("setting_unknown", "PLUGIN_ACME"),
    ]
    assert SECRET not in str(logs)


class Short(PluginSettings):
    key: str = ""


class Long(PluginSettings):
    eu_zone: str = ""


def test_variables_of_plugins_with_the_same_prefix_are_distinguished() -> None:
    """With plugins `acme` and `acme-eu` the service knows the variables of both, like PLUGIN_ACME_EU_KEY."""
    check("PLUGIN_ACME_EU_KEY", more=(("acme-eu", Short),))
    with pytest.raises(ConfigurationError, match="PLUGIN_ACME_EU_KEYS .did you mean PLUGIN_ACME_EU_KEY"):
        check("PLUGIN_ACME_EU_KEYS", more=(("acme-eu", Short),))
    module = make_module("tested", register_settings=lambda: [("shop", Long), ("shop-eu", Short)])
    settings = Settings().with_plugin_variables({"PLUGIN_SHOP_EU_ZONE": "x", "PLUGIN_SHOP_EU_KEY": "x"})
    make_catalogue(settings, module).check_names()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working folder, for .env files."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path


def test_load_reads_environment_and_env_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable of the environment overrides one of the file; variables with other names are ignored."""
    (folder / ".env").write_text(
        "PLUGIN_ACME_API_KEY=from-file\nexport PLUGIN_ACME_TAGS='a, b'\nPLUGIN_ACME_URL=file\nPORT=81\n"
        "PLUGIN_ACME_ATTEMPTS=\nOTHER_PLUGIN_X=1\n"
    )
    monkeypatch.setenv("PLUGIN_ACME_URL", "environment")
    monkeypatch.setenv("PLUGIN_ACME_PORTS", "1,2")
    settings = load()
    acme = settings.plugin("acme", AcmeSettings)
    assert (acme.api_key.get_secret_value(), acme.url, acme.tags, acme.ports) == (
        "from-file", "environment", ("a", "b"), [1, 2],
    )  # fmt: skip
    assert (acme.attempts, acme.is_strict, settings.port) == (3, False, 81)
    assert sorted(settings.plugin_variables) == [
        f"PLUGIN_ACME_{name}" for name in ("API_KEY", "PORTS", "TAGS", "URL")
    ]


def test_load_without_env_file_reads_the_environment(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a .env file, as in a container, the settings come from the environment."""
    monkeypatch.setenv("PLUGIN_ACME_API_KEY", SECRET)
    assert load(port=0).plugin("acme", AcmeSettings).api_key.get_secret_value() == SECRET


def test_empty_variable_does_not_override_the_env_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty variable counts as not set, for a setting of a plugin and for one of the service."""
    (folder / ".env").write_text("PLUGIN_ACME_API_KEY=from-file\nJWT_AUDIENCE=from-file\n")
    monkeypatch.setenv("PLUGIN_ACME_API_KEY", "")
    monkeypatch.setenv("JWT_AUDIENCE", "")
    settings = load()
    assert settings.jwt_audience == "from-file"
    assert settings.plugin("acme", AcmeSettings).api_key.get_secret_value() == "from-file"
