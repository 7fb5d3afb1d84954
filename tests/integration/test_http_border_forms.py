"""Faulty forms of an upload at the HTTP border: each gets a 400 that names the fault."""

from __future__ import annotations

from typing import Any

import pytest

from tests.factories import make_image, make_multipart, make_upload
from tests.integration.http_border import Border, border, error, is_finished, make_part, settings

__all__ = ["border", "settings"]  # fixtures
JPEG = ("image", "photo.jpg", "image/jpeg", make_image())
BAD_CATEGORY = "Must be one of: sneaker, lego, camera, other"
REQUIRED = "Image file is required"
UNKNOWN_CHARSET = "Its charset is not known: klingon; send UTF-8"


def missing(body: str, **details: str) -> dict[str, Any]:
    """Return the error for a missing image.

    body: the reason, as far as it is known.
    """
    return error("VALIDATION_ERROR", REQUIRED, image=REQUIRED, body=body, **details)


def malformed(reason: str) -> dict[str, Any]:
    return error("VALIDATION_ERROR", "The multipart body is malformed", body=reason)


FAULTY_FORMS: dict[str, tuple[tuple[bytes, str], dict[str, Any]]] = {
    "no image": (make_multipart({"category": "lego"}), missing("these parts came: category")),
    "image is text": (
        make_multipart({"category": "lego", "image": "data:image/png;base64,AAAA"}),
        missing("image came as a text, without a filename"),
    ),
    "image is empty": (
        make_multipart({"category": "lego"}, [("image", "", "application/octet-stream", b"")]),
        missing("image came without a byte"),
    ),
    "image under another name": (
        make_multipart({"category": "lego"}, [("photo", "p.jpg", "image/jpeg", make_image())]),
        missing("these parts came: category, photo"),
    ),
    "image as a list": (
        make_multipart({"category": "lego"}, [("image[]", "p.jpg", "image/jpeg", make_image())]),
        missing("these parts came: category, image[]"),
    ),
    "bad category": (
        make_multipart({"category": "shoe"}, [JPEG]),
        error("VALIDATION_ERROR", "Invalid category", category=BAD_CATEGORY),
    ),
    "no category": (
        make_multipart({}, [JPEG]),
        error("VALIDATION_ERROR", "Invalid category", category=BAD_CATEGORY),
    ),
    "category in capitals": (
        make_multipart({"category": "LEGO"}, [JPEG]),
        error("VALIDATION_ERROR", "Invalid category", category=BAD_CATEGORY),
    ),
    "category is no text": (
        make_multipart([("category", "\udcff".encode("utf-8", "surrogateescape").decode("latin-1"))], [JPEG]),
        error("VALIDATION_ERROR", "Invalid category", category=BAD_CATEGORY),
    ),
    "neither": (
        make_multipart({"category": "shoe"}),
        missing("these parts came: category", category=BAD_CATEGORY),
    ),
    "empty form": (
        (b"--b--\r\n", "multipart/form-data; boundary=b"),
        missing("no parts came", category=BAD_CATEGORY),
    ),
    "nothing at all": ((b"", "multipart/form-data; boundary=b"), missing("it is empty")),
    "two images": (
        make_multipart({"category": "lego"}, [JPEG, JPEG]),
        error("VALIDATION_ERROR", "Must be sent once", image="Must be sent once"),
    ),
    "two categories": (
        make_multipart([("category", "lego"), ("category", "camera")], [JPEG]),
        error("VALIDATION_ERROR", "Must be sent once", category="Must be sent once"),
    ),
    "endless category": (
        make_multipart({"category": "x" * 9000}, [JPEG]),
        error("VALIDATION_ERROR", "Must have at most 8192 bytes", category="Must have at most 8192 bytes"),
    ),
    "too many parts": (
        make_multipart([("note", "x")] * 21),
        error("VALIDATION_ERROR", "The multipart body has more than 20 parts"),
    ),
    "truncated": (
        (make_upload()[0][:-20], make_upload()[1]),
        error("VALIDATION_ERROR", "The multipart body is truncated"),
    ),
    "another boundary": (
        (make_upload()[0], "multipart/form-data; boundary=other"),
        malformed("No line of it is the boundary that Content-Type names"),
    ),
    "endless part header": (
        (b"--b\r\nX-Long: " + b"x" * 5000, "multipart/form-data; boundary=b"),
        malformed("A header of part 1 has more than 4096 bytes"),
    ),
    "many part headers": (
        (b"--b\r\n" + b"X-A: b\r\n" * 17 + b"\r\n", "multipart/form-data; boundary=b"),
        malformed("Part 1 has more than 16 headers"),
    ),
    "part header without a colon": (
        (b"--b\r\nContent-Disposition\r\n\r\nlego\r\n--b--", "multipart/form-data; boundary=b"),
        malformed("Part 1 has a header line without a name and a colon"),
    ),
    "unknown transfer encoding": (
        make_part('name="image"; filename="a.png"', b"...", "Content-Transfer-Encoding: uuencode"),
        malformed("A part has a Content-Transfer-Encoding that is not known: uuencode"),
    ),
    "no base64 under that name": (
        make_part('name="image"; filename="a.png"', b"???", "Content-Transfer-Encoding: base64"),
        malformed("A part says that it is base64, and is not"),
    ),
    "category as a file": (
        make_multipart({}, [JPEG, ("category", "category.txt", "text/plain", b"lego")]),
        error(
            *("VALIDATION_ERROR", "Invalid category"),
            category=BAD_CATEGORY,
            body="category came as a file: send it as a text, without a filename",
        ),
    ),
    "category in an unknown charset": (
        make_part('name="category"', b"lego", "Content-Type: text/plain; charset=klingon"),
        error("VALIDATION_ERROR", UNKNOWN_CHARSET, category=UNKNOWN_CHARSET),
    ),
    "no image at all, only bytes": (
        make_upload(b"<svg xmlns='http://www.w3.org/2000/svg'/>"),
        error("VALIDATION_ERROR", "Invalid image", image="Must be an image: JPEG, PNG, WebP, GIF, AVIF or HEIC"),
    ),
}
for _name, _content_type, _detail in (
    ("json", "application/json", ", not application/json"),
    ("mixed", "multipart/mixed; boundary=b", ", not multipart/mixed"),
    ("urlencoded", "application/x-www-form-urlencoded", ", not application/x-www-form-urlencoded"),
    ("no boundary", "multipart/form-data", ": leave this header to the library that makes the form"),
    ("empty boundary", "multipart/form-data; boundary=", ": leave this header to the library that makes the form"),
    ("endless boundary", f"multipart/form-data; boundary={'b' * 71}", " of at most 70 bytes"),
    ("no content type", "", ", not empty"),
):
    _details = {"image": REQUIRED, "Content_Type": f"Must be multipart/form-data with a boundary{_detail}"}
    FAULTY_FORMS[_name] = ((b"{}", _content_type), error("VALIDATION_ERROR", REQUIRED, **_details))


@pytest.mark.spec("T025")
@pytest.mark.parametrize(("form", "expected"), FAULTY_FORMS.values(), ids=FAULTY_FORMS.keys())
def test_upload_faulty_form_is_a_400_in_the_envelope(
    border: Border, form: tuple[bytes, str], expected: dict[str, Any]
) -> None:
    """A faulty form gets a 400 in the error envelope, and the message names the fault."""
    answer = border.post(*form)

    assert (answer.status, answer.json) == (400, expected)
    assert border.submission.uploads == []
    border.wait_for(is_finished)
    assert border.metrics.uploads.labels("rejected")._value.get() == 1
