"""The providers `openai`, `anthropic` and `gemini` with fake endpoints that refuse, fail or answer wrongly.

Every test runs for all three providers unless it says otherwise.
"""

from __future__ import annotations

import asyncio
import socket
import traceback
from typing import Any

import pytest

from pipeline.errors import DependencyUnavailable, PermanentJobError, RetryableJobError
from pipeline.hooks import UNKNOWN, Attribute
from pipeline.sandbox.sandbox import Sandbox
from pipeline.plugins.vision.provider import NO_QUOTA, REFUSED, VisionProvider
from tests.integration.vision_replies import billed, paid, refusals, statuses, unreadable
from tests.integration.vision_requests import (
    BUSY,
    NIKE,
    UNAVAILABLE,
    UNREADABLE,
    build,
    failure,
    make_request,
    product,
)
from tests.integration.vision_requests import endpoint, provider  # noqa: F811
from tests.vision_server import PRODUCT, FakeVision, Reply

__all__ = ["endpoint", "provider"]


@pytest.mark.gen_test(timeout=60)
async def test_each_error_reply_has_its_kind_of_error(endpoint: FakeVision, provider: VisionProvider) -> None:
    """An error is permanent only if the photo is at fault; a wrong setting or a limit spends no attempt of a photo.

    The request is sent once, because the queue repeats it. The cause names the setting that the operator must check.
    """
    rows = statuses(endpoint)
    for reply, kind, message, wait in rows:
        endpoint.script(reply)
        error = await failure(provider)
        assert type(error) is kind and message in error.message, (reply, error)
        assert getattr(error, "retry_after_seconds", None) == wait, reply
        assert getattr(error, "max_attempts", None) is None
        if isinstance(error, RetryableJobError):
            is_not_of_photo = wait is not None or error.message in (BUSY, NO_QUOTA)
            assert error.spends_attempt is not is_not_of_photo, (reply, error)
        cause, prefix = str(error.__cause__), f"PLUGIN_{endpoint.name.upper()}_"
        assert f"HTTP {reply.status} from 127.0.0.1" in cause
        if "not set up" in error.message:
            setting = {404: "MODEL", 405: "BASE_URL", 307: "BASE_URL"}.get(reply.status, "API_KEY")
            assert f"see {prefix}{setting}" in cause
    assert len(endpoint.requests) == len(rows)


@pytest.mark.gen_test(timeout=60)
async def test_refusals_are_permanent_and_unreadable_answers_are_tried_twice(
    endpoint: FakeVision, provider: VisionProvider
) -> None:
    """A refusal by the model is a permanent error without the model's text, which the photo may have caused.

    An answer that breaks the schema is a retryable error with two attempts, and no part of it is stored.
    """
    for body in refusals(endpoint):
        endpoint.script(Reply(body=body))
        error = await failure(provider)
        assert isinstance(error, PermanentJobError) and error.message == REFUSED, body
        assert "ignore all rules" not in str(error.__cause__)
        assert paid(error) == billed(endpoint, body)
    for body in unreadable(endpoint):
        endpoint.script(Reply(body=body))
        error = await failure(provider)
        assert isinstance(error, RetryableJobError), body
        assert (error.message, error.max_attempts, error.retry_after_seconds) == (UNREADABLE, 2, None)
        assert paid(error) == billed(endpoint, body)
        assert len(str(error.__cause__)) < 400 and "IGNORE" not in str(error.__cause__)


@pytest.mark.gen_test(timeout=60)
async def test_answer_that_follows_the_schema_is_cleaned(endpoint: FakeVision, provider: VisionProvider) -> None:
    """Blanks and control characters are removed, "" and "Not visible" are UNKNOWN, additional members are left out.

    An answer without numbers of tokens, or with wrong ones, is accepted.
    """
    cases: list[tuple[Any, tuple[Attribute, ...]]] = [
        (product(brand={"value": " Nike\n", "confidence": 1}), (Attribute("Nike", 1.0), *NIKE[1:])),
        (product(brand={"value": "Ni\x1b[2Jke\u202e", "confidence": 1}), (Attribute("Ni [2Jke", 1.0), *NIKE[1:])),
        (product(model={"value": "", "confidence": 0.4}), (NIKE[0], UNKNOWN, NIKE[2])),
        (product(model={"value": "Not visible", "confidence": 0.4}), (NIKE[0], UNKNOWN, NIKE[2])),
        (product(colorway={"value": " \x00 ", "confidence": 0}), (*NIKE[:2], UNKNOWN)),
        (product(remark="nice"), NIKE),
    ]
    for found, wanted in cases:
        endpoint.script(Reply(body=endpoint.completion(found)))
        analysis = await provider.analyze(make_request())
        assert (analysis.brand, analysis.model, analysis.colorway) == wanted
    usage = {"openai": "usage", "anthropic": "usage", "gemini": "usageMetadata"}[endpoint.name]
    named = "modelVersion" if endpoint.name == "gemini" else "model"
    for nonsense in (None, {}, {"prompt_tokens": "many", "input_tokens": -1, "promptTokenCount": 1e300}):
        body = endpoint.completion(PRODUCT) | {usage: nonsense, named: 7}
        endpoint.script(Reply(body=body))
        analysis = await provider.analyze(make_request())
        assert analysis.usage is None and analysis.ai_model == provider.model_name


