"""The HTTP border on real sockets: request ids, headers, access lines, wrong addresses and CORS of every reply."""

from __future__ import annotations

import pytest

from pipeline.handlers import refusals
from tests.integration.border_stand_ins import ASSET_ID
from tests.integration.http_border import ORIGIN, UPLOAD, Border, border, head, receive_all, settings

__all__ = ["border", "settings"]  # fixtures


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing/here", 404, "NOT_FOUND"),
        ("OPTIONS", "/nothing/here", 404, "NOT_FOUND"),
        ("POST", "/api/assets/analyze", 405, "METHOD_NOT_ALLOWED"),
        ("PUT", "/api/assets", 405, "METHOD_NOT_ALLOWED"),
        ("GET", UPLOAD, 405, "METHOD_NOT_ALLOWED"),
        ("BREW", "/api/assets", 405, "METHOD_NOT_ALLOWED"),
        ("GET", "/api/assets?limit=%ff", 400, "VALIDATION_ERROR"),
        ("GET", "/api/assets/%ff", 400, "VALIDATION_ERROR"),
    ],
)
def test_reply_to_a_wrong_address_is_in_the_envelope(
    border: Border, method: str, path: str, status: int, code: str
) -> None:
    """Wrong paths, methods and query bytes are answered with the error envelope."""
    answer = border.call(method, path)

    assert (answer.status, answer.json["success"], answer.json["error"]["code"]) == (status, False, code)
    if status == 405:
        assert "OPTIONS" in answer.headers["Allow"]
    assert answer.headers["Content-Type"] == "application/json; charset=UTF-8"


def test_reply_to_a_head_request_has_no_body(border: Border) -> None:
    """HEAD is answered by the status alone."""
    answer = border.call("HEAD", "/api/assets")
    assert (answer.status, answer.body) == (405, b"")


def test_reply_to_a_large_body_for_a_wrong_path_is_a_404(border: Border) -> None:
    """An upload to a path that does not exist gets a 404, and its body is dropped as it arrives."""
    answer = border.call("POST", "/api/assets/analyse/it", bytes(30 * 1024 * 1024))
    assert (answer.status, answer.json["error"]["code"]) == (404, "NOT_FOUND")


def test_reply_to_a_body_over_the_bound_that_no_handler_reads_is_a_400(
    border: Border, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A body that no handler reads is dropped up to a bound, then the connection ends."""
    monkeypatch.setattr(refusals, "DRAIN_BYTES", 100_000)
    with border.connect() as connection:
        connection.sendall(head("text/plain", path="/api/nothing", Content_Length=200_000) + bytes(150_000))
        assert receive_all(connection).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize("path", ["/api/assets", "/nothing"])
def test_reply_carries_security_headers(border: Border, path: str) -> None:
    """Every reply forbids guessing its type and storing a copy, and does not name the server."""
    answer = border.call("GET", path)
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Cache-Control"] == "no-store"
    assert "Date" in answer.headers
    assert "Server" not in answer.headers and "Etag" not in answer.headers


@pytest.mark.parametrize(("given", "is_used"), [("abc-1.2_3", True), ("a" * 65, False), ("a b", False), ("", False)])
@pytest.mark.parametrize("path", ["/api/assets", "/nothing"])
def test_reply_echoes_a_proper_request_id(border: Border, given: str, is_used: bool, path: str) -> None:
    """A good X-Request-Id is in the reply and in the access line; any other is replaced by a new one."""
    answer = border.call("GET", path, headers={"X-Request-Id": given})

    assert (answer.headers["X-Request-Id"] == given) is is_used
    assert border.access_line()["requestId"] == answer.headers["X-Request-Id"]
    assert answer.headers["X-Request-Id"]


def test_access_line_names_the_route_not_the_path(border: Border) -> None:
    """Each request has one line and one count, by its route template, so that no id becomes a label."""
    border.call("GET", f"/api/assets/{ASSET_ID}")

    line = border.access_line()
    assert (line["method"], line["route"], line["status"]) == ("GET", "/api/assets/{id}", 404)
    assert line["durationMs"] > 0
    assert border.metrics.http_requests.labels("/api/assets/{id}", "GET", "404")._value.get() == 1


def test_cors_preflight_of_an_allowed_origin(border: Border) -> None:
    """A page of an allowed origin may send uploads, and read the headers of the reply that a client needs."""
    asks = {"Origin": ORIGIN, "Access-Control-Request-Method": "POST", "Authorization": ""}

    preflight = border.call("OPTIONS", UPLOAD, headers=asks)
    answer = border.call("GET", "/api/assets", headers={"Origin": ORIGIN, "Authorization": "Bearer bad"})

    assert (preflight.status, preflight.body) == (204, b"")
    assert preflight.headers["Access-Control-Allow-Origin"] == ORIGIN
    assert "POST" in preflight.headers["Access-Control-Allow-Methods"]
    assert "Idempotency-Key" in preflight.headers["Access-Control-Allow-Headers"]
    assert (answer.status, answer.headers["Access-Control-Allow-Origin"]) == (401, ORIGIN)
    assert "X-Request-Id" in answer.headers["Access-Control-Expose-Headers"]
    assert answer.headers["Vary"] == "Origin"


@pytest.mark.parametrize("origin", ["https://evil.example", "null", ORIGIN + ".evil.example"])
def test_cors_other_origins_get_nothing(border: Border, origin: str) -> None:
    """A page of any other origin gets no permission."""
    answer = border.call("OPTIONS", UPLOAD, headers={"Origin": origin})
    assert not [name for name in answer.headers if name.startswith("Access-Control")]
