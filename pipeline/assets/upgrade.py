"""The field that documents of version 0.1 lack: the storage of their images. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

# Returns the name of the storage that holds the image of that public_id and url.
BackendOf = Callable[[str, str], str]


def missing_backends(images: Any, backend_of: BackendOf) -> dict[str, str] | None:
    """Return the storage of each image of a document that names none, as {"original": "local"}.

    None: the document is damaged, and stays as it is.
    """
    if not isinstance(images, Mapping) or not isinstance(images.get("original"), Mapping):
        return None
    backends = {}
    for role in ("original", "processed"):
        image = images.get(role)
        if not isinstance(image, Mapping) or image.get("backend") is not None:
            continue
        public_id, url = image.get("publicId"), image.get("url")
        if not all(isinstance(text, (str, type(None))) for text in (public_id, url)):
            return None
        backends[role] = backend_of(public_id, url or "") if public_id else ""
    return backends
