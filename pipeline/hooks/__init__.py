"""All that a plugin imports: `from pipeline.hooks import hookimpl, Analysis, ...` (and pipeline.errors)."""

from pipeline.clock import utc_now
from pipeline.errors import NotReady
from pipeline.hooks.context_api import Context, Measure, PluginStore, Starting
from pipeline.hooks.hook_arguments import JobEvent, UploadFacts
from pipeline.hooks.notifier_protocol import BatchNotifier, Notification, Notifier, RoomPublisher
from pipeline.hooks.provider_protocol import (
    CONFIDENCE_KINDS,
    UNKNOWN,
    AIProvider,
    Analysis,
    AnalyzeRequest,
    Attribute,
    ProcessedImage,
    Progress,
    Rate,
    ReportingAIProvider,
    Usage,
)
from pipeline.hooks.sandbox_protocol import Sandbox, SandboxPool
from pipeline.hooks.storage_protocol import (
    NewImage,
    StorageBackend,
    StorageBatches,
    StorageLinking,
    StorageListing,
    StoredImage,
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
