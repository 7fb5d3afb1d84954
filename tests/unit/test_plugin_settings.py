"""A plugin's own settings, which plugins are loaded at all, and what an author or operator reads who mistyped."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import Field, SecretStr, field_validator, model_validator
from structlog.testing import capture_logs

from pipeline.errors import ConfigurationError
from pipeline.hooks import PluginSettings
from pipeline.hooks.catalogue import list_plugins
from pipeline.hooks.kinds import NOTIFIER, PROVIDER
from pipeline.metrics import Metrics
from pipeline.settings import Settings, load, plugin_variable
from tests.fake_plugins import make_catalogue, make_module

SECRET = "hunter2-and-then-some"


class AcmeSettings(PluginSettings):
    """One field of every sort."""

    api_key: SecretStr
    url: str = "https://acme.example"
    attempts: int = Field(3, ge=1, le=9)
    is_strict: bool = False
    tags: tuple[str, ...] = ("one",)
    ports: list[int] = [80]
    hosts: frozenset[str] = frozenset()


def own(**variables: str) -> AcmeSettings:
    """Return what the plugin is given. variables: without PLUGIN_ACME_."""
    given = {f"PLUGIN_ACME_{name}": value for name, value in {"API_KEY": SECRET, **variables}.items()}
    return Settings().with_plugin_variables(given).plugin("acme", AcmeSettings)


# values


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
    """Whatever a plugin is called, its variables can be set in a shell."""
    assert plugin_variable(name, field) == variable


def test_values_are_converted_from_text() -> None:
    """A plugin is handed numbers, booleans and lists, its defaults where nothing is said."""
    given = own(ATTEMPTS="7", IS_STRICT="true", URL="https://a.example/?a=b,c")
    assert (given.attempts, given.is_strict, given.url) == (7, True, "https://a.example/?a=b,c")
    assert (given.tags, given.ports, given.hosts) == (("one",), [80], frozenset())
    assert given.api_key.get_secret_value() == SECRET


@pytest.mark.parametrize(
    ("text", "tags"),
    [("a", ("a",)), ("a,b", ("a", "b")), (" a , b ,", ("a", "b")), (",", ()), ("a b,c=d", ("a b", "c=d"))],
)
def test_lists_are_comma_separated(text: str, tags: tuple[str, ...]) -> None:
    """Tuples, lists and sets alike; spaces around the parts and empty parts do not count."""
    given = own(TAGS=text, HOSTS=text, PORTS="80, 81")
    assert (given.tags, given.hosts, given.ports) == (tags, frozenset(tags), [80, 81])


def test_settings_of_a_plugin_are_read_once_and_frozen() -> None:
    """Each call returns the same object, which nobody can change under another."""
    settings = Settings().with_plugin_variables({"PLUGIN_ACME_API_KEY": SECRET})
    acme = settings.plugin("acme", AcmeSettings)
    assert settings.plugin("acme", AcmeSettings) is acme
    with pytest.raises(ValueError, match="frozen"):
        acme.attempts = 1  # type: ignore[misc]


def test_copy_with_other_variables_does_not_see_the_first_ones() -> None:
    """with_plugin_variables changes nothing it was called on, values read before included."""
    first = Settings(port=81).with_plugin_variables({"PLUGIN_ACME_API_KEY": "one"})
    assert first.plugin("acme", AcmeSettings).api_key.get_secret_value() == "one"
    second = first.with_plugin_variables({"PLUGIN_ACME_API_KEY": "two", "PLUGIN_ACME_URL": ""})
    assert second.port == 81
    assert second.plugin("acme", AcmeSettings).api_key.get_secret_value() == "two"
    assert first.plugin("acme", AcmeSettings).api_key.get_secret_value() == "one"
    assert second.plugin_variables == ("PLUGIN_ACME_API_KEY",), "empty means not set"


def test_copy_by_the_app_keeps_the_variables() -> None:
    """App fills in port and address on a copy; plugins are asked for their settings there."""
    settings = Settings().with_plugin_variables({"PLUGIN_ACME_API_KEY": SECRET})
    copy = settings.model_copy(update={"port": 81})
    assert copy.plugin("acme", AcmeSettings).api_key.get_secret_value() == SECRET


# faults and secrets


class Mode(StrEnum):
    FAST = "fast"


class Picky(PluginSettings):
    """Refuses everything, in every way a plugin may."""

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
    """Whoever mends the configuration does not have to start three times."""
    with pytest.raises(ConfigurationError) as caught:
        own(ATTEMPTS="ten", IS_STRICT="perhaps", PORTS="80,x", API_KEY="")
    faults = str(caught.value).split("; ")
    assert [fault.partition(":")[0] for fault in faults] == [
        f"PLUGIN_ACME_{name}" for name in ("API_KEY", "ATTEMPTS", "IS_STRICT", "PORTS.1")
    ]


def test_no_value_is_in_any_fault() -> None:
    """A secret may stand in the wrong variable: no fault, nor what it was made from, quotes what was given."""
    variables = {f"PLUGIN_PICKY_{name.upper()}": SECRET for name in Picky.model_fields}
    with pytest.raises(ConfigurationError) as caught:
        Settings().with_plugin_variables(variables).plugin("picky", Picky)
    for text in (str(caught.value), repr(caught.value), str(caught.value.__context__), repr(caught.value.__context__)):
        assert SECRET not in text
    assert "PLUGIN_PICKY_KEY: is too short" in str(caught.value)


def test_fault_of_several_fields_together_is_told_in_its_own_words() -> None:
    """A plugin may check relations; the start says whose they are."""

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


def test_secrets_show_in_no_text_of_the_settings() -> None:
    """Neither the settings nor the plugin's own part print a secret, also one of a plugin nobody knows."""
    settings = Settings().with_plugin_variables({"PLUGIN_ACME_API_KEY": SECRET, "PLUGIN_UNKNOWN_TOKEN": SECRET})
    acme = settings.plugin("acme", AcmeSettings)
    texts = [repr(settings), str(settings), str(settings.model_dump()), repr(acme), str(acme), str(acme.model_dump())]
    texts += [settings.model_dump_json(), acme.model_dump_json(), str(vars(settings)), str(settings._plugin_variables)]
    assert not [text for text in texts if SECRET in text]


