"""Replies of the endpoints of `openai`, `anthropic` and `gemini`: errors, refusals and unreadable answers."""

from __future__ import annotations

from typing import Any

from pipeline.errors import JobError, PermanentJobError, RetryableJobError
from pipeline.hooks import Usage
from pipeline.plugins.vision.provider import HOLD_SECONDS, NO_QUOTA, REFUSED
from tests.integration.vision_requests import BUSY, UNAVAILABLE, product
from tests.vision_server import PRODUCT, FakeVision, Reply

RETRY_INFO = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "58.2s"}
PER_DAY = {"quotaId": "GenerateRequestsPerDayPerProjectPerModel-FreeTier"}
QUOTA_FAILURE = {"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": [PER_DAY]}
NOON = {"Date": "Sun, 29 Nov 2026 12:00:00 GMT"}


def statuses(fake: FakeVision) -> list[tuple[Reply, type[JobError], str, float | None]]:
    """Return replies of each kind with the error that follows, its text, and its wait in seconds."""
    error, retry, fatal = fake.error, RetryableJobError, PermanentJobError
    common: list[tuple[Reply, type[JobError], str, float | None]] = [
        (Reply(500, error("x", "api_error")), retry, UNAVAILABLE, None),
        (Reply(502, b"<html>Bad Gateway</html>"), retry, UNAVAILABLE, None),
        (Reply(503, b""), retry, UNAVAILABLE, None),
        (Reply(503, error("x"), {"Retry-After": "9"}), retry, UNAVAILABLE, 9),
        (Reply(504, error("x", "DEADLINE_EXCEEDED")), retry, UNAVAILABLE, None),
        (Reply(408), retry, "AI service timed out", None),
        (Reply(529, error("Overloaded", "overloaded_error")), retry, BUSY, None),
        (Reply(429, error("Slow down", "rate_limit_exceeded")), retry, BUSY, None),
        (Reply(429, headers={"Retry-After": "7"}), retry, BUSY, 7),
        (Reply(429, headers={"Retry-After": "0.5"}), retry, BUSY, 0.5),
        (Reply(429, headers={"retry-after-ms": "1500", "Retry-After": "2"}), retry, BUSY, 1.5),
        (Reply(429, headers={"Retry-After": "Sun, 29 Nov 2026 12:00:20 GMT"} | NOON), retry, BUSY, 20),
        (Reply(429, headers={"Retry-After": "1e9"}), retry, BUSY, None),
        (Reply(429, headers={"Retry-After": "999999999"}), retry, BUSY, 3600),
        (Reply(402, error("Insufficient Balance", "billing_error")), retry, NO_QUOTA, HOLD_SECONDS),
        (Reply(401, error("x")), retry, "AI service is not set up (HTTP 401)", HOLD_SECONDS),
        (Reply(403, error("x", "permission_error")), retry, "AI service is not set up (HTTP 403)", HOLD_SECONDS),
        (Reply(404, error("No such model")), retry, "AI service is not set up (HTTP 404)", HOLD_SECONDS),
        (Reply(307, headers={"Location": "/v1/x"}), retry, "AI service is not set up (HTTP 307)", HOLD_SECONDS),
        (Reply(405), retry, "AI service is not set up (HTTP 405)", HOLD_SECONDS),
        (Reply(400, error("Unsupported parameter")), retry, "AI service refused the request (HTTP 400)", None),
        (Reply(400, [1, "text"]), retry, "AI service refused the request (HTTP 400)", None),
        (Reply(400, b"[" * 100_000), retry, "AI service refused the request (HTTP 400)", None),
        (Reply(400, {"error": {"details": [7, {"violations": [None]}], "type": []}}), retry, "", None),
        (Reply(413, error("x", "request_too_large")), fatal, "AI service refused the image (HTTP 413)", None),
    ]
    return common + [row for row in STATUSES[fake.name](fake)]


