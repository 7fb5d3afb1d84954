"""All that a plugin imports: `from pipeline.hooks import hookimpl, Analysis, ...` (and pipeline.errors)."""

from pipeline.clock import utc_now
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
    Progress,
    ReportingAIProvider,
    RoomPublisher,
    Sandbox,
    SandboxPool,
    StorageBackend,
    StorageLinking,
    StorageListing,
    StoredImage,
    UploadFacts,
)
from pipeline.hooks.specs import API_VERSION, hookimpl
from pipeline.sandbox import Picture
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
    "Picture",
    "PluginSettings",
    "ProcessedImage",
    "Progress",
    "ReportingAIProvider",
    "RoomPublisher",
    "Sandbox",
    "SandboxPool",
    "StorageBackend",
    "StorageLinking",
    "StorageListing",
    "StoredImage",
    "UploadFacts",
    "hookimpl",
    "utc_now",
]
