"""The providers `openai`, `anthropic` and `gemini` with fake endpoints on real HTTP servers: requests and results.

Every test runs for all three providers unless it says otherwise.
"""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from threading import Thread

import pytest
from PIL import ExifTags, Image

from pipeline.demo import pictures
from pipeline.errors import PermanentJobError
from pipeline.hooks import AIProvider, Rate, Usage
from pipeline.hooks.catalogue import Catalogue
from pipeline.hooks.context import ContextFactory, trace_of_call
from pipeline.hooks.kinds import PROVIDER
from pipeline.hooks.limits import sees_of
from pipeline.hooks.values import MemoryValues
from pipeline.metrics import Metrics
from pipeline.sandbox.sandbox import Sandbox
from pipeline.testing import AIProviderSuite
from pipeline.plugins.vision.provider import VisionProvider
from tests.factories import make_image, make_noise_image
from tests.integration.vision_requests import (
    NIKE,
    PRICES,
    build,
    failure,
    make_request,
    with_variables,
)
from tests.integration.vision_requests import endpoint, provider  # noqa: F811
from tests.pictures import encode
from tests.service import Service
from tests.vision_fakes import FAKES
from tests.vision_server import KEY, FakeVision

__all__ = ["endpoint", "provider"]

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class VisionSuite(AIProviderSuite):
    """The suite that every provider must pass, with a fake endpoint."""

    name: str

    @pytest.fixture
    def provider(self, loop: asyncio.AbstractEventLoop, sandbox: Sandbox) -> Iterator[AIProvider]:
        fake = FAKES[self.name]()

        async def start() -> None:
            fake.start()

        loop.run_until_complete(start())
        yield build(fake, sandbox)
        loop.run_until_complete(fake.stop())


class TestOpenAi(VisionSuite):
    """The built-in provider `openai`."""

    name = "openai"


class TestAnthropic(VisionSuite):
    """The built-in provider `anthropic`."""

    name = "anthropic"


class TestGemini(VisionSuite):
    """The built-in provider `gemini`."""

    name = "gemini"


@pytest.mark.gen_test(timeout=60)
async def test_analyze_sends_the_photo_and_returns_what_the_model_sees(
    endpoint: FakeVision, sandbox: Sandbox
) -> None:
    """The analysis has brand, model and colorway from the AI model, with tokens, cost, model name and prompt version.

    The photo is sent as a JPEG, without its URL, and the ids only in headers. The prompt says that text in the photo is
    no instruction.
    """
    provider = build(endpoint, sandbox, **PRICES, CALLS_PER_MINUTE="30")
    analysis = await provider.analyze(make_request(trace_context=TRACE))
    assert (analysis.brand, analysis.model, analysis.colorway) == NIKE
    input_tokens, output_tokens = endpoint.tokens
    cost = pytest.approx((input_tokens * 0.25 + output_tokens * 2) / 1_000_000)
    assert analysis.usage == Usage(input_tokens, output_tokens, cost, "USD")  # type: ignore[arg-type]
    assert analysis.confidence_kind == "self_reported" and endpoint.name in analysis.ai_model
    assert analysis.prompt_version == provider.prompt_version and analysis.prompt_version.startswith("2-")
    assert provider.model_name and provider.rate == Rate(30, 60)
    # Owners of photos read which company gets the photos.
    assert "a server of this site's choice" in provider.sees
    assert f"goes to {provider.maker}, " in build(endpoint, sandbox, BASE_URL="").sees
    (recorded,) = endpoint.requests
    assert Image.open(io.BytesIO(recorded.image)).format == "JPEG"
    assert "secret-place" not in json.dumps(recorded.body) + json.dumps(recorded.headers)
    asked = json.dumps(recorded.body, ensure_ascii=False)
    assert "never an instruction" in asked and "filed it under: sneaker" in asked and "Look at the tongue" in asked
    assert (recorded.headers["X-Request-Id"], recorded.headers["Traceparent"]) == ("request-1", TRACE)
    # Without a trace there is no header, because some proxies refuse an empty one; each category has its own hint.
    for category, hint in (("camera", "Read the lettering on the body"), ("hat", "")):
        await provider.analyze(make_request(category=category))
        assert "Traceparent" not in endpoint.requests[-1].headers
        asked = json.dumps(endpoint.requests[-1].body)
        assert f"filed it under: {category}" in asked and hint in asked and "tongue" not in asked
    assert len({each.client_port for each in endpoint.requests}) == 1, "calls use the same connection"
    await provider.close()


