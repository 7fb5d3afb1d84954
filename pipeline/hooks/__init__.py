"""All that a plugin imports: `from pipeline.hooks import hookimpl, Analysis, ...` (and pipeline.errors)."""

from pipeline.clock import utc_now
from pipeline.errors import NotReady
from pipeline.hooks.context_api import Context, Measure, PluginStore, Starting
from pipeline.hooks.protocols import (
    CONFIDENCE_KINDS,
    UNKNOWN,
    AIProvider,
    Analysis,
    AnalyzeRequest,
    Attribute,
    BatchNotifier,
    JobEvent,
    NewImage,
    Notification,
    Notifier,
    ProcessedImage,
    Progress,
    Rate,
    ReportingAIProvider,
    RoomPublisher,
    Sandbox,
    SandboxPool,
    StorageBackend,
    StorageBatches,
    StorageLinking,
    StorageListing,
    StoredImage,
    UploadFacts,
    Usage,
)
from pipeline.hooks.replies import retry_after_of
from pipeline.hooks.routes import PluginReply, PluginRequest, Routes
from pipeline.hooks.specs import API_VERSION, hookimpl
from pipeline.sandbox import Picture
from pipeline.settings import PluginSettings

__all__ = [
    "API_VERSION",
    "CONFIDENCE_KINDS",
    "UNKNOWN",
    "AIProvider",
    "Analysis",
    "AnalyzeRequest",
    "Attribute",
    "BatchNotifier",
    "Context",
    "JobEvent",
    "Measure",
    "NewImage",
    "NotReady",
    "Notification",
    "Notifier",
    "Picture",
    "PluginReply",
    "PluginRequest",
    "PluginSettings",
    "PluginStore",
    "ProcessedImage",
    "Progress",
    "Rate",
    "ReportingAIProvider",
    "RoomPublisher",
    "Routes",
    "Sandbox",
    "SandboxPool",
    "Starting",
    "StorageBackend",
    "StorageBatches",
    "StorageLinking",
    "StorageListing",
    "StoredImage",
    "UploadFacts",
    "Usage",
    "hookimpl",
    "retry_after_of",
    "utc_now",
]
