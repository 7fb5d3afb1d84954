"""Bodies of upload forms, written byte by byte."""

from __future__ import annotations

from tests.factories import make_image

FORM = "multipart/form-data; boundary=b"
IMAGE = b'Content-Disposition: form-data; name="image"; filename="a.png"'
CATEGORY = b'Content-Disposition: form-data; name="category"'
PNG = make_image()


def form(*parts: tuple[bytes, bytes]) -> bytes:
    """Return the body of a form; a part is its headers and its content."""
    return b"".join(b"--b\r\n" + headers + b"\r\n\r\n" + content + b"\r\n" for headers, content in parts) + b"--b--\r\n"


GOOD = form((CATEGORY, b"lego"), (IMAGE, PNG))
