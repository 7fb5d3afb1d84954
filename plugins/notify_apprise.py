"""The notifier `apprise`: a short text about each event, through any service the Apprise package knows.

Plain `def`: the package blocks, so it runs in threads. It notifies all services at once, in its own threads, and waits
for them at most the given time. When the event is retried because one service failed, the services that already got it
are left out; otherwise their users would read the same line twelve times. Only this process remembers them.
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
# A URL may contain commas itself.
BETWEEN_URLS = re.compile(r"[\s,]+(?=\w+://)|[\s,]+$")
# Of events that reached some of the services only; more than ever wait for their next try.
MAX_PARTIAL_DELIVERIES = 10_000


class AppriseSettings(PluginSettings):
    """The services to notify."""

    urls: SecretStr = Field(
        description="URLs as in https://github.com/caronc/apprise, like tgram://TOKEN/CHAT, several separated by "
        "commas or spaces; a secret because most contain tokens."
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
    """Notifies every service in one call.

    budget_seconds: the longest time that a call waits for the services.
    """

    durable = True

    def __init__(self, settings: AppriseSettings, budget_seconds: float) -> None:
        try:
            # Not at the top: the package is optional, and slow to import.
            import apprise
        except ImportError:
            raise ConfigurationError("the package is missing: pip install 'ai-queue-pipeline[apprise]'") from None
        self._apprise = apprise
        self._asset = apprise.AppriseAsset(app_id="ai-queue-pipeline", app_desc="AI queue pipeline")
        self._title = settings.title
        self._budget_seconds = budget_seconds
        self._services = self._parse(settings.urls.get_secret_value())
        # delivery id -> tags of the services that got the event
        self._partial_deliveries: dict[str, frozenset[str]] = {}
        self._lock = threading.Lock()

    def notify(self, notification: Notification) -> None:
        """Return when every service has the event; RetryableJobError when one failed, whatever the reason: Apprise does
        not say which failures are temporary.
        """
        delivery_id = notification.delivery_id
        with self._lock:
            notified = self._partial_deliveries.pop(delivery_id, frozenset())
        missing = [service for tag, service in self._services.items() if tag not in notified]
        kind = getattr(self._apprise.NotifyType, _kind(notification.event))
        # As plain text: services that show HTML or Markdown then escape the AI service's words.
        with self._apprise.Apprise(missing, asset=self._asset).notify(
            describe(notification.event),
            self._title,
            notify_type=kind,
            body_format=self._apprise.NotifyFormat.TEXT,
            timeout=self._budget_seconds,
        ) as result:
            if result:
                return
            notified |= {tag for each in result.results if each for tag in each.tag}
        if notified and delivery_id:
            self._remember(delivery_id, notified)
        failed = len(self._services) - len(notified)
        raise RetryableJobError(f"{failed} of {len(self._services)} Apprise services did not get the event")

    def _remember(self, delivery_id: str, notified: frozenset[str]) -> None:
        with self._lock:
            self._partial_deliveries[delivery_id] = notified
            if len(self._partial_deliveries) > MAX_PARTIAL_DELIVERIES:
                del self._partial_deliveries[next(iter(self._partial_deliveries))]

    def _parse(self, text: str) -> dict[str, Any]:
        """Return the services by tag, which is their number; Apprise's results contain the tags."""
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
    # Apprise logs URLs that it cannot parse, and masks only the parts that look like tokens.
    logger = logging.getLogger(name)
    was_disabled, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = was_disabled


def describe(event: Mapping[str, Any]) -> str:
    """Return a line for people and the asset's id."""
    return f"{_headline(event)}\nAsset {event['assetId']}"


def _headline(event: Mapping[str, Any]) -> str:
    if event["status"] == "failed":
        return f"Photo failed: {event['error']}"
    attributes = [event["aiMetadata"][name] for name in ("brand", "model")]
    known = [attribute for attribute in attributes if attribute["value"]]
    if not known:
        return "Photo not recognised"
    name = " ".join(attribute["value"] for attribute in known)
    # The name is right only if both are.
    confidence = min(attribute["confidence"] for attribute in known)
    return f"{name} {'recognised' if known == attributes else 'partly recognised'} ({confidence:.0%})"


def _kind(event: Mapping[str, Any]) -> str:
    return {"failed": "FAILURE", "partial": "WARNING"}.get(event["status"], "SUCCESS")
