"""The settings themselves: each with its type, its default, its unit in the name, and why this default."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from pipeline.settings.kinds import DEFAULT_CATEGORIES, CategoryMap, CommaList, Fairness, LogFormat, MongoDriver, Role


def _f(default: Any, why: str, **constraints: Any) -> Any:
    return Field(default=default, description=why, **constraints)


class Fields(BaseSettings):
    """The fields of Settings."""

    model_config = SettingsConfigDict(
        frozen=True, env_file=None, env_file_encoding="utf-8", extra="ignore", env_ignore_empty=True
    )

    # where it listens and what it does
    host: str = _f("127.0.0.1", "Address to listen on; any but loopback needs JWT_SECRET or a public key.")
    port: int = _f(8080, "Port to listen on; 0 takes a free one and prints it.", ge=0, le=65535)
    reuse_port: bool = _f(
        False,
        "Several processes of this machine listen on one PORT, and the system distributes connections among them "
        "(SO_REUSEPORT); they need one REDIS_URL. Default off: a port that is taken by mistake must be an error.",
    )
    public_url: str = _f(
        "", "The address at which browsers and the AI service reach this service. Default: http://HOST:PORT."
    )
    login_url: str = _f(
        "",
        "Page of your login. Our pages send people there to sign in, with return_to=ADDRESS; it sends them back to "
        "that address with #token=JWT. Default: our pages take the links printed on this machine, or a pasted token.",
    )
    grafana_url: str = _f("", "Base URL of your Grafana; the console then links to its dashboards.")
    data_dir: Path = _f(
        Path("data"),
        "Folder for the files of everything embedded (Redis, SQLite, images, the generated secret) and for large "
        "uploads while they arrive.",
    )
    role: Role = _f(Role.ALL, "all, web (HTTP and sockets only) or worker (jobs, health and metrics only).")

    # the services it uses; each that is not set is embedded
    redis_url: SecretStr = _f(
        SecretStr(""),
        "redis:// or rediss:// (TLS) of the queue; redis://HOST:PORT,HOST:PORT names several nodes of a Redis Cluster, "
        "redis+sentinel://HOST:PORT,HOST:PORT/MASTER/DATABASE Sentinels. Default: a Redis of its own under DATA_DIR.",
    )
    queue_prefix: str = _f(
        "pipeline",
        "First part of the names of all keys and channels in Redis. Installations that share a Redis need one each.",
        pattern="^[A-Za-z0-9_.-]{1,64}$",
    )
    mongodb_uri: SecretStr = _f(
        SecretStr(""), "mongodb:// of the asset store, with the database name. Default: SQLite under DATA_DIR."
    )
    mongodb_driver: MongoDriver = _f(
        MongoDriver.PYMONGO, "Driver of MongoDB: pymongo, or motor, which costs more CPU and is at its end of life."
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
        "AI provider plugins, comma-separated: the next is asked after the one before has failed for good, or while it "
        "is held. local>openai: also when brand or model is missing in an answer; the more complete answer counts. "
        "Default: http when AI_SERVICE_URL is set, else local.",
    )
    ai_provider_by_category: CategoryMap = _f(
        {}, "AI providers of single categories: sneaker=acme,lego=acme+local>openai, with + for the comma."
    )
    ai_budget_per_day: float = _f(
        0,
        "Cost of all AI providers together in a day (UTC), in AI_BUDGET_CURRENCY. Jobs beyond it wait for the next "
        "day, and so do jobs of a provider that does not say what a call costs. 0: no limit.",
        ge=0,
    )
    ai_budget_per_user_per_day: float = _f(
        0, "The same for the photos of each user: only that user's jobs wait. 0: no limit.", ge=0
    )
    ai_budget_currency: str = _f(
        "USD", "Currency of the budgets; a cost in another currency counts as unknown.", pattern="^[A-Z]{3}$"
    )
    ai_cache: bool = _f(
        False, "Reuses a complete answer for 30 days: for the same photo, category, provider, AI model and prompt."
    )
    storage_backend: str = _f(
        "",
        "Storage plugin of new images; older images stay where they are. Default: cloudinary_private when "
        "CLOUDINARY_URL is set (its URLs expire; those of cloudinary are public for ever), else local.",
    )
    notifiers: CommaList = _f(("websocket",), "Notifier plugins, comma-separated; all are called at once.")
    plugins_disabled: CommaList = _f(
        (), "Plugins that are not loaded, comma-separated: names of entry points, or of built-in modules."
    )
    plugins_enabled: CommaList = _f(
        (),
        "The only plugins that are loaded beside the built-in ones, comma-separated: names of entry points, or of "
        "files in PLUGINS_DIR. Default: all that are installed.",
    )
    plugins_dir: Path | None = _f(
        None,
        "Folder with plugins of one file each, named as the file: acme.py. Files that begin with _ are not loaded.",
    )
    plugins_safe_mode: bool = _f(
        False, "Loads built-in plugins only, to find out whether an installed one causes a fault."
    )
    plugins_trace: bool = _f(False, "Logs a line for each call of a plugin: its method, milliseconds, outcome.")
    filters_required: CommaList = _f(
        (),
        "Plugins without whose filters nothing passes, comma-separated: while one of them cannot answer, uploads are "
        "refused with 503 and results wait.",
    )

    # who may call
    jwt_secret: SecretStr = _f(
        SecretStr(""),
        "HS256 secret of 32 bytes or more, which signs tokens. Default: generated into DATA_DIR, for loopback only.",
    )
    jwt_secrets_old: SecretStr = _f(
        SecretStr(""),
        "Earlier secrets, one in a line: their tokens stay valid while JWT_SECRET is changed, and nothing new is "
        "signed with them. See docs/operations.md.",
    )
    jwt_public_key: str = _f(
        "",
        "PEM public key, RSA of 2048 bits or more or EC P-256; then only RS256 or ES256 is accepted. While the key is "
        "changed: both keys, one after the other.",
    )
    jwt_jwks_url: str = _f(
        "", "Address of a JWKS for RS256/ES256 with rotating keys: https://, or http:// on a loopback host."
    )
    jwt_audience: str = _f("", "The `aud` that a token must have, when set.")
    jwt_issuer: str = _f("", "The `iss` that a token must have, when set.")
    allowed_origins: CommaList = _f(
        (),
        "Origins besides PUBLIC_URL's whose pages may call and open sockets, comma-separated, as https://app.example; "
        "* and null are not accepted.",
    )
    trusted_proxies: CommaList = _f(
        (),
        "Addresses and networks of your proxies, comma-separated: the client's address is read from their "
        "X-Forwarded-For. private stands for all private networks and loopback. Default: none, the address of the "
        "connection counts.",
    )

    # limits of one client; docs/operations.md says more
    uploads_per_minute_per_user: int = _f(
        300,
        "Photos that one user may send, or have analysed again, in a minute before the next gets 429; twice as many "
        "may come at once. 0: no limit. More than AI services answer, less than a flood.",
        ge=0,
    )
    requests_per_minute_per_user: int = _f(
        1200,
        "All other requests of one user, counted in the same way; operators have no limit. A busy page sends ten in a "
        "minute.",
        ge=0,
    )
    wrong_tokens_per_minute_per_address: int = _f(
        60,
        "Invalid tokens from one address (of IPv6: one /64), counted in the same way; expired ones do not count. Valid "
        "and expired tokens from there are not affected.",
        ge=0,
    )
    max_stored_bytes_per_user: int = _f(
        0, "Size of all stored images of one user before uploads get 403: 1000000000 for 1 GB. 0: no limit.", ge=0
    )

    # uploads
    max_upload_bytes: int = _f(10 * 1024 * 1024, "Largest image part: the contract's 10 MB.", ge=1024)
    decode_memory_mb: int = _f(
        1024,
        "Memory that decoding one photo may take; one that needs more is refused. Enough for 200 megapixels of JPEG or "
        "PNG, 70 of AVIF, 60 of HEIC and 57 of WebP.",
        ge=64,
    )
    sandbox_processes: int = _f(
        1,
        "Child processes in which the local AI provider reads photos, each one photo at a time. Each takes 360 MB and "
        "a processor core.",
        ge=1,
        le=64,
    )
    media_url_seconds: int = _f(
        0,
        "How long the URL of an image works; local URLs are then signed, too. 0: local URLs work for ever, those of "
        "storages that sign for a day.",
        ge=0,
        le=7 * 24 * 3600,
    )
    preview_processes: int = _f(
        2,
        "Child processes that make previews of photos, each one photo at a time and at low priority. 0: no previews.",
        ge=0,
        le=64,
    )
    keep_metadata: bool = _f(
        False,
        "Stores photos as they were sent, with the position, owner and serial number that cameras write into them; see "
        "docs/privacy.md.",
    )
    dedupe_uploads: bool = _f(
        False,
        "Treats an upload without an Idempotency-Key as a repetition of an earlier one: of the same user, category "
        "and image bytes, while the earlier one is still processing.",
    )

    categories: CommaList = _f(
        DEFAULT_CATEGORIES,
        "Categories of photos, comma-separated: 1 to 50 names of 1 to 40 characters a-z, 0-9, _ and -. Assets of a "
        "category that is removed stay as they are. Default: the specification's four.",
    )

    # jobs
    concurrency: int = _f(5, "Job slots of this process: the specification's five.", ge=1, le=1000)
    job_attempts: int = _f(3, "Attempts of a job before it fails for good: the specification's three.", ge=1)
    backoff_ms: int = _f(2000, "Wait before the second attempt; doubles each time: the specification's 2000 ms.", ge=0)
    job_timeout_seconds: float = _f(120, "Longest one attempt may take: the specification's 120 s.", gt=0)
    provider_timeout_seconds: float = _f(90, "Longest one call of an AI provider: the specification's 90 s.", gt=0)
    storage_timeout_seconds: float = _f(
        25, "Longest one call of a storage: less than the 30 s between provider and job timeout.", gt=0
    )
    notifier_timeout_seconds: float = _f(
        10, "Longest one call of a notifier; the other notifiers do not wait for it.", gt=0
    )
    hook_timeout_seconds: float = _f(
        2, "Longest one call of an observer or a filter; short, because uploads wait for filters.", gt=0
    )
    user_claims: CommaList = _f(
        (),
        "Claims of an upload's token that notifiers get with its event, comma-separated, as email,locale; stored with "
        "the asset, at most 2 KB, and never shown. Default: none, because they are about a person.",
    )
    lease_seconds: float = _f(
        15, "How long after the death of a process its jobs run again; leases are renewed three times as often.", gt=0
    )
    job_max_age_seconds: float = _f(
        86_400, "A job that still waits for an answer so long after its upload fails with the last reason.", gt=0
    )
    queue_fairness: Fairness = _f(
        Fairness.NONE,
        "none: all jobs in order of submission. user: one job of each user after the other, each user's in order.",
    )
    max_backlog: int = _f(
        1_000_000, "Jobs of all users that may wait before uploads get 503; each takes about 1 kB of Redis.", ge=1
    )
    max_backlog_per_user: int = _f(10_000, "Unfinished jobs that one user may have before uploads get 429.", ge=1)
    keep_completed_seconds: int = _f(86_400, "How long completed jobs stay visible: the specification's 24 h.", ge=0)
    keep_failed_seconds: int = _f(604_800, "How long failed jobs stay listed: the specification's 7 days.", ge=0)
    keep_assets_days: float = _f(
        0, "How long after their end assets are deleted, with all that belongs to them. 0: never.", ge=0
    )
    keep_originals_days: float = _f(
        0,
        "How long after the end of an asset its original is deleted; the asset cannot be analysed again then. 0: with "
        "the asset.",
        ge=0,
    )

    # sockets
    max_sockets: int = _f(
        10_000,
        "Sockets, event streams and waiting polls of this process; further clients are asked to come back, and may "
        "reach another process.",
        ge=1,
    )
    max_sockets_per_user: int = _f(20, "The same of one user on this process; the newest replace the oldest.", ge=1)
    outbox_bytes: int = _f(
        1024 * 1024, "Bytes that may wait for one slow client before its connection is closed.", ge=1024
    )

    # running it
    lame_duck_seconds: float = _f(
        0,
        "How long after SIGTERM the process goes on serving while /readyz says 503, so that load balancers send no "
        "new clients; SHUTDOWN_SECONDS comes on top. 5 behind a load balancer; 0 without one.",
        ge=0,
    )
    shutdown_seconds: float = _f(
        25, "Time to finish running jobs after SIGTERM; less than the 30 s that orchestrators give.", ge=0
    )
    log_format: LogFormat = _f(LogFormat.AUTO, "auto, json or console. auto: console on a terminal, else json.")
    log_level: str = _f("INFO", "DEBUG, INFO, WARNING or ERROR.", pattern="^(DEBUG|INFO|WARNING|ERROR)$")
    otel_exporter_otlp_endpoint: str = _f(
        "", "Base URL of an OpenTelemetry collector (OTLP over HTTP) for traces. Default: no traces. Needs [otel]."
    )