@pytest.mark.parametrize("endpoint", ["openai"], indirect=True)  # all providers use the same code to wait
@pytest.mark.gen_test(timeout=60)
async def test_call_without_an_answer_in_time_is_an_error(endpoint: FakeVision, sandbox: Sandbox) -> None:
    """An endpoint that does not end its reply times out after the time of the call or of the setting.

    An endpoint that closes the connection is unavailable. A cancelled call closes its connection, and the next call
    succeeds.
    """
    provider = build(endpoint, sandbox)
    endpoint.script(Reply(trickles=True))
    error = await failure(provider, timeout_seconds=1)
    assert (type(error), error.message) == (RetryableJobError, "AI service timed out")
    await asyncio.wait_for(endpoint.dropped.wait(), 10)
    endpoint.script(Reply(cut=True))
    error = await failure(provider)
    assert isinstance(error, RetryableJobError) and (error.message, error.spends_attempt) == (UNAVAILABLE, True)
    endpoint.pause()
    impatient = build(endpoint, sandbox, TIMEOUT_SECONDS="1")
    assert (await failure(impatient, timeout_seconds=100)).message == "AI service timed out"
    await impatient.close()
    endpoint.dropped.clear()
    endpoint.requests.clear()
    call = asyncio.ensure_future(provider.analyze(make_request()))
    await endpoint.wait_for_call()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await asyncio.wait_for(endpoint.dropped.wait(), 10)
    endpoint.resume()
    assert (await provider.analyze(make_request())).brand == NIKE[0]
    await provider.close()


@pytest.mark.gen_test(timeout=60)
async def test_refused_connection_spends_no_attempt_and_fails_the_check(endpoint: FakeVision, sandbox: Sandbox) -> None:
    """A refused connection is a retryable error that spends no attempt; the check raises its cause."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        provider = build(endpoint, sandbox, BASE_URL=f"http://127.0.0.1:{closed.getsockname()[1]}/v1")
        error = await failure(provider)
        with pytest.raises(DependencyUnavailable) as caught:
            await provider.check()
    assert isinstance(error, RetryableJobError) and (error.message, error.spends_attempt) == (UNAVAILABLE, False)
    assert "ClientConnectorError" in str(error.__cause__) and "ClientConnectorError" in str(caught.value.__cause__)
    await provider.close()


@pytest.mark.gen_test(timeout=60)
async def test_check_is_free_and_names_the_reason(endpoint: FakeVision, provider: VisionProvider) -> None:
    """The check requests information about the model, with the key; its cause names the setting to correct."""
    assert await provider.check() is None
    assert [(each.method, each.body) for each in endpoint.requests] == [("GET", None)]
    prefix = f"PLUGIN_{endpoint.name.upper()}_"
    for reply, reason in (
        (Reply(401, endpoint.error("Incorrect key provided")), f"see {prefix}API_KEY; HTTP 401 from 127.0.0.1"),
        (Reply(404, b"<html>"), f"see {prefix}MODEL and {prefix}BASE_URL; HTTP 404"),
        (Reply(503), "HTTP 503"),
        (Reply(cut=True), "ServerDisconnectedError"),
        (Reply(body=b"<html>the page of a chat</html>"), f"{prefix}BASE_URL"),
        (Reply(body=7), f"{prefix}BASE_URL"),
    ):
        # A GET is sent a second time if the server has closed the connection.
        endpoint.script(*[reply] * (2 if reply.cut else 1))
        with pytest.raises(DependencyUnavailable) as caught:
            await provider.check()
        assert reason in str(caught.value.__cause__)


@pytest.mark.gen_test(timeout=60)
async def test_key_is_in_no_error_and_no_repr(endpoint: FakeVision, sandbox: Sandbox) -> None:
    """A key that the endpoint repeats in its reply is not in an error, its trace or a repr."""
    key = "sk-wrong-9876543210"
    provider = build(endpoint, sandbox, API_KEY=key)
    errors: list[BaseException] = [await failure(provider)]
    for padding in range(200, 320, 10):  # the error cuts the text in different places
        endpoint.script(Reply(400, endpoint.error("x" * padding + key)), Reply(400, b"x" * padding + key.encode()))
        errors += [await failure(provider), await failure(provider)]
    with pytest.raises(DependencyUnavailable) as caught:
        await provider.check()
    for raised in (*errors, caught.value):
        shown = "".join(traceback.format_exception(raised)) + repr(raised) + repr(raised.__cause__)
        assert "sk-wrong" not in shown
    assert "***" in str(errors[0].__cause__) and "***" in str(caught.value.__cause__)
    shown = repr(provider) + repr(vars(provider)) + repr(provider.settings) + str(provider.settings.model_dump())
    assert key not in shown
    await provider.close()
