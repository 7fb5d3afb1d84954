"""Every knob of the service: read from the environment (and `.env`) once, in cli.py, checked, frozen and passed on.

The environment variable of a field is its name in capitals. `python run.py settings` prints this page with the values
in force. A plugin's own settings are a PluginSettings; their variables are PLUGIN_<NAME>_<FIELD>.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast, get_origin
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, SecretStr, model_validator
from pydantic import ValidationError as PydanticValidationError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from pipeline import environment
from pipeline.addresses import mongodb_fault, redis_fault, web_fault
from pipeline.environment import Unknown
from pipeline.errors import ConfigurationError
from pipeline.origins import allowed_origin, origin_fault, origin_of
from pipeline.proxies import proxy_fault
from pipeline.weak_secrets import KEYS_AT_MOST, secret_fault


class Role(StrEnum):
    """What this process does: answers HTTP and sockets, works off the queue, or both."""

    ALL = "all"
    WEB = "web"
    WORKER = "worker"


class Fairness(StrEnum):
    """Whose job is next: the oldest of all (none), or users take turns (user)."""

    NONE = "none"
    USER = "user"


class MongoDriver(StrEnum):
    """What speaks to a MongoDB: PyMongo itself, or Motor, which is at its end of life."""

    PYMONGO = "pymongo"
    MOTOR = "motor"


class LogFormat(StrEnum):
    """`auto` is colours on a terminal and JSON lines everywhere else."""

    AUTO = "auto"
    JSON = "json"
    CONSOLE = "console"


CommaList = Annotated[tuple[str, ...], NoDecode]
CategoryMap = Annotated[Mapping[str, tuple[str, ...]], NoDecode]
PLUGIN_PREFIX = "PLUGIN_"
# A variable of a plugin with this behind its name names a file that holds the value, as container secrets are given.
FILE_SUFFIX = "_FILE"
# The specification's four. Only the default of CATEGORIES: everything else asks the settings.
DEFAULT_CATEGORIES = ("sneaker", "lego", "camera", "other")
CATEGORY = re.compile(r"[a-z0-9_-]{1,40}")
MAX_CATEGORIES = 50
# The largest number a setting may have, by the unit its name ends in: a century, and what every database counts to.
LARGEST_BY_UNIT = {"_seconds": 3_155_760_000, "_ms": 3_155_760_000_000}
LARGEST = 10**12
# The storages that need CLOUDINARY_URL, the default one first.
CLOUDINARY = ("cloudinary_private", "cloudinary")
# What is wrong at the first `docker run` of most people, so it names the words to add.
NO_KEY = (
    "set JWT_SECRET to a random secret, as `openssl rand -base64 32` prints it (docker run -e JWT_SECRET=...), and "
    "keep it: it signs the tokens. Or set JWT_PUBLIC_KEY or JWT_JWKS_URL, if a login of yours signs them"
)
SAFE_ONLY = "must be https:// (http:// only for a loopback host)"


class PluginSettings(BaseModel):
    """What one plugin wants to know, to be subclassed: a field `api_key` of the plugin `acme` is PLUGIN_ACME_API_KEY.

    Values come as text and are converted; a tuple, list or set takes them comma-separated. A secret is a SecretStr: it
    shows in no log, list or error. Each field has a description that says what it is and why its default.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, arbitrary_types_allowed=True)

    @property
    def is_active(self) -> bool:
        """Whether hooks of the plugin that have settings like these are called at all."""
        return True

    @model_validator(mode="before")
    @classmethod
    def _split_lists(cls, values: dict[str, Any]) -> dict[str, Any]:
        for name, field in cls.model_fields.items():
            if isinstance(values.get(name), str) and get_origin(field.annotation) in (tuple, list, set, frozenset):
                values[name] = _split(values[name])
        return values


Own = TypeVar("Own", bound=PluginSettings)


def _f(default: Any, why: str, **constraints: Any) -> Any:
    return Field(default=default, description=why, **constraints)


