"""The settings of one process: the fields, brought into one form, checked, and what follows from them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from pydantic import PrivateAttr, model_validator

from pipeline.environment import Unknown
from pipeline.origins import allowed_origin, origin_of
from pipeline.settings.checks import setting_faults
from pipeline.settings.fields import Fields
from pipeline.settings.hosts import is_loopback
from pipeline.settings.kinds import CLOUDINARY, split
from pipeline.settings.plugin_settings import Own, PluginVariables
from pipeline.settings.removed import Removed

LISTS = (
    *("ai_provider", "categories", "notifiers", "filters_required", "allowed_origins", "user_claims"),
    *("plugins_disabled", "plugins_enabled", "trusted_proxies"),
)
IN_SMALL_LETTERS = ("role", "queue_fairness", "mongodb_driver", "log_format")
# Threads of each blocking plugin, and of the image checks: for each job slot one, and a second one while a call that
# ran out of time still has the first, because a thread cannot be ended. 16 are enough for the uploads of few slots.
THREADS_PER_SLOT = 2
LEAST_THREADS = 16


# Many methods because all of the service asks this one object, and each is one line that follows from the fields.
class Settings(Fields):
    """The configuration of one process. Tests build it directly: `Settings(port=0, data_dir=tmp_path)`."""

    _plugin_variables: PluginVariables = PrivateAttr(default_factory=PluginVariables)
    _unknown_variables: tuple[Unknown, ...] = PrivateAttr(default=())
    _removed_variables: tuple[Removed, ...] = PrivateAttr(default=())

    @model_validator(mode="before")
    @classmethod
    def _unify_case(cls, values: dict[str, Any]) -> dict[str, Any]:
        for name in (*IN_SMALL_LETTERS, "log_level"):
            if type(text := values.get(name)) is str:
                values[name] = text.upper() if name == "log_level" else text.lower()
        return values

    @model_validator(mode="before")
    @classmethod
    def _split_lists(cls, values: dict[str, Any]) -> dict[str, Any]:
        for name in LISTS:
            if isinstance(values.get(name), str):
                values[name] = split(values[name])
        if isinstance(origins := values.get("allowed_origins"), (tuple, list)):
            values["allowed_origins"] = tuple(allowed_origin(each) or each for each in origins)
        if isinstance(by_category := values.get("ai_provider_by_category"), str):
            pairs = [part.partition("=") for part in split(by_category)]
            if not all(category.strip() and names.strip("+ ") for category, _, names in pairs):
                raise ValueError("AI_PROVIDER_BY_CATEGORY must look like sneaker=acme,lego=acme+local")
            values["ai_provider_by_category"] = {category.strip(): split(names, "+") for category, _, names in pairs}
        return values

    @model_validator(mode="after")
    def _check(self) -> Settings:
        if faults := [*setting_faults(self)]:
            raise ValueError("; ".join(faults))
        return self

    @property
    def providers(self) -> tuple[str, ...]:
        """The AI providers of the categories that have none of their own, the first to be asked first."""
        return self.chain("")

    def chain(self, category: str) -> tuple[str, ...]:
        """Return the AI providers of a category, the first one first. "": of those that have none of their own."""
        return tuple(name for stage in self.cascade(category) for name in stage)

    def cascade(self, category: str) -> tuple[tuple[str, ...], ...]:
        """Return the stages of a category's providers: one of each is asked until an answer is complete."""
        written = self.ai_provider_by_category.get(category) or self.ai_provider
        stages, seen = [], set[str]()
        for text in ",".join(written or ("http" if self.ai_service_url else "local",)).split(">"):
            names = tuple(dict.fromkeys(split(text)))
            if new := tuple(name for name in names if name not in seen):
                stages.append(new)
            elif not names:
                stages.append(())
            seen.update(names)
        return tuple(stages)

    @property
    def all_providers(self) -> tuple[str, ...]:
        """Every AI provider that any category uses."""
        chains = (self.providers, *map(self.chain, self.ai_provider_by_category))
        return tuple(dict.fromkeys(name for chain in chains for name in chain))

    @property
    def storage_name(self) -> str:
        """The storage backend in force."""
        return self.storage_backend or (CLOUDINARY[0] if self.cloudinary_url.get_secret_value() else "local")

    @property
    def pool_threads(self) -> int:
        """How many threads each blocking plugin and the image checks have."""
        return max(LEAST_THREADS, THREADS_PER_SLOT * self.concurrency)

    @property
    def address(self) -> str:
        """Where the process listens, as a URL."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    @property
    def served_at(self) -> str:
        """The URL under which others reach the service, without a / at its end."""
        return (self.public_url or self.address).rstrip("/")

    @property
    def old_secrets(self) -> tuple[str, ...]:
        """The secrets of JWT_SECRETS_OLD. Only line ends separate them: a secret may contain any other sign."""
        lines = self.jwt_secrets_old.get_secret_value().split("\n")
        return tuple(secret for line in lines if (secret := line.removesuffix("\r")).strip())

    @property
    def gives_links(self) -> bool:
        """Whether links to our pages are printed, good for a session: only people at this machine can read them."""
        is_here = is_loopback(self.host) and is_loopback(urlsplit(self.public_url).hostname or self.host)
        return is_here and bool(self.jwt_secret.get_secret_value())

    @property
    def page_origins(self) -> tuple[str, ...]:
        """The origins whose pages may call and open sockets, beside those of the host a request names."""
        ours = origin_of(self.public_url)
        return tuple(dict.fromkeys((*((ours,) if ours else ()), *self.allowed_origins)))

    @property
    def unknown_variables(self) -> tuple[Unknown, ...]:
        """Variables of the environment and of `.env` that were perhaps meant to be settings."""
        return self._unknown_variables

    @property
    def removed_variables(self) -> tuple[Removed, ...]:
        """Variables of the environment and of `.env` that were settings before."""
        return self._removed_variables

    def with_odd_variables(self, unknown: tuple[Unknown, ...], removed: tuple[Removed, ...]) -> Settings:
        """Return a copy that knows of these variables, which have no effect."""
        copy = self.model_copy()
        copy._unknown_variables, copy._removed_variables = unknown, removed
        return copy

    def with_plugin_variables(self, variables: Mapping[str, str]) -> Settings:
        """Return a copy that gives plugins these PLUGIN_<NAME>_<FIELD> variables, as a plugin's tests need it."""
        copy = self.model_copy()
        copy._plugin_variables = PluginVariables(variables)
        return copy

    def with_changed_plugin_variables(self, changed: Mapping[str, str]) -> Settings:
        """Return a copy in which these PLUGIN_<NAME>_<FIELD> variables replace those of the same name."""
        copy = self.model_copy()
        copy._plugin_variables = self._plugin_variables.changed(changed)
        return copy

    @property
    def plugin_variables(self) -> tuple[str, ...]:
        """The names of all variables that are settings of plugins."""
        return self._plugin_variables.names

    def plugin(self, name: str, kind: type[Own]) -> Own:
        """Return the plugin's own settings; ConfigurationError lists every fault at once, and no value."""
        return self._plugin_variables.settings_of(name, kind)

    def is_given(self, name: str, field: str) -> bool:
        """Return whether that setting of a plugin's own is set, by itself or by a file."""
        return self._plugin_variables.is_given(name, field)