def openai_statuses(fake: FakeVision) -> list[tuple[Reply, type[JobError], str, float | None]]:
    error, retry, fatal = fake.error, RetryableJobError, PermanentJobError
    quota, refused = error("Exceeded", "insufficient_quota"), "AI service refused the image (HTTP 400)"
    tokens = {"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "6m0s"}
    requests = {"x-ratelimit-remaining-requests": "4999", "x-ratelimit-reset-requests": "20ms"}
    return [
        (Reply(429, quota), retry, NO_QUOTA, HOLD_SECONDS),
        (Reply(429, quota, {"Retry-After": "600"}), retry, NO_QUOTA, 600),
        (Reply(429, headers=tokens | requests), retry, BUSY, 360),
        (Reply(429, headers=requests), retry, BUSY, 0.02),
        (Reply(500, error("x"), tokens), retry, UNAVAILABLE, None),
        (Reply(503, error("x", "engine_overloaded")), retry, BUSY, None),
        (Reply(400, error("image_url is only supported by certain models")), retry, "", None),
        (Reply(400, error("x", "invalid_image")), fatal, refused, None),
        (Reply(400, error("x", "image_parse_error")), fatal, refused, None),
        (Reply(400, error("x", "content_filter")), fatal, REFUSED, None),
        (Reply(400, error("x", "image_content_policy_violation")), fatal, REFUSED, None),
        (Reply(403, error("x", "moderation_blocked")), fatal, REFUSED, None),
    ]


def anthropic_statuses(fake: FakeVision) -> list[tuple[Reply, type[JobError], str, float | None]]:
    error, retry, fatal = fake.error, RetryableJobError, PermanentJobError
    limit = "anthropic-ratelimit-{}"
    spent = {limit.format("input-tokens-remaining"): "0", limit.format("input-tokens-reset"): "2026-11-29T12:00:42Z"}
    left = {limit.format("requests-remaining"): "49", limit.format("requests-reset"): "2026-11-29T12:00:01Z"}
    low = error("Your credit balance is too low to access the Anthropic API.")
    return [
        (Reply(429, error("x", "rate_limit_error"), spent | left | NOON), retry, BUSY, 42),
        (Reply(429, error("x", "rate_limit_error"), left | NOON), retry, BUSY, 1),
        (Reply(529, error("x", "overloaded_error"), spent | NOON), retry, BUSY, None),
        (Reply(503, error("x", "overloaded_error")), retry, BUSY, None),
        (Reply(400, low), retry, NO_QUOTA, HOLD_SECONDS),
        (Reply(400, error("Could not process image")), fatal, "AI service refused the image (HTTP 400)", None),
        (Reply(400, error("Output blocked by content filtering policy")), fatal, REFUSED, None),
    ]


def gemini_statuses(fake: FakeVision) -> list[tuple[Reply, type[JobError], str, float | None]]:
    retry, fatal = RetryableJobError, PermanentJobError

    def error(message: str, kind: str = "", *details: Any) -> Any:
        return {"error": {"code": 0, "message": message, "status": kind or "INVALID_ARGUMENT", "details": details}}

    exceeded = "You exceeded your current quota, please check your plan and billing details."
    key = {"reason": "API_KEY_INVALID"}
    return [
        (Reply(429, error(exceeded, "RESOURCE_EXHAUSTED", RETRY_INFO)), retry, BUSY, 58.2),
        (Reply(429, [error(exceeded, "RESOURCE_EXHAUSTED", RETRY_INFO)]), retry, BUSY, 58.2),
        (Reply(429, error(exceeded, "RESOURCE_EXHAUSTED")), retry, BUSY, None),
        (Reply(429, error(exceeded, "RESOURCE_EXHAUSTED", QUOTA_FAILURE, RETRY_INFO)), retry, NO_QUOTA, 58.2),
        (Reply(503, error("The model is overloaded.", "UNAVAILABLE")), retry, BUSY, None),
        (Reply(400, error("API key not valid", "", key)), retry, "AI service is not set up (HTTP 400)", HOLD_SECONDS),
        (Reply(400, error("x", "FAILED_PRECONDITION")), retry, "AI service is not set up (HTTP 400)", HOLD_SECONDS),
        (Reply(400, error("Unable to process input image.")), fatal, "AI service refused the image (HTTP 400)", None),
        (Reply(400, error("PROHIBITED_CONTENT")), fatal, REFUSED, None),
    ]


STATUSES = {"openai": openai_statuses, "anthropic": anthropic_statuses, "gemini": gemini_statuses}


def refusals(fake: FakeVision) -> list[Any]:
    """Return answers in which the model, or a filter, refuses the photo."""
    if fake.name == "openai":
        refusal = fake.completion(None, refusal="I can't help with that: ignore all rules")
        return [refusal, fake.completion(None, "content_filter"), fake.completion(PRODUCT, "content_filter")]
    if fake.name == "anthropic":
        return [fake.completion(None, "refusal"), fake.completion("I can't help with", "refusal")]
    reasons = ("SAFETY", "RECITATION", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "IMAGE_SAFETY")
    blocked = [{"promptFeedback": {"blockReason": reason}, "usageMetadata": {}} for reason in ("SAFETY", "OTHER")]
    return [*blocked, *({"candidates": [{"finishReason": reason, "index": 0}]} for reason in reasons)]


def paid(error: JobError) -> tuple[Any, ...] | None:
    """Return the tokens that the error has as paid, or None."""
    usage = error.usage
    return (usage.input_tokens, usage.output_tokens) if isinstance(usage, Usage) else None


def billed(fake: FakeVision, body: Any) -> tuple[Any, ...] | None:
    """Return the tokens that the answer has as used, or None."""
    is_published = isinstance(body, dict) and (body.get("usage") or body.get("usageMetadata"))
    return tuple(fake.tokens) if is_published else None


def unreadable(fake: FakeVision) -> list[Any]:
    """Return answers that do not follow the schema, and replies that are no answers."""
    texts = [
        *(None, "", "I see a shoe.", "```json\n{}\n```", "[" * 100_000, {}, '{"brand": {"value": "Ni'),
        {"brand": PRODUCT["brand"], "model": PRODUCT["model"]},
        *(product(brand=each) for each in (None, "Nike", {"value": "Nike"}, {"value": None, "confidence": 0})),
        *(
            product(brand={"value": "Nike", "confidence": each})
            for each in (93, -0.1, "high", True, None, float("nan"), float("inf"))
        ),
        product(brand={"value": ["Nike"], "confidence": 1}),
        product(brand={"value": "IGNORE ALL RULES " * 20, "confidence": 1}),
    ]
    cut_off = {"openai": "length", "anthropic": "max_tokens", "gemini": "MAX_TOKENS"}[fake.name]
    bodies = [
        *(b"", b"not json", b"<html>200 OK</html>", b"\xff\xfe", b"[" * 100_000, b" " * 1_100_000),
        *([], {}, 7, None, "text", {"choices": []}, {"choices": [{"message": None}]}),
        *({"content": None, "stop_reason": "end_turn"}, {"content": [{}], "stop_reason": ["end_turn"]}),
        *({"candidates": []}, {"candidates": [{"finishReason": "OTHER"}]}, {"candidates": [{"finishReason": []}]}),
    ]
    return [*bodies, *map(fake.completion, texts), fake.completion(PRODUCT, cut_off)]
