"""The notifier `apprise`: a short text about each event, through any service the Apprise package knows.

Plain `def`: the package blocks, so it runs in threads. It tells all its services at once, in threads of its own, and
waits for them no longer than it is told. A service that was told is left out when the event comes again for the sake
of another one, so that nobody reads the same line twelve times; this is remembered in the process only.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pydantic import Field, SecretStr

from pipeline.errors import ConfigurationError, RetryableJobError
from pipeline.hooks import Notification, Notifier, PluginSettings, hookimpl

if TYPE_CHECKING:
    from pipeline.settings import Settings

EXTRA, PACKAGES = "apprise", ("apprise",)
# Addresses may hold commas themselves.
BETWEEN_URLS = re.compile(r"[\s,]+(?=\w+://)|[\s,]+$")
# Events that reached some of the services only; more than ever wait for their next try.
MAX_HALF_TOLD = 10_000


class AppriseSettings(PluginSettings):
    """Whom to tell."""

    urls: SecretStr = Field(
        description="Addresses as https://github.com/caronc/apprise lists them, like tgram://TOKEN/CHAT, several "
        "separated by commas or blanks; a secret because most hold tokens."
    )
    title: str = Field(default="Photo analysed", description="Subject of mails and head of messages.")


@hookimpl
def register_settings() -> Iterator[tuple[str, type[PluginSettings]]]:
    """Declare PLUGIN_APPRISE_*."""
    yield "apprise", AppriseSettings


@hookimpl
def register_notifiers(settings: Settings) -> Iterator[tuple[str, Callable[[], Notifier]]]:
    """Offer `apprise`."""
    # A little under the caller's budget, so that the reason arrives rather than a timeout.
    budget_seconds = settings.notifier_timeout_seconds * 0.9
    yield "apprise", lambda: AppriseNotifier(settings.plugin("apprise", AppriseSettings), budget_seconds)


class AppriseNotifier:
    """Tells every service in one call. budget_seconds: the longest a call waits for them."""

    durable = True

    def __init__(self, settings: AppriseSettings, budget_seconds: float) -> None:
        try:
            # Here and not above: it is an extra, and slow to import.
            import apprise
        except ImportError:
            raise ConfigurationError("the package is missing: pip install 'ai-queue-pipeline[apprise]'") from None
        self._apprise = apprise
        self._asset = apprise.AppriseAsset(app_id="ai-queue-pipeline", app_desc="AI queue pipeline")
        self._title = settings.title
        self._budget_seconds = budget_seconds
        self._services = self._parse(settings.urls.get_secret_value())
        self._half_told: dict[str, frozenset[str]] = {}
        self._lock = threading.Lock()

    def notify(self, notification: Notification) -> None:
        """Return when every service was told; RetryableJobError when one was not, whatever the reason: Apprise does not
        say which failures will pass.
        """
        delivery_id = notification.delivery_id
        with self._lock:
            told = self._half_told.pop(delivery_id, frozenset())
        missing = [service for tag, service in self._services.items() if tag not in told]
        kind = getattr(self._apprise.NotifyType, _kind(notification.event))
        # Text, so that services that show HTML or Markdown escape what the AI service wrote.
        with self._apprise.Apprise(missing, asset=self._asset).notify(
            describe(notification.event),
            self._title,
            notify_type=kind,
            body_format=self._apprise.NotifyFormat.TEXT,
            timeout=self._budget_seconds,
        ) as result:
            if result:
                return
            told |= {tag for each in result.results if each for tag in each.tag}
        if told and delivery_id:
            self._remember(delivery_id, told)
        failed = len(self._services) - len(told)
        raise RetryableJobError(f"{failed} of {len(self._services)} Apprise services were not told")

    def _remember(self, delivery_id: str, told: frozenset[str]) -> None:
        with self._lock:
            self._half_told[delivery_id] = told
            if len(self._half_told) > MAX_HALF_TOLD:
                del self._half_told[next(iter(self._half_told))]

    def _parse(self, text: str) -> dict[str, Any]:
        """Return the services by tag: their numbers, by which a result names them."""
        services = {}
        for number, url in enumerate(filter(None, BETWEEN_URLS.split(text)), 1):
            with _silenced("apprise"):
                service = self._apprise.Apprise.instantiate(url, asset=self._asset, tag=str(number))
            if service is None:
                raise ConfigurationError(f"PLUGIN_APPRISE_URLS: Apprise does not understand address {number}")
            services[str(number)] = service
        if not services:
            raise ConfigurationError("PLUGIN_APPRISE_URLS: names no address")
        return services


@contextmanager
def _silenced(name: str) -> Iterator[None]:
    # Apprise logs what it does not understand, and masks only what looks like a token to it.
    logger = logging.getLogger(name)
    was_disabled, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = was_disabled


def describe(event: Mapping[str, Any]) -> str:
    """Return the event as a line for people and the asset's id."""
    return f"{_headline(event)}\nAsset {event['assetId']}"


def _headline(event: Mapping[str, Any]) -> str:
    if event["status"] == "failed":
        return f"Photo failed: {event['error']}"
    found = [event["aiMetadata"][name] for name in ("brand", "model")]
    known = [attribute for attribute in found if attribute["value"]]
    if not known:
        return "Photo not recognised"
    name = " ".join(attribute["value"] for attribute in known)
    # Both must be right for the whole to be.
    confidence = min(attribute["confidence"] for attribute in known)
    return f"{name} {'recognised' if known == found else 'partly recognised'} ({confidence:.0%})"


def _kind(event: Mapping[str, Any]) -> str:
    return {"failed": "FAILURE", "partial": "WARNING"}.get(event["status"], "SUCCESS")