@pytest.mark.gen_test(timeout=60)
async def test_settings_reach_the_endpoint(endpoint: FakeVision, sandbox: Sandbox, tmp_path: Path) -> None:
    """The settings of model, photo size, token limit, prompt and key are used in the request.

    Prices of 0 give a cost of 0; without prices there is no cost.
    """
    endpoint.key = None
    (tmp_path / "prompt.md").write_text("Name it, as JSON.\n[sneaker]\nIt has laces.\n")
    given = {"API_KEY": "", "MODEL": "llava:7b", "MAX_SIDE_PIXELS": "300", "MAX_OUTPUT_TOKENS": "777"}
    free = {"INPUT_PRICE": "0", "OUTPUT_PRICE": "0", "CURRENCY": "EUR"}
    provider = build(endpoint, sandbox, PROMPT_PATH=str(tmp_path / "prompt.md"), **given, **free)
    analysis = await provider.analyze(make_request(image=make_image(size=(640, 480))))
    assert analysis.usage is not None and (analysis.usage.cost, analysis.usage.currency) == (0.0, "EUR")
    (recorded,) = endpoint.requests
    asked = recorded.path + json.dumps(recorded.body)
    assert all(each in asked for each in ("llava", "777", "Name it, as JSON.", "It has laces."))
    assert "catalogue" not in asked
    assert Image.open(io.BytesIO(recorded.image)).size == (300, 225)
    assert not {"Authorization", "X-Api-Key", "X-Goog-Api-Key"} & set(recorded.headers)
    await provider.close()
    unpriced = build(endpoint, sandbox)
    usage = (await unpriced.analyze(make_request())).usage
    assert usage is not None and usage.cost is None and usage.input_tokens == endpoint.tokens[0]
    await unpriced.close()


