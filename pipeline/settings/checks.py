"""What must hold for settings beyond the type of each: their sizes, addresses and names, and how they fit together.

Each function yields the faults it finds, without values: a value may be the secret of another setting.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from pydantic import SecretStr

from pipeline.addresses import mongodb_fault, redis_fault, web_fault
from pipeline.origins import origin_fault
from pipeline.proxies import proxy_fault
from pipeline.settings.hosts import is_loopback, is_safe_url
from pipeline.settings.kinds import CATEGORY, CLOUDINARY
from pipeline.weak_secrets import KEYS_AT_MOST, secret_fault

if TYPE_CHECKING:
    from pipeline.settings.settings import Settings

MAX_CATEGORIES = 50
# The largest number a setting may have, by the unit its name ends in: a century, and what every database counts to.
LARGEST_BY_UNIT = {"_seconds": 3_155_760_000, "_ms": 3_155_760_000_000}
LARGEST = 10**12
# The fault of most people's first `docker run`, so it names the words to add.
NO_KEY = (
    "set JWT_SECRET to a random secret, as `openssl rand -base64 32` prints it (docker run -e JWT_SECRET=...), and "
    "keep it: it signs the tokens. Or set JWT_PUBLIC_KEY or JWT_JWKS_URL, if a login of yours signs them"
)
SAFE_ONLY = "must be https:// (http:// only for a loopback host)"


def setting_faults(settings: Settings) -> Iterator[str]:
    """Yield every fault there is."""
    yield from _number_faults(settings)
    yield from _text_faults(settings)
    yield from _address_faults(settings)
    yield from _category_faults(settings)
    if settings.provider_timeout_seconds >= settings.job_timeout_seconds:
        yield "PROVIDER_TIMEOUT_SECONDS must be less than JOB_TIMEOUT_SECONDS"
    yield from _token_faults(settings)
    yield from _old_secret_faults(settings)
    if "http" in settings.all_providers and not settings.ai_service_url:
        yield "AI_PROVIDER=http needs AI_SERVICE_URL"
    if settings.storage_name in CLOUDINARY and not settings.cloudinary_url.get_secret_value():
        yield f"STORAGE_BACKEND={settings.storage_name} needs CLOUDINARY_URL"
    yield from (f"ALLOWED_ORIGINS: {fault}" for each in settings.allowed_origins if (fault := origin_fault(each)))
    yield from (f"TRUSTED_PROXIES: {fault}" for each in settings.trusted_proxies if (fault := proxy_fault(each)))


def _number_faults(settings: Settings) -> Iterator[str]:
    for name in type(settings).model_fields:
        number = getattr(settings, name)
        largest = next((most for unit, most in LARGEST_BY_UNIT.items() if name.endswith(unit)), LARGEST)
        # `not <=` finds nan as well, `>` would not.
        if isinstance(number, (int, float)) and not number <= largest:
            yield f"{name.upper()} must be at most {largest}"


def _text_faults(settings: Settings) -> Iterator[str]:
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        text = value.get_secret_value() if isinstance(value, SecretStr) else value
        # Python stores a byte of the environment that is no UTF-8 as half of a surrogate pair.
        if isinstance(text, str) and not text.isascii() and re.search("[\ud800-\udfff]", text):
            yield f"{name.upper()} is not UTF-8"


def _address_faults(settings: Settings) -> Iterator[str]:
    given: dict[str, tuple[str, Callable[[str], str]]] = {
        "REDIS_URL": (settings.redis_url.get_secret_value(), redis_fault),
        "MONGODB_URI": (settings.mongodb_uri.get_secret_value(), mongodb_fault),
        "AI_SERVICE_URL": (settings.ai_service_url, web_fault),
        # A key set that is changed on its way would accept foreign tokens.
        "JWT_JWKS_URL": (settings.jwt_jwks_url, _safe_url_fault),
        "OTEL_EXPORTER_OTLP_ENDPOINT": (settings.otel_exporter_otlp_endpoint, web_fault),
        "PUBLIC_URL": (settings.public_url, _public_url_fault),
        # The login sends tokens.
        "LOGIN_URL": (settings.login_url, _safe_url_fault),
        "GRAFANA_URL": (settings.grafana_url, web_fault),
    }
    for name, (address, find_fault) in given.items():
        if address and (fault := find_fault(address)):
            yield f"{name}: {fault}"


def _public_url_fault(url: str) -> str:
    if not web_fault(url) and any(sign in url for sign in "?#@"):
        return "it must have no user, no query and no fragment"
    return _safe_url_fault(url)


def _safe_url_fault(url: str) -> str:
    return web_fault(url) or ("" if is_safe_url(url) else SAFE_ONLY)


def _category_faults(settings: Settings) -> Iterator[str]:
    names = settings.categories
    if not 1 <= len(names) <= MAX_CATEGORIES:
        yield f"CATEGORIES must have 1 to {MAX_CATEGORIES} names, not {len(names)}"
    if bad := [at for at, name in enumerate(names, 1) if not CATEGORY.fullmatch(name)]:
        yield f"CATEGORIES: name {bad[0]} must be 1 to 40 characters a-z, 0-9, _ and -"
    elif twice := [name for at, name in enumerate(names) if name in names[:at]]:
        yield f"CATEGORIES has {twice[0]!r} twice"
    for category in ("", *settings.ai_provider_by_category):
        if not all(settings.cascade(category)):
            yield f"AI_PROVIDER{'_BY_CATEGORY' if category else ''}: a provider is missing before or after >"
    for name in settings.ai_provider_by_category:
        if name not in names:
            yield f"AI_PROVIDER_BY_CATEGORY: there is no category {name!r}; there are {', '.join(names)}"


def _token_faults(settings: Settings) -> Iterator[str]:
    secret = settings.jwt_secret.get_secret_value()
    if secret and (fault := secret_fault(secret)):
        yield f"JWT_SECRET {fault}"
    if "PRIVATE KEY" in settings.jwt_public_key:
        yield "JWT_PUBLIC_KEY is a private key: set its public key, and keep this one secret"
    if sum(map(bool, (secret, settings.jwt_public_key, settings.jwt_jwks_url))) > 1:
        yield "only one of JWT_SECRET, JWT_PUBLIC_KEY and JWT_JWKS_URL may be set"
    if not (secret or settings.jwt_public_key or settings.jwt_jwks_url or is_loopback(settings.host)):
        yield f"HOST is not loopback: {NO_KEY}"


def _old_secret_faults(settings: Settings) -> Iterator[str]:
    old_secrets = settings.old_secrets
    for number, old in enumerate(old_secrets, 1):
        if fault := secret_fault(old):
            yield f"JWT_SECRETS_OLD, number {number} {fault}"
    if len(old_secrets) >= KEYS_AT_MOST:
        yield f"JWT_SECRETS_OLD has {len(old_secrets)} secrets: {KEYS_AT_MOST - 1} are the most"
    if old_secrets and (settings.jwt_public_key or settings.jwt_jwks_url):
        yield "JWT_SECRETS_OLD goes with JWT_SECRET only"
