"""Filters of results: their order, their errors, what they see, and the filters of the plugin `photos`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from structlog.testing import capture_logs
from tornado.ioloop import IOLoop

from pipeline.errors import ConfigurationError, PermanentJobError, ValidationError
from pipeline.hooks import UNKNOWN, Analysis, AnalyzeRequest, Attribute, ProcessedImage
from pipeline.plugins import filter_photos
from tests.fake_plugins import ManagerFactory, find, make_module
from tests.unit.hook_modules import REFUSAL, analyze, make_upload, open_managers, rename, result_filter


@pytest.fixture
def managers(io_loop: IOLoop) -> Iterator[ManagerFactory]:
    """A factory of managers; the test closes what it built."""
    yield from open_managers(io_loop)


@pytest.mark.gen_test
async def test_filters_change_a_result_one_after_the_other(managers: ManagerFactory) -> None:
    """Each filter gets the result of the one before, None changes nothing; tryfirst and trylast set the order."""
    manager = managers.open(
        result_filter("third", rename("last"), trylast=True),
        result_filter("second", rename("middle")),
        result_filter("none", lambda analysis: None),
        result_filter("first", rename("first"), tryfirst=True),
    )
    order = (await analyze(manager)).brand.value.split("+")
    # pluggy documents these options as "as early (late) as possible".
    assert order == ["Nike", "first", "middle", "last"]


@pytest.mark.parametrize(
    "wrong",
    ["Nike", {"brand": "Nike"}, Analysis(brand=Attribute("Nike", 7)), Analysis(processed_image_url="/media/x")],
    ids=repr,
)
@pytest.mark.gen_test
async def test_result_of_a_filter_that_breaks_the_contract_is_not_used(managers: ManagerFactory, wrong: Any) -> None:
    """An invalid result of a filter is ignored, as one of a provider is: the result stays as it was before."""
    manager = managers.open(result_filter("wrong", lambda analysis: wrong), breaker_failures=1)
    with capture_logs() as logs:
        assert (await analyze(manager)).brand.value == "Nike"
    assert [line["hook"] for line in logs if line["event"] == "hook_failed"] == ["transform_analysis"]
    assert managers.count("pipeline_plugin_held", "hook", "wrong") == 1


@pytest.mark.parametrize("error", [ValueError("a bug"), PermanentJobError("no"), REFUSAL, SystemExit(1)], ids=repr)
@pytest.mark.gen_test
async def test_filter_of_results_cannot_fail_a_job(managers: ManagerFactory, error: BaseException) -> None:
    """For any error of a filter of results the job has the result of its provider."""

    def raise_error(analysis: Analysis) -> None:
        raise error

    manager = managers.open(result_filter("broken", raise_error), result_filter("after", rename("after")))
    assert "after" in (await analyze(manager)).brand.value


@pytest.mark.gen_test
async def test_filter_sees_the_request_without_the_image(managers: ManagerFactory) -> None:
    """A filter of results gets the category and the attempt of the request, and not the bytes of the image."""
    seen: list[AnalyzeRequest] = []

    async def transform_analysis(request: AnalyzeRequest) -> None:
        seen.append(request)

    manager = managers.open(make_module("curious", transform_analysis=transform_analysis))
    await analyze(manager, category="lego", attempt=2, image=b"photo")
    assert [(request.category, request.attempt, request.image) for request in seen] == [("lego", 2, None)]


@pytest.mark.gen_test
async def test_filters_are_asked_once_for_the_result_of_a_chain(managers: ManagerFactory) -> None:
    """The result of the second provider of a chain is filtered once; a failure is not filtered."""
    asked: list[str] = []

    async def refuse_photo(request: AnalyzeRequest) -> None:
        raise PermanentJobError("No product in the image")

    def note(analysis: Analysis) -> None:
        asked.append(analysis.brand.value)

    manager = managers.open(result_filter("note", note), providers={"first": refuse_photo, "second": find})
    await analyze(manager)
    assert asked == ["Nike"]
    with pytest.raises(PermanentJobError):
        await analyze(managers.open(result_filter("note", note), providers={"first": refuse_photo}))
    assert asked == ["Nike"]


@pytest.mark.parametrize(
    ("width", "height", "is_accepted"),
    [(300, 300, True), (299, 4000, False), (4000, 299, False), (4000, 300, True)],
)
@pytest.mark.gen_test
async def test_photos_refuses_images_that_are_too_small(
    managers: ManagerFactory, width: int, height: int, is_accepted: bool
) -> None:
    """The plugin `photos` checks the shorter side, accepts the smallest allowed one, and its error has the sizes."""
    manager = managers.open(filter_photos, variables={"PLUGIN_PHOTOS_MIN_SIDE_PIXELS": "300"})
    if is_accepted:
        await manager.validate_upload(make_upload(width, height))
        return
    with pytest.raises(ValidationError) as caught:
        await manager.validate_upload(make_upload(width, height))
    assert caught.value.details == [
        {"field": "image", "message": f"Must be at least 300 pixels wide and high, this one is {width} x {height}"}
    ]


@pytest.mark.gen_test
async def test_photos_removes_attributes_below_the_confidence(managers: ManagerFactory) -> None:
    """An attribute below the limit becomes unknown, one at the limit stays; the processed image stays."""
    image = ProcessedImage(b"image", "image/webp")
    found = Analysis(Attribute("Nike", 0.8), Attribute("501", 0.79), Attribute("red", 0.1), processed_image=image)
    manager = managers.open(
        filter_photos,
        providers={"only": lambda request: found},
        variables={"PLUGIN_PHOTOS_MIN_CONFIDENCE": "0.8"},
    )
    assert await analyze(manager) == Analysis(Attribute("Nike", 0.8), UNKNOWN, UNKNOWN, processed_image=image)
    found = Analysis(Attribute("Nike", 0.9), Attribute("501", 0.9), None)
    assert await analyze(manager) == found


@pytest.mark.parametrize(
    ("variable", "value"),
    [("MIN_SIDE_PIXELS", "-1"), ("MIN_SIDE_PIXELS", "many"), ("MIN_CONFIDENCE", "1.1"), ("MIN_CONFIDENCE", "-0.1")],
)
def test_photos_with_invalid_settings_stops_the_start(
    managers: ManagerFactory, variable: str, value: str
) -> None:
    """An invalid value stops the start; the message has the name of the variable."""
    with pytest.raises(ConfigurationError, match=f"The plugin 'photos' cannot start: PLUGIN_PHOTOS_{variable}: "):
        managers.open(filter_photos, variables={f"PLUGIN_PHOTOS_{variable}": value})
