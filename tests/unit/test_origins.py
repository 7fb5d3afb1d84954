"""Origins: their spelling in settings and in browsers, and which origins belong to the service."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from pipeline.origins import is_same_host, normal_origin, origin_of
from pipeline.settings import Settings
from tests.factories import SECRET

NORMAL = [
    ("https://app.example", "https://app.example", "as browsers send it"),
    ("HTTPS://App.Example", "https://app.example", "capital letters"),
    ("https://app.example:443", "https://app.example", "the default port"),
    ("http://app.example:80", "http://app.example", "the other default port"),
    ("http://app.example:443", "http://app.example:443", "another scheme's default port"),
    ("http://app.example:08080", "http://app.example:8080", "a leading zero"),
    ("http://[::1]:8080", "http://[::1]:8080", "IPv6"),
    ("http://[0:0::1]", "http://[::1]", "IPv6, written longer"),
    ("capacitor://localhost", "capacitor://localhost", "an app"),
    ("chrome-extension://abcdefghij", "chrome-extension://abcdefghij", "an extension of a browser"),
    ("http://xn--bcher-kva.example", "http://xn--bcher-kva.example", "a name with an umlaut, as browsers send it"),
]
NO_ORIGINS = [
    *("", "null", "*", "https://", "https:///", "http://[", "http://]", "http://[::1", "http://[x]", "http://[:::1]"),
    *("app.example", "//app.example", "https://app.example/", "https://app.example/a", "https://app.example?a=b"),
    *("https://ann@app.example", "https://ann:pw@app.example", "https://app.example#x", "https://*.app.example"),
    *("https://app.example:", "https://app.example:0", "https://app.example:65536", "https://app.example:x"),
    *("https://a.example,https://b.example", "https://a b.example", "https://a..example", "https://.example"),
    *("file://", "javascript://app.example", "wss://app.example", "https://b\u00fccher.example", "https://a.example\n"),
    *("https://\ud800.example", "https://" + "a" * 300, "https://a.example\u212a", "http://\u2160.example"),
]


@pytest.mark.parametrize(("text", "expected"), [row[:2] for row in NORMAL], ids=[row[2] for row in NORMAL])
def test_normal_origin_has_one_spelling(text: str, expected: str) -> None:
    """The normal form has small letters, no default port and short IPv6 addresses."""
    assert normal_origin(text) == expected == normal_origin(expected)


@pytest.mark.fault("R14")
@pytest.mark.parametrize("text", NO_ORIGINS)
def test_normal_origin_of_another_text_is_empty(text: str) -> None:
    """A text that is no origin gives an empty text and raises no error, because a client may send it."""
    assert normal_origin(text) == ""


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://photos.example", "https://photos.example"),
        ("https://Photos.Example:443/app/", "https://photos.example"),
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("http://[::1]:8080/x", "http://[::1]:8080"),
        ("https://b\u00fccher.example/x", "https://xn--bcher-kva.example"),
        ("", ""),
        ("http://[", ""),
    ],
)
def test_origin_of_a_setting(url: str, expected: str) -> None:
    """The origin of a URL has no path and no default port, and its host is written as browsers write it."""
    assert origin_of(url) == expected


@pytest.mark.fault("R10")
@pytest.mark.parametrize(
    ("origin", "host", "is_same"),
    [
        ("http://photos.example", "photos.example", True),
        ("https://photos.example", "photos.example", True),
        ("https://photos.example", "Photos.Example:443", True),
        ("http://photos.example", "photos.example:80", True),
        ("http://photos.example:8080", "photos.example:8080", True),
        ("http://[::1]:8080", "[0::1]:8080", True),
        ("https://photos.example", "photos.example:80", False),
        ("http://photos.example:8080", "photos.example", False),
        ("http://photos.example", "photos.example:8080", False),
        ("http://photos.example.evil.example", "photos.example", False),
        ("http://photos.example", "", False),
        ("", "", False),
        ("", "photos.example", False),
        ("http://photos.example", "[", False),
        ("http://photos.example", "photos.example:x", False),
        ("http://photos.example", "photos.example:99999", False),
    ],
)
def test_same_host_compares_host_and_port(origin: str, host: str, is_same: bool) -> None:
    """Host and port decide, not the scheme, which a proxy may change; a default port is optional."""
    assert is_same_host(origin, host) is is_same


@pytest.mark.fault("R17")
@pytest.mark.parametrize(
    ("given", "accepted"),
    [
        ("https://App.Example:443", ("https://app.example",)),
        ("https://app.example/", ("https://app.example",)),
        ("http://localhost:3000, capacitor://localhost", ("http://localhost:3000", "capacitor://localhost")),
        ("https://b\u00fccher.example", ("https://xn--bcher-kva.example",)),
    ],
)
def test_allowed_origins_are_spelled_as_browsers_do(given: str, accepted: tuple[str, ...]) -> None:
    """The setting accepts other spellings and stores the spelling of browsers, for the comparison."""
    assert Settings(jwt_secret=SECRET, allowed_origins=given).allowed_origins == accepted


@pytest.mark.fault("R17")
@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ("null", "null stands for every page without an origin"),
        ("NULL", "null stands for every page without an origin"),
        ("*", "must name origins, * is not accepted"),
        ("https://*.app.example", "each host must be named, * is not accepted"),
        ("https://app.example/path", "an origin has no path"),
        ("https://app.example//", "an origin has no path"),
        ("https://app.example?a=b", "an origin has no path, query"),
        ("https://ann:hunter2secret@app.example", "an origin has no path, query, fragment or user"),
        ("https://app.example#x", "an origin has no path"),
        ("app.example", "must look like https://HOST"),
        ("file:///tmp", "must look like https://HOST"),
        ("wss://app.example", "must look like https://HOST"),
        ("https://app.example:99999", "it has no valid host or port"),
        ("https://a b", "it has no valid host or port"),
        ("http://[", "it has no valid host or port"),
        ("https://good.example,https://app.example:x", "it has no valid host or port"),
    ],
)
def test_allowed_origins_that_match_no_page_are_refused(given: str, reason: str) -> None:
    """Origins that would match too many pages are refused too; the error does not show the refused value."""
    with pytest.raises(ValidationError) as caught:
        Settings(jwt_secret=SECRET, allowed_origins=given)
    text = str(caught.value.errors(include_input=False)[0]["msg"])
    assert f"ALLOWED_ORIGINS: {reason}" in text and "hunter2secret" not in text


@pytest.mark.fault("R10")
def test_page_origins_are_the_public_url_and_the_allowed_origins() -> None:
    """The origin of PUBLIC_URL is one of the page origins, and each origin is listed once."""
    settings = Settings(
        jwt_secret=SECRET,
        public_url="https://Photos.example/app",
        allowed_origins="https://app.example,https://photos.example:443",
    )
    assert settings.page_origins == ("https://photos.example", "https://app.example")
    assert Settings(jwt_secret=SECRET).page_origins == ()