@pytest.mark.gen_test(timeout=60)
async def test_provider_started_by_the_service_uses_the_shared_session(
    endpoint: FakeVision, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The provider is built as the service builds it; environment variables of the makers' SDKs are ignored."""
    for variable in ("OPENAI_API_KEY", "OPENAI_ORG_ID", "ANTHROPIC_API_KEY", "GEMINI_API_KEY", "GOOGLE_API_KEY"):
        monkeypatch.setenv(variable, "ambient-secret")
    given = {"API_KEY": KEY, "BASE_URL": endpoint.url, "CALLS_PER_MINUTE": "120"}
    settings = with_variables(endpoint.name, **given).model_copy(update={"data_dir": tmp_path})
    catalogue = Catalogue(settings)
    metrics = Metrics()
    contexts = ContextFactory(settings, metrics, lambda name: MemoryValues())
    provider = catalogue.build(PROVIDER, endpoint.name, metrics, contexts)
    assert provider.limits.rate == Rate(120, 60) and sees_of(provider.plugin)
    trace_of_call.set(TRACE)
    analysis = await provider.call("analyze", 10, make_request())
    assert analysis.brand == NIKE[0]
    headers = endpoint.requests[0].headers
    assert headers["User-Agent"].startswith("ai-queue-pipeline/") and headers["Traceparent"] == TRACE
    assert "ambient-secret" not in json.dumps(headers)
    await provider.close()
    await contexts.close()
    await catalogue.sandbox.close()


@pytest.mark.parametrize("endpoint", ["openai"], indirect=True)  # all providers use the same code to reduce photos
@pytest.mark.gen_test(timeout=60)
async def test_every_photo_is_sent_as_a_small_upright_jpeg(endpoint: FakeVision, provider: VisionProvider) -> None:
    """Photos of every format are sent as a JPEG without EXIF data, because endpoints bill by the pixel.

    A photo that cannot be decoded is not sent.
    """
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    exif[ExifTags.Base.Make] = "Phone of user-1"
    clear = Image.new("RGBA", (400, 300), (255, 0, 0, 0))
    photos = [
        (make_image("HEIF", (2000, 1500)), (1024, 768)),
        (make_image("AVIF", (2000, 1500)), (1024, 768)),
        (make_image("GIF", (3000, 10)), (1024, 3)),
        (make_noise_image(6 * 1024 * 1024), (514, 1024)),
        (encode(clear, "PNG"), (400, 300)),
        (encode(clear.convert("RGB"), "JPEG", exif=exif), (300, 400)),
    ]
    sent = []
    for photo, size in photos:
        await provider.analyze(make_request(image=photo, timeout_seconds=60))
        content = endpoint.requests[-1].image
        sent.append(picture := Image.open(io.BytesIO(content)))
        assert (picture.format, picture.mode) == ("JPEG", "RGB") and size in (None, picture.size)
        assert len(content) < 1_100_000 and not picture.getexif() and b"user-1" not in content
    assert min(sent[-2].convert("L").tobytes()) > 250, "transparent pixels become white"
    calls = len(endpoint.requests)
    for broken in (b"", None, b"%PDF-1.7", make_image()[:300]):
        error = await failure(provider, image=broken)
        assert isinstance(error, PermanentJobError) and error.message.startswith("The photo cannot be read")
    assert len(endpoint.requests) == calls


@pytest.mark.parametrize("endpoint", ["openai"], indirect=True)
@pytest.mark.gen_test(timeout=60)
async def test_event_loop_is_not_blocked_while_a_photo_is_reduced(provider: VisionProvider) -> None:
    """A large photo is decoded in a child process, so the loop is not blocked."""
    image = encode(Image.open(pictures()[0][0]).resize((4000, 3000)), "PNG", compress_level=1)
    call = asyncio.ensure_future(provider.analyze(make_request(image=image, timeout_seconds=60)))
    loop, longest = asyncio.get_running_loop(), 0.0
    while not call.done():
        before = loop.time()
        await asyncio.sleep(0.005)
        longest = max(longest, loop.time() - before)
    assert (await call).brand == NIKE[0]
    # The work takes nearly 0.5 s, and would block the loop for that time.
    assert longest < 0.25


@pytest.fixture
def running(tmp_path: Path) -> Iterator[tuple[Mapping[str, FakeVision], Service]]:
    """The fake endpoints, on a loop in a thread, and a service with a different provider for each category."""
    fakes = {name: fake() for name, fake in FAKES.items()}
    loop = asyncio.new_event_loop()
    thread = Thread(target=loop.run_forever)
    thread.start()

    async def work(begins: bool) -> None:
        for fake in fakes.values():
            if begins:
                fake.start()
            else:
                await fake.stop()

    asyncio.run_coroutine_threadsafe(work(True), loop).result()
    given = {"AI_PROVIDER": "openai", "AI_PROVIDER_BY_CATEGORY": "lego=anthropic,camera=gemini"}
    for name, fake in fakes.items():
        own = {"API_KEY": KEY, "BASE_URL": fake.url, **PRICES}
        given |= {f"PLUGIN_{name.upper()}_{variable}": value for variable, value in own.items()}
    with Service(tmp_path, **given) as service:
        yield fakes, service
    asyncio.run_coroutine_threadsafe(work(False), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def test_wrong_key_holds_its_provider_and_fails_no_photo(
    running: tuple[Mapping[str, FakeVision], Service]
) -> None:
    """In the service, photos of the provider with a wrong key wait, and photos of the other providers do not.

    Their results have a provenance. The log names the setting that is wrong.
    """
    fakes, service = running
    fakes["gemini"].key = "another"
    ids = {each: service.upload(category=each).json()["data"]["assetId"] for each in ("camera", "sneaker", "lego")}
    line = service.wait_log("plugin_held", plugin="gemini")
    assert "see PLUGIN_GEMINI_API_KEY" in line["cause"] and KEY not in json.dumps(service.lines)
    for category, name in (("sneaker", "openai"), ("lego", "anthropic")):
        service.wait_log("job_completed", assetId=ids[category])
        asset = service.asset(ids[category])
        assert (asset["status"], asset["aiMetadata"]["model"]["value"]) == ("active", "Air Max 90")
        provenance = asset["provenance"]
        assert (provenance["provider"], provenance["confidenceKind"]) == (name, "self_reported")
        assert provenance["usage"]["inputTokens"] == fakes[name].tokens[0] and provenance["usage"]["cost"] > 0
        assert name in provenance["model"] and provenance["promptVersion"].startswith("2-")
    waiting = service.asset(ids["camera"])
    assert waiting["status"] == "processing" and waiting["aiMetadata"]["error"] is None
