"""Cascades of AI providers, which end with a complete answer, and the usage that each answer reports."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from tornado.ioloop import IOLoop

from pipeline.errors import PermanentJobError, RetryableJobError
from pipeline.hooks import Analysis, Attribute, Usage
from pipeline.hooks.job_protocols import CallUsage
from pipeline.settings import Settings
from tests.fake_plugins import make_request
from tests.unit.provider_chains import (
    BUSY,
    COLOURED,
    FAILED,
    PARTIAL,
    REFUSED,
    UNREACHABLE,
    Chain,
    no_image,
    open_chain,
)


@pytest.fixture
def chain(io_loop: IOLoop) -> Iterator[Chain]:
    yield from open_chain(io_loop)


@pytest.mark.parametrize(
    ("setting", "answers", "asked", "brand", "provider"),
    [
        ("a>b", {}, "a", "a", "a"),
        ("a>b", {"a": PARTIAL}, "ab", "b", "b"),
        ("a>b", {"a": COLOURED, "b": PARTIAL}, "ab", "Nike", "a"),
        ("a>b", {"a": PARTIAL, "b": PARTIAL}, "ab", "Nike", "b"),
        ("a>b>c", {"a": PARTIAL, "b": PARTIAL}, "abc", "c", "c"),
        ("a,b>c", {"a": PARTIAL}, "ac", "c", "c"),  # b is asked instead of a, not after it
        ("a,b>c", {"a": REFUSED, "b": PARTIAL}, "abc", "c", "c"),
        ("a>b,c", {"a": PARTIAL, "b": BUSY}, "abc", "c", "c"),
        ("a>b", {"a": REFUSED}, "ab", "b", "b"),
        ("a>b", {"a": PARTIAL, "b": FAILED}, "ab", "Nike", "a"),  # a partial answer is better than an error
        ("a>b", {"a": PARTIAL, "b": UNREACHABLE}, "ab", "Nike", "a"),
        ("a > b > a", {"a": PARTIAL, "b": PARTIAL}, "ab", "Nike", "b"),
    ],
)
@pytest.mark.gen_test
async def test_cascade_continues_until_an_answer_is_complete(
    chain: Chain, setting: str, answers: dict[str, Any], asked: str, brand: str, provider: str
) -> None:
    """One provider of each stage is asked; the most complete answer counts, and its provider is reported last."""
    chain.answers = {name: Analysis(Attribute(name, 0.9), Attribute("known", 0.9)) for name in "abc"} | answers
    reported: list[str] = []

    class Progress:
        def asked(self, provider: str) -> None:
            reported.append(provider)

        def reported(self, share: float | None, partial: Any) -> None:
            raise AssertionError

    manager = chain.open("a", "b", "c", ai_provider="c", ai_provider_by_category=f"sneaker={setting.replace(',', '+')}")
    analysis = await manager.analyze(make_request("sneaker"), no_image, "", Progress())
    assert ("".join(chain.asked), analysis.brand.value, reported[-1]) == (asked, brand, provider)


@pytest.mark.parametrize("setting", ["a>", ">a", "a>>b", ">"])
def test_cascade_without_a_provider_is_refused(setting: str) -> None:
    """A missing provider before or after > is an error in both settings, for all categories and for one."""
    with pytest.raises(ValueError, match="AI_PROVIDER: a provider is missing before or after >"):
        Settings(ai_provider=setting)
    with pytest.raises(ValueError, match="AI_PROVIDER_BY_CATEGORY"):
        Settings(ai_provider_by_category=f"lego={setting.replace(',', '+')}")
    assert Settings(ai_provider="a>b,c").cascade("lego") == (("a",), ("b", "c"))


class RecordingPermit:
    """A permit that allows every call but those of `refused_provider`, and records costs and stored answers.

    paid: the provider and the cost of each answer; None for an unknown cost.
    """

    def __init__(self) -> None:
        self.paid: list[tuple[str, float | None]] = []
        self.stored: dict[str, Analysis] = {}
        self.refused_provider = ""

    async def earlier_answer(self, provider: str) -> Analysis | None:
        return self.stored.get(provider)

    async def store_partial(self, provider: str, analysis: Analysis) -> None:
        self.stored[provider] = analysis

    async def allow(self, provider: str) -> None:
        return None

    async def begin(self, provider: str, *, waits: bool) -> RetryableJobError | None:
        is_refused = provider == self.refused_provider
        return RetryableJobError("no call reserved", spends_attempt=False) if is_refused else None

    async def end(self, provider: str, analysis: Analysis | None, failed_usage: CallUsage | None = None) -> None:
        paid = CallUsage(analysis.usage) if analysis is not None else failed_usage
        if paid is not None:
            self.paid.append((provider, paid.usage.cost if paid.usage else None))


@pytest.mark.parametrize(
    ("usage", "paid", "tokens"),
    [
        (Usage(100, 7, 0.5), [("a", 0.5), ("b", 0.25)], 100),
        (Usage(100, 7), [("a", None), ("b", 0.25)], 100),  # billed, for an unknown amount
        (None, [("b", 0.25)], None),  # not billed, as far as the provider knows
        *((each, [("a", None), ("b", 0.25)], None) for each in (Usage(cost=-1), Usage(cost=math.nan), 0.5, "free")),
        *((Usage(cost=each), [("a", None), ("b", 0.25)], None) for each in (math.inf, 1e12, True, "1")),
    ],
)
@pytest.mark.parametrize("kind", [PermanentJobError, RetryableJobError, None])
@pytest.mark.gen_test
async def test_cost_of_an_unusable_answer_is_counted(
    chain: Chain, kind: Any, usage: Any, paid: list[Any], tokens: float | None
) -> None:
    """The costs of a refusal, of an answer that was cut off, of an invalid result and of the next answer all count.

    An invalid cost counts as unknown.
    """
    full = Analysis(Attribute("b", 0.9), Attribute("known", 0.9), usage=Usage(cost=0.25))
    wrong = Analysis(brand=Attribute("a", 7), usage=usage)
    chain.answers = {"a": kind("refused", usage=usage) if kind else wrong, "b": full}
    manager, permit = chain.open("a", "b"), RecordingPermit()
    analysis = await manager.analyze(make_request(attempt=3), no_image, permit=permit)
    assert (analysis.brand.value, permit.paid) == ("b", paid)
    labels = {"provider": "a", "model": "", "direction": "input"}
    assert chain.managers.metrics.registry.get_sample_value("pipeline_ai_tokens_total", labels) == tokens


@pytest.mark.gen_test
async def test_a_job_that_waits_for_the_next_stage_pays_the_first_one_once(chain: Chain) -> None:
    """A job that waits for a call of the second provider does not ask the first provider a second time."""
    chain.answers = {"a": replace(PARTIAL, usage=Usage(cost=0.5)), "b": replace(COLOURED, usage=Usage(cost=0.25))}
    manager, permit = chain.open("a", "b", ai_provider="a>b"), RecordingPermit()
    permit.refused_provider = "b"
    for _ in range(3):
        with pytest.raises(RetryableJobError, match="no call reserved"):
            await manager.analyze(make_request(), no_image, permit=permit)
    permit.refused_provider = ""
    assert (await manager.analyze(make_request(), no_image, permit=permit)).colorway is not None
    assert (chain.asked, permit.paid) == (["a", "b"], [("a", 0.5), ("b", 0.25)])


@pytest.mark.gen_test
async def test_usage_is_counted_by_provider_and_a_bounded_number_of_models(chain: Chain) -> None:
    """The usage of each answer counts; after a limit of model names, usage of a new name counts as `other`."""
    manager = chain.open("a", "b", ai_provider="a>b")
    chain.answers["a"] = Analysis(ai_model="mini", usage=Usage(1000, 50, 0.25))
    chain.answers["b"] = Analysis(ai_model="large", usage=Usage(output_tokens=7, currency="EUR"))
    await manager.analyze(make_request(), no_image)
    for number in range(30):
        chain.answers["b"] = Analysis(ai_model=f"nightly-{number}", usage=Usage(cost=0.5, currency="EUR"))
        await manager.analyze(make_request(), no_image)

    def value(name: str, provider: str, model: str, **labels: str) -> float | None:
        return chain.managers.metrics.registry.get_sample_value(
            f"pipeline_ai_{name}_total", {"provider": provider, "model": model} | labels
        )

    assert value("calls", "a", "mini") == 31 and value("cost", "a", "mini", currency="USD") == 7.75
    assert value("tokens", "a", "mini", direction="input") == 31_000
    assert value("tokens", "b", "large", direction="output") == 7
    assert value("calls", "b", "nightly-0") == 1 and value("cost", "b", "large", currency="EUR") is None
    assert value("calls", "b", "other") == 11 and value("cost", "b", "other", currency="EUR") == 5.5
