"""All that a plugin imports: `from pipeline.hooks import hookimpl, Analysis, ...` (and pipeline.errors)."""

from pipeline.hooks.protocols import (
    UNKNOWN,
    AIProvider,
    Analysis,
    AnalyzeRequest,
    Attribute,
    Notification,
    Notifier,
    ProcessedImage,
    RoomPublisher,
    StorageBackend,
)
from pipeline.hooks.specs import hookimpl

__all__ = [
    "UNKNOWN",
    "AIProvider",
    "Analysis",
    "AnalyzeRequest",
    "Attribute",
    "Notification",
    "Notifier",
    "ProcessedImage",
    "RoomPublisher",
    "StorageBackend",
    "hookimpl",
]