# variables of nobody


def acme_module(name: str = "tested_acme", *more: tuple[str, type[PluginSettings]]) -> Any:
    return make_module(name, register_settings=lambda: [("acme", AcmeSettings), *more])


def check(*variables: str, more: tuple[tuple[str, type[PluginSettings]], ...] = ()) -> None:
    settings = Settings().with_plugin_variables({variable: SECRET for variable in variables})
    make_catalogue(settings, acme_module("tested_acme", *more)).check_names()


def test_mistyped_variable_stops_the_start_with_the_nearest() -> None:
    """All of them at once, each with what may have been meant, and no value."""
    with pytest.raises(ConfigurationError) as caught:
        check("PLUGIN_ACME_API_KEY", "PLUGIN_ACME_APIKEY", "PLUGIN_ACME_QUUX", "PLUGIN_ACME_ATTEMPT")
    assert str(caught.value).split("; ") == [
        "there is no setting PLUGIN_ACME_APIKEY (did you mean PLUGIN_ACME_API_KEY?)",
        "there is no setting PLUGIN_ACME_QUUX",
        "there is no setting PLUGIN_ACME_ATTEMPT (did you mean PLUGIN_ACME_ATTEMPTS?)",
    ]


def test_variable_of_a_plugin_that_is_not_here_is_only_logged() -> None:
    """One environment may serve machines with different packages; the value is not in the line."""
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


def test_plugin_whose_name_begins_with_anothers_takes_none_of_its_variables() -> None:
    """With plugins `acme` and `acme-eu` both PLUGIN_ACME_EU_KEY and the other's PLUGIN_ACME_EU_ZONE are known."""
    check("PLUGIN_ACME_EU_KEY", more=(("acme-eu", Short),))
    with pytest.raises(ConfigurationError, match="PLUGIN_ACME_EU_KEYS .did you mean PLUGIN_ACME_EU_KEY"):
        check("PLUGIN_ACME_EU_KEYS", more=(("acme-eu", Short),))
    module = make_module("tested", register_settings=lambda: [("shop", Long), ("shop-eu", Short)])
    settings = Settings().with_plugin_variables({"PLUGIN_SHOP_EU_ZONE": "x", "PLUGIN_SHOP_EU_KEY": "x"})
    make_catalogue(settings, module).check_names()


# where they come from


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working folder, for .env files."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path


def test_load_reads_environment_and_env_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment goes before the file; other variables of either are left alone."""
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
    """A container has no .env."""
    monkeypatch.setenv("PLUGIN_ACME_API_KEY", SECRET)
    assert load(port=0).plugin("acme", AcmeSettings).api_key.get_secret_value() == SECRET


def test_empty_variable_leaves_the_env_file_in_force(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty means not set, for a plugin's setting as for one of the service."""
    (folder / ".env").write_text("PLUGIN_ACME_API_KEY=from-file\nJWT_AUDIENCE=from-file\n")
    monkeypatch.setenv("PLUGIN_ACME_API_KEY", "")
    monkeypatch.setenv("JWT_AUDIENCE", "")
    settings = load()
    assert settings.jwt_audience == "from-file"
    assert settings.plugin("acme", AcmeSettings).api_key.get_secret_value() == "from-file"


# what is loaded


PACKAGE = """
from pipeline.hooks import hookimpl
{more}
@hookimpl
def register_ai_providers(settings):
    yield "{name}", lambda: object()
"""


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that installs a package with one entry point: really, as files on the import path."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def install(name: str, more: str = "") -> None:
        monkeypatch.delitem(sys.modules, name, raising=False)
        marker = f"open({str(tmp_path / (name + '.loaded'))!r}, 'w').close()\n"
        (tmp_path / f"{name}.py").write_text(marker + PACKAGE.format(name=name, more=more))
        info = tmp_path / f"{name}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
        (info / "entry_points.txt").write_text(f"[ai_queue_pipeline]\n{name} = {name}\n")

    return install


