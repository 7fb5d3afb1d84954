"""The URLs under which the service itself serves the images of a folder, /media/<public_id>; signed if they expire.

A storage with a `media_root` makes its URLs here, and handlers/media.py checks them here. The key is a file in that
folder, beside the images: so every process that serves these images accepts the URLs of the other processes.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import os
import re
import secrets
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlencode

from pipeline.clock import utc_now

KEY_NAME = ".key"
KEY_BYTES = 32
EXPIRES = re.compile(r"[0-9]{1,12}")


class MediaLinks:
    """Makes and checks the URLs of the images in one folder. Reads the key file once; otherwise it only computes."""

    def __init__(self, media_root: Path, base_url: str, seconds: int) -> None:
        """base_url: the public URL of the service.
        seconds: MEDIA_URL_SECONDS; with 0 nothing is signed.
        """
        self._path = media_root / KEY_NAME
        self._base_url = base_url.rstrip("/") + "/media/"
        self.is_signed = seconds > 0
        self._key = b""

    def url(self, public_id: str, seconds: int) -> str:
        """Return the URL, valid for so many seconds from now; for ever if nothing is signed.

        It has no file extension: to know that, the folder would have to be read for each image that is shown.
        """
        if not self.is_signed:
            return self._base_url + public_id
        expires = str(math.ceil(utc_now().timestamp()) + seconds)
        query = urlencode({"expires": expires, "signature": self._sign(public_id, expires)})
        return f"{self._base_url}{public_id}?{query}"

    def seconds_left(self, public_id: str, query: Mapping[str, str]) -> int | None:
        """Return how long a URL with this query stays valid, 0 when it is expired or not ours, None for ever."""
        if not self.is_signed:
            return None
        expires, signature = query.get("expires", ""), query.get("signature", "")
        # Without a key there are no valid URLs yet, and a request must not create the key.
        if not EXPIRES.fullmatch(expires) or not (self._key or self._path.exists()):
            return 0
        if not hmac.compare_digest(self._sign(public_id, expires).encode(), signature.encode(errors="replace")):
            return 0
        return max(0, int(expires) - int(utc_now().timestamp()))

    def _sign(self, public_id: str, expires: str) -> str:
        self._key = self._key or _read_key(self._path)
        return hmac.new(self._key, f"{public_id}\n{expires}".encode(), hashlib.sha256).hexdigest()


def _read_key(path: Path) -> bytes:
    """Return the key in the file. Creates it if it is missing, readable by its owner only."""
    try:
        key = path.read_bytes()
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".key-")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(secrets.token_hex(KEY_BYTES).encode())
                file.flush()
                os.fsync(file.fileno())
            # A link appears complete or not at all, also when two processes start at once.
            with suppress(FileExistsError):
                os.link(name, path)
        finally:
            os.unlink(name)
        key = path.read_bytes()
    if len(key) < KEY_BYTES:
        raise OSError(f"{path} is damaged; remove it: URLs made with it stop working")
    return key
