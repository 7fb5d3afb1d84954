"""All that a plugin imports: `from pipeline.hooks import hookimpl, Analysis, ...` (and pipeline.errors)."""

from pipeline.hooks.protocols import (
    UNKNOWN,
    AIProvider,
    Analysis,
    AnalyzeRequest,
    Attribute,
    JobEvent,
    Notification,
    Notifier,
    ProcessedImage,
    RoomPublisher,
    StorageBackend,
    UploadFacts,
)
from pipeline.hooks.specs import API_VERSION, hookimpl
from pipeline.settings import PluginSettings

__all__ = [
    "API_VERSION",
    "UNKNOWN",
    "AIProvider",
    "Analysis",
    "AnalyzeRequest",
    "Attribute",
    "JobEvent",
    "Notification",
    "Notifier",
    "PluginSettings",
    "ProcessedImage",
    "RoomPublisher",
    "StorageBackend",
    "UploadFacts",
    "hookimpl",
]