def states(settings: Settings) -> dict[str, tuple[str, str]]:
    return {info.name: (info.state, info.reason) for info in list_plugins(settings) if info.package != "built-in"}


def test_disabled_plugins_are_not_even_loaded(packages: Any, tmp_path: Path) -> None:
    """PLUGINS_DISABLED keeps a package's code from running; it is listed as disabled, and others are as before."""
    packages("pkgoff")
    packages("pkgon")
    settings = Settings(plugins_disabled=" pkgoff , nobody")
    assert states(settings) == {"pkgoff": ("disabled", ""), "pkgon": ("available", "")}
    assert not (tmp_path / "pkgoff.loaded").exists() and (tmp_path / "pkgon.loaded").exists()
    disabled = Settings(plugins_disabled="pkgoff", ai_provider="pkgoff")
    with pytest.raises(ConfigurationError, match=r"no provider 'pkgoff'; .*not usable: pkgoff \(disabled\)"):
        make_catalogue(disabled).build(PROVIDER, "pkgoff", Metrics())


@pytest.mark.parametrize("name", ["webhook", "pipeline.plugins.notify_webhook", "plugins.notify_webhook"])
def test_built_in_plugins_are_disabled_by_name_or_module(name: str) -> None:
    """All ways to call a built-in keep it out, that of version 0.1 too, and only it."""
    infos = list_plugins(Settings(plugins_disabled=name))
    assert [(info.name, info.kind) for info in infos if info.state == "disabled"] == [("webhook", "")]
    assert not [info for info in infos if info.name == "webhook" and info.state != "disabled"]


def test_safe_mode_loads_only_what_comes_with_the_service(packages: Any, tmp_path: Path) -> None:
    """An operator sees whether an installed package is at fault; who names one is told why it is not there."""
    packages("pkgsafe")
    assert states(Settings(plugins_safe_mode=True)) == {}
    assert not (tmp_path / "pkgsafe.loaded").exists()
    settings = Settings(plugins_safe_mode=True, ai_provider="pkgsafe")
    with pytest.raises(ConfigurationError, match="PLUGINS_SAFE_MODE leaves out installed packages"):
        make_catalogue(settings).build(PROVIDER, "pkgsafe", Metrics())


@pytest.mark.parametrize(
    ("more", "state"),
    [
        ("API_VERSION = 1", "available"),
        ("from pipeline.hooks import API_VERSION", "available"),
        ("", "available"),
        ("API_VERSION = 2", "available"),
        ("API_VERSION = 3", "broken"),
        ("API_VERSION = 0", "broken"),
        ("API_VERSION = None", "broken"),
    ],
)
def test_plugin_for_another_api_version_is_broken(packages: Any, more: str, state: str) -> None:
    """A plugin may say what it was written for; one for another version is not called and says why."""
    packages("pkgversion", more)
    found = states(Settings())["pkgversion"]
    assert found[0] == state
    if state == "broken":
        assert f"it was written for API version {more[-4:].strip(' =')}, this is 2" in found[1]


@pytest.mark.parametrize(
    ("hook", "meant"),
    [
        ("job_finnished", " (did you mean job_finished?)"),
        ("validate_uplaod", " (did you mean validate_upload?)"),
        ("register_notifier", " (did you mean register_notifiers?)"),
        ("quux", ""),
    ],
)
def test_mistyped_hook_is_broken_and_names_the_nearest(packages: Any, hook: str, meant: str) -> None:
    """A hook that would never be called is found at load, and nothing else of the plugin is used."""
    packages("pkghook", f"@hookimpl\ndef {hook}(settings):\n    return []\n")
    assert states(Settings())["pkghook"] == ("broken", f"there is no hook {hook}{meant}")


def test_hook_with_arguments_that_are_none_is_broken(packages: Any) -> None:
    """So is one that asks for what no hook of that name has."""
    packages("pkgarguments", "@hookimpl\ndef job_finished(event, app):\n    pass\n")
    state, reason = states(Settings())["pkgarguments"]
    assert state == "broken" and "app" in reason


@pytest.mark.parametrize(
    "offer",
    ["return 7", "return [('a',)]", "return [('a', int, 3)]", "raise OSError('no disk')", "raise SystemExit(3)"],
)
def test_settings_that_cannot_be_read_break_only_their_plugin(packages: Any, offer: str) -> None:
    """What a plugin declares wrongly is listed as broken with the reason; the service has all the others."""
    packages("pkgdeclares", f"@hookimpl\ndef register_settings():\n    {offer}\n")
    infos = list_plugins(Settings())
    assert [info.state for info in infos if info.name == "pkgdeclares" and not info.kind] == ["broken"]
    assert {"http", "local", "openai"} <= {info.name for info in infos if info.kind == "provider"}