class Settings(BaseSettings):
    """The configuration of one process. Tests build it directly: `Settings(port=0, data_dir=tmp_path)`."""

    model_config = SettingsConfigDict(
        frozen=True, env_file=None, env_file_encoding="utf-8", extra="ignore", env_ignore_empty=True
    )

    # where it listens and what it does
    host: str = _f("127.0.0.1", "Address to listen on; anything but loopback needs JWT_SECRET or a public key.")
    port: int = _f(8080, "Port to listen on; 0 takes a free one and prints it.", ge=0, le=65535)
    reuse_port: bool = _f(
        False,
        "Several processes of this machine listen on one PORT, and the system shares connections out among them "
        "(SO_REUSEPORT); they need one REDIS_URL. Default off: a port that is taken by mistake must be an error.",
    )
    public_url: str = _f(
        "", "How others, browsers and the AI service among them, reach this service; default: http://HOST:PORT."
    )
    login_url: str = _f(
        "",
        "Where our pages send people to sign in, with return_to=ADDRESS; the login sends them back to that address "
        "with #token=JWT. Default: the pages take links that are printed on this machine, or a pasted token.",
    )
    grafana_url: str = _f("", "Base URL of your Grafana; the console then links to its dashboards.")
    data_dir: Path = _f(
        Path("data"),
        "Where everything embedded keeps its files: Redis, SQLite, images, the generated secret; and large uploads "
        "under way.",
    )
    role: Role = _f(Role.ALL, "all, web (HTTP and sockets only) or worker (jobs, health and metrics only).")

    # what it leans on; whatever is not set is embedded
    redis_url: SecretStr = _f(
        SecretStr(""),
        "redis:// or rediss:// (TLS) of the queue; redis://HOST:PORT,HOST:PORT names several nodes of a Redis Cluster, "
        "redis+sentinel://HOST:PORT,HOST:PORT/MASTER/DATABASE Sentinels; empty starts an own server under DATA_DIR.",
    )
    queue_prefix: str = _f(
        "pipeline",
        "What the names of all keys and channels in Redis begin with: another one for each installation on one Redis.",
        pattern="^[A-Za-z0-9_.-]{1,64}$",
    )
    mongodb_uri: SecretStr = _f(
        SecretStr(""), "mongodb:// of the asset store, with the database name; empty uses SQLite under DATA_DIR."
    )
    mongodb_driver: MongoDriver = _f(
        MongoDriver.PYMONGO, "What speaks to it: pymongo, or motor, which costs more CPU and is at its end of life."
    )
    cloudinary_url: SecretStr = _f(
        SecretStr(""), "cloudinary://KEY:SECRET@CLOUD; needed by the cloudinary storage backends."
    )
    ai_service_url: str = _f("", "Base URL of the AI service; jobs POST to its /analyze. Needed by the http provider.")
    ai_service_image_field: str = _f(
        "imageUrl",
        "Name of the image URL in the request to the AI service; some services want image_url.",
        min_length=1,
    )
    ai_provider: CommaList = _f(
        (),
        "AI provider plugins, comma-separated: the next is asked after a permanent failure of the one before or while "
        "that is held. local>openai: also when brand or model is missing in an answer; the fuller one counts. "
        "Default: http when AI_SERVICE_URL is set, else local.",
    )
    ai_provider_by_category: CategoryMap = _f(
        {}, "AI providers of single categories, as sneaker=acme,lego=acme+local>openai (+ as the comma of AI_PROVIDER)."
    )
    ai_budget_per_day: float = _f(
        0,
        "What all AI providers together may cost in a day (UTC), in AI_BUDGET_CURRENCY; jobs beyond that wait for the "
        "next day, as do those of a provider that does not tell what a call costs. 0: no limit.",
        ge=0,
    )
    ai_budget_per_user_per_day: float = _f(
        0, "The same for the photos of each user: only that user's jobs wait. 0: no limit.", ge=0
    )
    ai_budget_currency: str = _f(
        "USD", "Of the budgets; a cost in another currency is a price that is not known.", pattern="^[A-Z]{3}$"
    )
    ai_cache: bool = _f(
        False, "Gives complete answers again for the same photo, category, provider, AI model and prompt."
    )
    ai_cache_days: float = _f(30, "How long an answer is kept for AI_CACHE.", gt=0)
    storage_backend: str = _f(
        "",
        "Storage plugin of new images; those of before stay in the one that holds them. Default: cloudinary_private "
        "(URLs end; cloudinary: they are public for ever) when CLOUDINARY_URL is set, else local.",
    )
    notifiers: CommaList = _f(("websocket",), "Notifier plugins, comma-separated; all are called at once.")
    plugins_disabled: CommaList = _f(
        (), "Plugins that are not even loaded, comma-separated: names of entry points, or of built-in modules."
    )
    plugins_enabled: CommaList = _f(
        (),
        "The only plugins that are loaded beside the built-in ones, comma-separated: names of entry points, or of "
        "files in PLUGINS_DIR. Default: all that are installed.",
    )
    plugins_dir: Path | None = _f(
        None, "Folder with plugins of one file each, named as the file: acme.py; files that begin with _ are none."
    )
    plugins_safe_mode: bool = _f(False, "Loads built-in plugins only: to see whether an installed one is at fault.")
    plugins_trace: bool = _f(False, "Logs a line for each call of a plugin: its method, milliseconds, outcome.")
    filters_required: CommaList = _f(
        (),
        "Plugins whose filters must be heard, comma-separated: while one of them cannot answer, uploads are refused "
        "with 503 and results wait.",
    )

    # who may call
    jwt_secret: SecretStr = _f(
        SecretStr(""), "HS256 secret of 32 bytes or more; default: generated into DATA_DIR, loopback only."
    )
    jwt_secrets_old: SecretStr = _f(
        SecretStr(""),
        "The secret of before, whose tokens are still taken while JWT_SECRET is changed; several, one in a line. "
        "Nothing is signed with it. See docs/operations.md.",
    )
    jwt_public_key: str = _f(
        "",
        "PEM public key, RSA of 2048 bits or more or EC P-256; makes RS256 or ES256 the only accepted algorithm. While "
        "it is changed: both, one after the other.",
    )
    jwt_jwks_url: str = _f(
        "", "JWKS address for RS256/ES256 with rotating keys: https://, or http:// on a loopback host."
    )
    jwt_audience: str = _f("", "Required `aud` of a token, when set.")
    jwt_issuer: str = _f("", "Required `iss` of a token, when set.")
    allowed_origins: CommaList = _f(
        (),
        "Origins besides PUBLIC_URL's whose pages may call and open sockets, comma-separated, as https://app.example; "
        "* and null are not accepted.",
    )
    trusted_proxies: CommaList = _f(
        (),
        "Addresses and networks of the proxies in front, comma-separated, whose X-Forwarded-For is believed; private "
        "stands for all private networks and loopback. Default: nobody's, the client is who connects.",
    )

    # how much one of them may ask for; docs/operations.md says more
    uploads_per_minute_per_user: int = _f(
        300,
        "Photos that one user may send, or have analysed again, in a minute before the next gets 429; twice as many "
        "may come at once. 0: no limit. More than AI services answer, less than a flood.",
        ge=0,
    )
    requests_per_minute_per_user: int = _f(
        1200,
        "All other requests of one user, in the same way; operators have no limit. A busy page asks ten times in a "
        "minute.",
        ge=0,
    )
    wrong_tokens_per_minute_per_address: int = _f(
        60,
        "Tokens that were not made here, from one address (of IPv6: one /64), in the same way. Good tokens and expired "
        "ones from there are not affected.",
        ge=0,
    )
    max_stored_bytes_per_user: int = _f(
        0, "Images of one user that are kept before uploads get 403, as 1000000000 for 1 GB; 0: no limit.", ge=0
    )

    # uploads
    max_upload_bytes: int = _f(10 * 1024 * 1024, "Largest image part: the contract's 10 MB.", ge=1024)
    max_image_pixels: int = _f(
        200_000_000, "Largest width x height, from the header: phones make 200 million, bombs billions.", ge=1
    )
    decode_memory_mb: int = _f(
        1024,
        "Memory that decoding one photo may take; one that needs more is refused. Enough for 200 megapixels of JPEG or "
        "PNG, 70 of AVIF, 60 of HEIC and 57 of WebP.",
        ge=64,
    )
    sandbox_processes: int = _f(
        1,
        "Child processes in which the local AI provider reads photos, each one photo at a time: 360 MB and a processor "
        "core each.",
        ge=1,
        le=64,
    )
    media_url_seconds: int = _f(
        0,
        "How long the URL of an image works: then local ones are signed, too. 0: local ones work for ever, those of "
        "storages that sign for a day.",
        ge=0,
        le=7 * 24 * 3600,
    )
    preview_processes: int = _f(
        2,
        "Child processes that make previews of photos, each one photo at a time, behind everything else; 0 makes none.",
        ge=0,
        le=64,
    )
    upload_timeout_seconds: float = _f(300, "Longest a body may take to arrive: 10 MB at 35 kB/s.", gt=0)
    idempotency_seconds: int = _f(
        86_400, "How long an Idempotency-Key stands for its first answer: a day of client retries.", ge=60
    )
    keep_metadata: bool = _f(
        False,
        "Stores photos as they were sent, with the position, owner and serial number that cameras write into them; see "
        "docs/privacy.md.",
    )
    dedupe_uploads: bool = _f(
        False,
        "Without an Idempotency-Key, the same user, category and image bytes while the earlier upload is still "
        "processing are the same upload.",
    )

    categories: CommaList = _f(
        DEFAULT_CATEGORIES,
        "What a photo may be filed under, comma-separated: 1 to 50 names of 1 to 40 characters a-z, 0-9, _ and -. "
        "Assets of one that is taken out stay as they are. Default: the specification's four.",
    )

    # jobs
    concurrency: int = _f(5, "Job slots of this process: the specification's five.", ge=1, le=1000)
    job_attempts: int = _f(3, "Starts of a job before it fails for good: the specification's three.", ge=1)
    backoff_ms: int = _f(2000, "Wait before the second attempt; doubles each time: the specification's 2000 ms.", ge=0)
    job_timeout_seconds: float = _f(120, "Longest one attempt may take: the specification's 120 s.", gt=0)
    provider_timeout_seconds: float = _f(90, "Longest the AI provider may take: the specification's 90 s.", gt=0)
    storage_timeout_seconds: float = _f(
        25, "Longest one storage call may take; two fit between provider and job timeout.", gt=0
    )
    notifier_timeout_seconds: float = _f(10, "Longest one notifier may take; the others do not wait for it.", gt=0)
    hook_timeout_seconds: float = _f(
        2, "Longest one call of an observer or a filter may take: an upload waits for filters.", gt=0
    )
    breaker_failures: int = _f(
        5,
        "So many failures in a row hold a provider with a next one, a notifier or a hook: it is not called. So do as "
        "many calls that block the event loop, of any provider too.",
        ge=1,
    )
    breaker_probe_seconds: float = _f(
        15, "Longest wait between the single calls that try a held plugin again; starts at 1 s and doubles.", ge=1
    )
    user_claims: CommaList = _f(
        (),
        "Claims of an upload's token that notifiers get with its event, comma-separated, as email,locale; kept with "
        "the asset, at most 2 KB, and shown to nobody. Default: none, because they are about a person.",
    )
    notifier_slots: int = _f(
        5, "Slots of this process for durable notifiers (webhook, apprise): they never take those of the AI.", ge=1
    )
    notifier_attempts: int = _f(
        12, "Tries of a durable notifier before its event is a dead letter: nearly three hours, as backoff goes.", ge=1
    )
    notifier_backoff_ms: int = _f(
        5000, "Wait before a durable notifier's second try; doubles each time, up to two hours.", ge=0
    )
    lease_seconds: float = _f(
        15, "How long a claimed job is ours without renewal: a dead process's jobs run again after this.", gt=0
    )
    renew_seconds: float = _f(5, "How often leases are renewed: twice missed is still in time.", gt=0)
    max_stalls: int = _f(3, "A job whose process was lost this often fails.", ge=1)
    job_max_age_seconds: float = _f(
        86_400, "A job that still waits for an answer so long after its upload fails with the last reason.", gt=0
    )
    queue_fairness: Fairness = _f(
        Fairness.NONE, "none: strictly in order of submission; user: users take turns, each one's jobs stay in order."
    )
    max_backlog: int = _f(
        1_000_000, "Jobs that may wait in all before uploads get 503; each takes about 1 kB of Redis.", ge=1
    )
    max_backlog_per_user: int = _f(
        10_000, "Jobs of one user that are not finished before uploads get 429.", ge=1
    )
    keep_completed_seconds: int = _f(86_400, "Completed jobs stay visible this long: the specification's 24 h.", ge=0)
    keep_failed_seconds: int = _f(604_800, "Failed jobs stay listed this long: the specification's 7 days.", ge=0)
    keep_assets_days: float = _f(
        0, "Assets go so long after their end, as if they were deleted; 0: they are kept for ever.", ge=0
    )
    keep_originals_days: float = _f(
        0,
        "Originals go so long after the end of their assets, which then cannot be run again; 0: with the asset.",
        ge=0,
    )
    reconcile_seconds: float = _f(30, "How often assets are searched whose job got lost.", gt=0)
    reconcile_age_seconds: float = _f(
        60, "Assets younger than this are left alone by that search: their enqueue may be under way.", ge=0
    )
    pool_threads: int = _f(16, "Threads for each blocking plugin and for image checks; at least one per slot.", ge=1)

    # sockets
    socket_auth_seconds: float = _f(5, "How long a socket may stay without a token.", gt=0)
    socket_ping_seconds: float = _f(
        25, "Server ping interval: under the 30 s after which phones' networks forget a connection.", gt=0
    )
    socket_pong_seconds: float = _f(10, "How long a ping may stay unanswered.", gt=0)
    socket_frame_bytes: int = _f(
        16 * 1024, "Largest frame a client may send; tokens are the largest thing it has to say.", ge=1024
    )
    socket_frames_per_second: int = _f(10, "Frames a client may send per second.", ge=1)
    max_sockets: int = _f(
        10_000,
        "Sockets, streams and waiting polls of this process; more are told to come back, perhaps to another.",
        ge=1,
    )
    max_sockets_per_user: int = _f(
        20, "Sockets, streams and waiting polls of one user on this process; the newest win.", ge=1
    )
    max_sockets_without_token: int = _f(
        1000, "Sockets that may wait for their first frame or their end at a time; more are told to come back.", ge=1
    )
    max_replay_events: int = _f(
        500, "Missed events that are replayed to a socket; beyond that the client reads the list of assets.", ge=1
    )
    outbox_frames: int = _f(256, "Frames waiting for one slow client before it is cut off.", ge=1)
    outbox_bytes: int = _f(1024 * 1024, "Bytes waiting for one slow client before it is cut off.", ge=1024)

    # running it
    loop_block_ms: int = _f(
        250, "A plugin that keeps the event loop for so long is named in the log: all else waits meanwhile.", ge=10
    )
    lame_duck_seconds: float = _f(
        0,
        "How long after SIGTERM the process goes on serving while /readyz says 503, so that load balancers can take it "
        "out first; 5 behind one, and SHUTDOWN_SECONDS comes on top. 0: nobody asks /readyz.",
        ge=0,
    )
    shutdown_seconds: float = _f(
        25, "Time to finish running jobs after SIGTERM; under the 30 s orchestrators give.", ge=0
    )
    log_format: LogFormat = _f(LogFormat.AUTO, "auto, json or console.")
    log_level: str = _f("INFO", "DEBUG, INFO, WARNING or ERROR.", pattern="^(DEBUG|INFO|WARNING|ERROR)$")
    otel_exporter_otlp_endpoint: str = _f(
        "", "Base URL of an OpenTelemetry collector (OTLP over HTTP) for traces; empty sends none. Needs [otel]."
    )

    _plugin_variables: dict[str, SecretStr] = PrivateAttr(default_factory=dict)
    _unknown_variables: tuple[Unknown, ...] = PrivateAttr(default=())
    _plugin_settings: dict[tuple[str, type[PluginSettings]], PluginSettings] = PrivateAttr(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _unify_case(cls, values: dict[str, Any]) -> dict[str, Any]:
        for name in ("role", "queue_fairness", "mongodb_driver", "log_format", "log_level"):
            if type(text := values.get(name)) is str:
                values[name] = text.upper() if name == "log_level" else text.lower()
        return values

    @model_validator(mode="before")
    @classmethod
    def _split_lists(cls, values: dict[str, Any]) -> dict[str, Any]:
        lists = ("ai_provider", "categories", "notifiers", "filters_required", "allowed_origins", "user_claims")
        for name in (*lists, "plugins_disabled", "plugins_enabled", "trusted_proxies"):
            if isinstance(values.get(name), str):
                values[name] = _split(values[name])
        if isinstance(origins := values.get("allowed_origins"), (tuple, list)):
            values["allowed_origins"] = tuple(allowed_origin(each) or each for each in origins)
        if isinstance(by_category := values.get("ai_provider_by_category"), str):
            pairs = [part.partition("=") for part in _split(by_category)]
            if not all(category.strip() and names.strip("+ ") for category, _, names in pairs):
                raise ValueError("AI_PROVIDER_BY_CATEGORY must look like sneaker=acme,lego=acme+local")
            values["ai_provider_by_category"] = {
                category.strip(): _split(names, "+") for category, _, names in pairs
            }
        return values

    @model_validator(mode="after")
    def _check_relations(self) -> Settings:
        faults = [
            *(*self._number_faults(), *self._text_faults()),
            *(*self._address_faults(), *self._category_faults()),
        ]
        if self.provider_timeout_seconds >= self.job_timeout_seconds:
            faults.append("PROVIDER_TIMEOUT_SECONDS must be less than JOB_TIMEOUT_SECONDS")
        if self.renew_seconds * 2 > self.lease_seconds:
            faults.append("RENEW_SECONDS must be at most half of LEASE_SECONDS")
        if self.pool_threads < self.concurrency:
            faults.append("POOL_THREADS must be at least CONCURRENCY")
        secret = self.jwt_secret.get_secret_value()
        if secret and (fault := secret_fault(secret)):
            faults.append(f"JWT_SECRET {fault}")
        faults += self._old_secret_faults()
        if "PRIVATE KEY" in self.jwt_public_key:
            faults.append("JWT_PUBLIC_KEY is a private key: set its public key, and keep this one secret")
        if sum(map(bool, (secret, self.jwt_public_key, self.jwt_jwks_url))) > 1:
            faults.append("only one of JWT_SECRET, JWT_PUBLIC_KEY and JWT_JWKS_URL may be set")
        if not (secret or self.jwt_public_key or self.jwt_jwks_url or is_loopback(self.host)):
            faults.append(f"HOST is not loopback: {NO_KEY}")
        if "http" in self.all_providers and not self.ai_service_url:
            faults.append("AI_PROVIDER=http needs AI_SERVICE_URL")
        if self.storage_name in CLOUDINARY and not self.cloudinary_url.get_secret_value():
            faults.append(f"STORAGE_BACKEND={self.storage_name} needs CLOUDINARY_URL")
        faults += [f"ALLOWED_ORIGINS: {fault}" for each in self.allowed_origins if (fault := origin_fault(each))]
        faults += [f"TRUSTED_PROXIES: {fault}" for each in self.trusted_proxies if (fault := proxy_fault(each))]
        if faults:
            raise ValueError("; ".join(faults))
        return self

    def _old_secret_faults(self) -> Iterator[str]:
        for number, old in enumerate(self.old_secrets, 1):
            if fault := secret_fault(old):
                yield f"JWT_SECRETS_OLD, number {number} {fault}"
        if len(self.old_secrets) >= KEYS_AT_MOST:
            yield f"JWT_SECRETS_OLD has {len(self.old_secrets)} secrets: {KEYS_AT_MOST - 1} are the most"
        if self.old_secrets and (self.jwt_public_key or self.jwt_jwks_url):
            yield "JWT_SECRETS_OLD goes with JWT_SECRET only"

    def _number_faults(self) -> Iterator[str]:
        for name in type(self).model_fields:
            number = getattr(self, name)
            largest = next((most for unit, most in LARGEST_BY_UNIT.items() if name.endswith(unit)), LARGEST)
            # So put, nan is caught as well.
            if isinstance(number, (int, float)) and not number <= largest:
                yield f"{name.upper()} must be at most {largest}"

    def _text_faults(self) -> Iterator[str]:
        for name in type(self).model_fields:
            value = getattr(self, name)
            text = value.get_secret_value() if isinstance(value, SecretStr) else value
            # Python keeps a byte of the environment that is no UTF-8 as half of a surrogate pair.
            if isinstance(text, str) and not text.isascii() and re.search("[\ud800-\udfff]", text):
                yield f"{name.upper()} is not UTF-8"

    def _category_faults(self) -> Iterator[str]:
        names = self.categories
        if not 1 <= len(names) <= MAX_CATEGORIES:
            yield f"CATEGORIES must have 1 to {MAX_CATEGORIES} names, not {len(names)}"
        # Not quoted: it may be the secret of another setting.
        if bad := [at for at, name in enumerate(names, 1) if not CATEGORY.fullmatch(name)]:
            yield f"CATEGORIES: name {bad[0]} must be 1 to 40 characters a-z, 0-9, _ and -"
        elif twice := [name for at, name in enumerate(names) if name in names[:at]]:
            yield f"CATEGORIES has {twice[0]!r} twice"
        for category in ("", *self.ai_provider_by_category):
            if not all(self.cascade(category)):
                yield f"AI_PROVIDER{'_BY_CATEGORY' if category else ''}: a provider is missing before or after >"
        for name in self.ai_provider_by_category:
            if name not in names:
                yield f"AI_PROVIDER_BY_CATEGORY: there is no category {name!r}; there are {', '.join(names)}"

    def _address_faults(self) -> Iterator[str]:
        given = {
            "REDIS_URL": (self.redis_url.get_secret_value(), redis_fault),
            "MONGODB_URI": (self.mongodb_uri.get_secret_value(), mongodb_fault),
            "AI_SERVICE_URL": (self.ai_service_url, web_fault),
            "JWT_JWKS_URL": (self.jwt_jwks_url, _key_set_fault),
            "OTEL_EXPORTER_OTLP_ENDPOINT": (self.otel_exporter_otlp_endpoint, web_fault),
            "PUBLIC_URL": (self.public_url, _public_url_fault),
            "LOGIN_URL": (self.login_url, _login_url_fault),
            "GRAFANA_URL": (self.grafana_url, web_fault),
        }
        for name, (address, find_fault) in given.items():
            if address and (fault := find_fault(address)):
                yield f"{name}: {fault}"

    @property
    def providers(self) -> tuple[str, ...]:
        """The AI providers in force for categories that have none of their own, the first to be asked first."""
        return self.chain("")

    def chain(self, category: str) -> tuple[str, ...]:
        """Return the AI providers of a category, the first one first. "": of those that have none of their own."""
        return tuple(name for stage in self.cascade(category) for name in stage)

    def cascade(self, category: str) -> tuple[tuple[str, ...], ...]:
        """Return the stages of a category's providers: one of each is asked until an answer is complete."""
        written = self.ai_provider_by_category.get(category) or self.ai_provider
        stages, seen = [], set[str]()
        for text in ",".join(written or ("http" if self.ai_service_url else "local",)).split(">"):
            names = tuple(dict.fromkeys(_split(text)))
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
        """The secrets of JWT_SECRETS_OLD. Only line ends part them: a secret may hold any other sign."""
        lines = self.jwt_secrets_old.get_secret_value().split("\n")
        return tuple(secret for line in lines if (secret := line.removesuffix("\r")).strip())

    @property
    def gives_links(self) -> bool:
        """Whether links to our pages are printed, good for a session: only who is at this machine can read them."""
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

    def with_plugin_variables(self, variables: Mapping[str, str]) -> Settings:
        """Return a copy that gives plugins these PLUGIN_<NAME>_<FIELD> variables, as a plugin's tests need it."""
        copy = self.model_copy()
        copy._plugin_variables = {name: SecretStr(value) for name, value in variables.items() if value}
        copy._plugin_settings = {}
        return copy

    def with_changed_plugin_variables(self, changed: Mapping[str, str]) -> Settings:
        """Return a copy in which these PLUGIN_<NAME>_<FIELD> variables take the place of those there are."""
        files = {name + FILE_SUFFIX for name in changed}
        kept = {name: each.get_secret_value() for name, each in self._plugin_variables.items() if name not in files}
        return self.with_plugin_variables(kept | dict(changed))

    @property
    def plugin_variables(self) -> tuple[str, ...]:
        """The names of all variables that are some plugin's."""
        return tuple(self._plugin_variables)

    def plugin(self, name: str, kind: type[Own]) -> Own:
        """Return the plugin's own settings; ConfigurationError lists every fault at once, and no value."""
        if (name, kind) not in self._plugin_settings:
            values, unread = self._given_to(name, kind)
            faults = [*unread.values()]
            try:
                own = kind.model_validate(values)
            except PydanticValidationError as error:
                wrong = _faults(error, plugin_variable(name, ""))
                faults += [each for each in wrong if each.partition(":")[0] not in unread]
            if faults:
                raise ConfigurationError("; ".join(faults)) from None
            self._plugin_settings[name, kind] = own
        return cast(Own, self._plugin_settings[name, kind])

    def is_given(self, name: str, field: str) -> bool:
        """Return whether that setting of a plugin's own is set, by itself or by a file."""
        variable = plugin_variable(name, field)
        return variable in self._plugin_variables or variable + FILE_SUFFIX in self._plugin_variables

    def _given_to(self, name: str, kind: type[PluginSettings]) -> tuple[dict[str, str], dict[str, str]]:
        """Return field -> value, from the plugin's variables and the files they name; and for the variables whose file
        gives none, why.
        """
        values, faults = {}, {}
        own = {plugin_variable(name, field): field for field in kind.model_fields}
        for variable, field in own.items():
            in_file = variable + FILE_SUFFIX
            if variable in self._plugin_variables:
                values[field] = self._plugin_variables[variable].get_secret_value()
            if in_file not in self._plugin_variables or in_file in own:
                continue
            if field in values:
                faults[variable] = f"{variable} and {in_file} are both set: remove one"
                continue
            try:
                values[field] = environment.read_value(self._plugin_variables[in_file].get_secret_value())
            except ValueError as error:
                faults[variable] = f"{in_file}: {error}"
        return values, faults


def load(**overrides: Any) -> Settings:
    """Return the settings of the environment and `.env`; ConfigurationError lists every fault at once."""
    variables, in_file = environment.read()
    names = [*(name.upper() for name in Settings.model_fields), *(name + FILE_SUFFIX for name in FROM_FILES)]
    unknown = tuple(environment.find_unknown(variables, in_file, names, PLUGIN_PREFIX))
    faults = [f"there is no setting {each.variable} (did you mean {each.meant}?)" for each in unknown if each.is_slip]
    given, unread = _given_in_files(in_file | variables)
    faults += unread
    values: dict[str, Any] = {**given, **overrides}
    try:
        settings = Settings(_env_file=environment.FILE, **values)
    except PydanticValidationError as error:
        faults += _faults(error)
    if faults:
        raise ConfigurationError("Invalid settings: " + "; ".join(faults))
    settings = settings.with_plugin_variables(
        {name: value for name, value in (in_file | variables).items() if name.startswith(PLUGIN_PREFIX)}
    )
    settings._unknown_variables = unknown
    return settings


# Secrets are given to containers and services as files: NAME_FILE names the one that holds what is set.
FROM_FILES = tuple(
    name.upper() for name, field in Settings.model_fields.items() if field.annotation is SecretStr or "key" in name
)


def _given_in_files(variables: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Return what the files hold that NAME_FILE variables name, by field; and what is wrong with the others."""
    given, faults = {}, []
    by_name = {name.upper(): value for name, value in variables.items()}
    for name in FROM_FILES:
        if (path := by_name.get(name + FILE_SUFFIX)) is None:
            continue
        if name in by_name:
            faults.append(f"{name} and {name + FILE_SUFFIX} are both set: remove one")
            continue
        try:
            given[name.lower()] = environment.read_value(path)
        except ValueError as error:
            faults.append(f"{name + FILE_SUFFIX}: {error}")
    return given, faults


def plugin_variable(name: str, field: str) -> str:
    """Return the environment variable of a plugin's own setting, "" as field for how all of them begin."""
    return PLUGIN_PREFIX + re.sub(r"[^A-Z0-9]", "_", name.upper()) + "_" + field.upper()


def _faults(error: PydanticValidationError, prefix: str = "") -> list[str]:
    faults = []
    for fault in error.errors(include_input=False):
        name = prefix + ".".join(map(str, fault["loc"])).upper()
        text = fault["msg"].removeprefix("Value error, ")
        faults.append(f"{name}: {text}" if fault["loc"] else text)
    return faults


def _split(text: str, separator: str = ",") -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(separator) if part.strip())


def is_loopback(host: str) -> bool:
    """True when only this machine can reach the host name or address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _public_url_fault(url: str) -> str:
    if fault := web_fault(url):
        return fault
    if any(sign in url for sign in "?#@"):
        return "it must have no user, no query and no fragment"
    return "" if is_safe_url(url) else SAFE_ONLY


def _login_url_fault(url: str) -> str:
    # It is sent tokens' addresses, and sends tokens.
    return web_fault(url) or ("" if is_safe_url(url) else SAFE_ONLY)


def _key_set_fault(url: str) -> str:
    # Who can change the reply on its way could make tokens.
    return web_fault(url) or ("" if is_safe_url(url) else SAFE_ONLY)


def is_safe_url(url: str) -> bool:
    """True for https, and for http on a loopback host: nobody on the way can read or change what comes."""
    parts = urlsplit(url)
    return bool(parts.hostname) and (
        parts.scheme == "https" or (parts.scheme == "http" and is_loopback(parts.hostname or ""))
    )
